"""Messages that speak of tools, as a chat template wants them: in its own form, or in words."""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from backends.llamacpp.tool_formats import HERMES, ToolFormat
from backends.llamacpp.tools import Tool

Message = dict[str, Any]


def for_template(messages: Sequence[Message], form: ToolFormat) -> list[Message]:
    """As templates want them: arguments as objects, not as text; ids that Mistral's templates take."""
    return [_templated(message, form) for message in messages]


def _templated(message: Message, form: ToolFormat) -> Message:
    changed = dict(message)
    if calls := message.get("tool_calls"):
        changed["tool_calls"] = [_templated_call(call, form) for call in calls]
    if form.id_chars == 9 and isinstance(message.get("tool_call_id"), str):
        changed["tool_call_id"] = nine(message["tool_call_id"])
    return changed


def _templated_call(call: dict[str, Any], form: ToolFormat) -> dict[str, Any]:
    function = dict(call["function"])
    try:
        function["arguments"] = msgspec.json.decode(function.get("arguments") or "{}", type=dict[str, Any])
    except msgspec.MsgspecError:
        pass  # what a model once wrote, whatever it is
    return call | {"function": function} | ({"id": nine(str(call.get("id")))} if form.id_chars == 9 else {})


def nine(call_id: str) -> str:
    """Nine letters and digits, the same for the same id: what Mistral's templates insist on."""
    return call_id if len(call_id) == 9 and call_id.isalnum() else hashlib.sha256(call_id.encode()).hexdigest()[:9]


INTRODUCTION = """You may call functions to help with the request. These are the functions, as JSON:
{tools}
To call one, answer with nothing but:
<tool_call>
{{"name": "the function's name", "arguments": {{"parameter": "value"}}}}
</tool_call>
The result comes back between <tool_response> and </tool_response>."""


def introduction(tools: Sequence[Tool]) -> str:
    given = "\n".join(msgspec.json.encode(tool.as_given.get("function")).decode() for tool in tools)
    return INTRODUCTION.format(tools=given)


def in_words(messages: Sequence[Message], tools: Sequence[Tool], *, system: bool) -> list[Message]:
    """For templates without tools: calls and results as text of the roles that every template has.

    Args:
        system: the template knows that role; else the introduction stands before the first words of the user.
    """
    written = _merged([_written(message) for message in messages])
    if not tools:
        return written
    role = "system" if system else "user"
    words = introduction(tools)
    for place, message in enumerate(written):
        if message["role"] == role:
            written[place] = message | {
                "content": f"{message['content']}\n\n{words}" if system else f"{words}\n\n{message['content']}"
            }
            return written
    return [{"role": role, "content": words}, *written]


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one message: two results in a row are two turns of the user, which many templates refuse."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"] == "user":
            merged[-1] = merged[-1] | {"content": f"{merged[-1]['content']}\n{message['content']}"}
        else:
            merged.append(message)
    return merged


def _written(message: Message) -> Message:
    if calls := message.get("tool_calls"):
        texts = [_call_text(call["function"]) for call in calls]
        content = "\n".join([text for text in (message.get("content"),) if text] + texts)
        return {"role": "assistant", "content": content}
    if message.get("role") in ("tool", "function"):
        return {"role": "user", "content": f"<tool_response>\n{message.get('content')}\n</tool_response>"}
    return message


def _call_text(function: dict[str, Any]) -> str:
    name = msgspec.json.encode(function.get("name")).decode()
    arguments = function.get("arguments") or "{}"
    return f'{HERMES.opening}{{"name": {name}, "arguments": {arguments}}}{HERMES.closing}'
