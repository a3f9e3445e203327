"""How a model writes that it calls a tool: known from its chat template, with the grammar that makes it do so.

A template that knows nothing of tools gets them in words, and its model writes as Hermes models do (`in_words`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from backends.llamacpp.grammars import WHITESPACE, Source
from backends.llamacpp.tools import Tool, Tools

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """`opening` call `between` call … `closing`, where a call is `{"name": …, "arguments": …}` or `name[ARGS]{…}`."""

    name: str
    opening: str
    """Empty: the answer as a whole is a call, or none."""
    closing: str
    between: str = ""
    """Empty: each call has its own opening and closing."""
    style: Literal["json", "args"] = "json"
    arguments: str = "arguments"
    """The key."""
    native: bool = True
    """The template writes tools, calls and results itself."""
    marks: tuple[str, ...] = ()
    """Texts that may be control tokens."""
    id_chars: int = 24


HERMES = ToolFormat("hermes", "<tool_call>\n", "\n</tool_call>", marks=("<tool_call>", "</tool_call>"))
LLAMA = ToolFormat("llama", "", "", arguments="parameters", marks=("<|python_tag|>",))
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS][", "]", between=", ", marks=("[TOOL_CALLS]",), id_chars=9)
MISTRAL_ARGS = ToolFormat(
    "mistral_args", "[TOOL_CALLS]", "", style="args", marks=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), id_chars=9
)
IN_WORDS = ToolFormat("words", HERMES.opening, HERMES.closing, marks=HERMES.marks, native=False)


def format_of(template: str | None) -> ToolFormat:
    """By what a template writes; `IN_WORDS` for one that writes no tools, or writes them in a way not known here."""
    if not template or "tools" not in template:
        return IN_WORDS
    if "[TOOL_CALLS]" in template:
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    if "<tool_call>" in template and "<function=" not in template:
        return HERMES
    if '"parameters"' in template and ("ipython" in template or "<|python_tag|>" in template):
        return LLAMA
    return IN_WORDS


def tool_grammar(form: ToolFormat, tools: Tools, tokens: Mapping[str, int], instead: Source | None = None) -> Source:
    """The grammar of calls.

    Args:
        tokens: texts that are one token with a meaning of its own, and never written in letters.
        instead: what the answer may be in place of calls.
    """
    opening, closing = _lark(form.opening, tokens), _lark(form.closing, tokens)
    names = " | ".join(f"call_{place}" for place in range(len(tools.known)))
    if form.between:
        more = f"({_lark(form.between, tokens)} call)*" if tools.parallel else ""
        calls = f"{opening} call {more} {closing}"
    else:
        newline = '"\\n" ' if form.closing.startswith("\n") else '"; " ' if not form.opening else ""
        one = f"{opening} call {closing}"
        calls = f"{one} ({newline}{one})*" if tools.parallel else one
    lines = [f"calls: {calls}", f"call: {names}"]
    for place, tool in enumerate(tools.known):
        lines.append(f"call_{place}: {_call_rule(form, tool, place, tokens)}")
        lines.append(f"args_{place}: %json {_schema(tool.parameters)}")
    if instead is not None:
        lines.append(f"instead: %json {_schema(msgspec.json.decode(instead.text))}")
    start = "start: calls" if instead is None else "start: calls | instead"
    return Source("lark", "\n".join([start, *lines]) + "\n", "tools")


def _call_rule(form: ToolFormat, tool: Tool, place: int, tokens: Mapping[str, int]) -> str:
    if form.style == "args":
        return f"{_quoted(tool.name)} {_lark('[ARGS]', tokens)} args_{place}"
    before = f'{{"name": "{tool.name}", "{form.arguments}": '
    return f'{_quoted(before)} args_{place} "}}"'


def _lark(text: str, tokens: Mapping[str, int]) -> str:
    """Text in Lark's words, with tokens where it has them."""
    for mark, token in tokens.items():
        if mark and mark in text:
            before, after = text.split(mark, 1)
            return " ".join(part for part in (_lark(before, tokens), f"<[{token}]>", _lark(after, tokens)) if part)
    return _quoted(text) if text else ""


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _schema(schema: dict[str, Any]) -> str:
    options = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE, "lenient": False}
    return msgspec.json.encode(schema | {"x-guidance": options}).decode()


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
    written = [_written(message) for message in messages]
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
