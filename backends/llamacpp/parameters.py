"""OpenAI bodies -> what the engine is to do. Ranges and defaults are OpenAI's; what is not supported is refused by name."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from backends.errors import InvalidRequest
from backends.llamacpp.grammars import Source, read_format
from backends.llamacpp.sampling import Sampling
from backends.llamacpp.tools import Tools, read_tools
from backends.wire import Body

MAX_CHOICES = 128
MAX_STOPS = 4
LEGACY_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions."""
MAX_TOP_LOGPROBS = 20
LEGACY_MAX_LOGPROBS = 5

CHAT_ONLY = ("tools", "tool_choice", "top_logprobs")

NOT_SUPPORTED: dict[str, tuple[Any, ...]] = {
    # field -> values that change nothing and are therefore let through
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "chat_template": (),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to generate, apart from the prompt."""

    sampling: Sampling
    stops: tuple[str, ...]
    max_tokens: int | None
    """None: as many as fit."""
    max_tokens_param: str
    choices: int
    stream: bool
    include_usage: bool
    top_logprobs: int | None = None
    """None: no logprobs; else how many likely tokens at each place beside the chosen one."""
    format: Source | None = None
    """What the answer has to be."""
    tools: Tools | None = None

    def sampling_of(self, index: int) -> Sampling:
        """Each choice has a seed of its own, else all would be the same."""
        return replace(self.sampling, seed=(self.sampling.seed + index) & 0xFFFFFFFF)


def read_wanted(body: Body, *, vocabulary: int, legacy: bool) -> Wanted:
    """
    Raises:
        InvalidRequest: a value outside OpenAI's range, or a feature local models do not have.
    """
    refuse_unsupported(body, legacy=legacy)
    newer = not legacy and body.read("max_completion_tokens", int) is not None
    tokens_param = "max_completion_tokens" if newer else "max_tokens"
    stream = body.read("stream", bool, False)
    options = body.read("stream_options", dict[str, Any])
    if options is not None and not stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    return Wanted(
        sampling=_read_sampling(body, vocabulary),
        stops=_read_stops(body),
        max_tokens=_whole(body, tokens_param, LEGACY_MAX_TOKENS if legacy else None, low=0 if legacy else 1),
        max_tokens_param=tokens_param,
        choices=_whole(body, "n", 1, low=1, high=MAX_CHOICES) or 1,
        stream=stream,
        include_usage=bool((options or {}).get("include_usage")),
        top_logprobs=_read_legacy_logprobs(body) if legacy else _read_logprobs(body),
        format=read_format(body),
        tools=None if legacy else read_tools(body),
    )


def refuse_unsupported(body: Body, *, legacy: bool) -> None:
    for name in CHAT_ONLY if legacy else ():
        if given(body, name):
            raise InvalidRequest(f"'{name}' is for /v1/chat/completions.", param=name)
    for name, harmless in NOT_SUPPORTED.items():
        if name in body and (value := body.read(name, Any)) is not None and value not in harmless:
            raise InvalidRequest(f"'{name}' is not supported by this local model.", param=name)


def _read_sampling(body: Body, vocabulary: int) -> Sampling:
    seed = body.read("seed", int)
    return Sampling(
        temperature=_number(body, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(body, "top_p", 1.0, 0.0, 1.0),
        top_k=_whole(body, "top_k", 0, low=0) or 0,
        min_p=_number(body, "min_p", 0.0, 0.0, 1.0),
        presence_penalty=_number(body, "presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, -2.0, 2.0),
        repeat_penalty=_number(body, "repeat_penalty", 1.0, 0.01, 10.0),
        logit_bias=_read_logit_bias(body, vocabulary),
        ignore_eos=body.read("ignore_eos", bool, False),
        seed=secrets.randbits(32) if seed is None else seed & 0xFFFFFFFF,
    )


def given(body: Body, name: str) -> object:
    """Whatever it is; None where it is not there."""
    return body.read(name, object)


def _read_logprobs(body: Body) -> int | None:
    wanted = body.read("logprobs", bool, False)
    top = _whole(body, "top_logprobs", 0, low=0, high=MAX_TOP_LOGPROBS) or 0
    if top and not wanted:
        raise InvalidRequest("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    return top if wanted else None


def _read_legacy_logprobs(body: Body) -> int | None:
    if given(body, "logprobs") is False:  # the chat's form, which some clients send here too
        return None
    return _whole(body, "logprobs", None, low=0, high=LEGACY_MAX_LOGPROBS)


def _read_logit_bias(body: Body, vocabulary: int) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, bias in body.read("logit_bias", dict[str, float], {}).items():
        token = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1
        if not 0 <= token < vocabulary:
            raise InvalidRequest(
                f"'{key[:40]}' is not a token id of this model (0 to {vocabulary - 1}).", param="logit_bias"
            )
        if not -100 <= bias <= 100:
            raise InvalidRequest("biases lie between -100 and 100.", param="logit_bias")
        biases[token] = bias
    return biases


def _read_stops(body: Body) -> tuple[str, ...]:
    value = body.read("stop", Any)
    stops: Any = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise InvalidRequest("'stop' is a string or a list of strings.", param="stop")
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"'stop' takes up to {MAX_STOPS} strings.", param="stop")
    return tuple(stops)


def _number(body: Body, name: str, default: float, low: float, high: float) -> float:
    value = body.read(name, float, default)
    if not low <= value <= high:
        raise InvalidRequest(f"'{name}' is {value:g}; it must lie between {low:g} and {high:g}.", param=name)
    return value


def _whole(body: Body, name: str, default: int | None, *, low: int, high: int = 2**31 - 1) -> int | None:
    value = body.read(name, int)
    if value is None:
        return default
    if not low <= value <= high:
        raise InvalidRequest(f"'{name}' is {value}; it must lie between {low} and {high}.", param=name)
    return value


def read_messages(body: Body) -> list[dict[str, Any]]:
    """The chat's messages with their contents as plain text.

    Raises:
        InvalidRequest: no messages, a role that does not exist, content that is not text.
    """
    messages = body.require("messages", list[Any])
    if not messages:
        raise InvalidRequest("'messages' must hold at least one message.", param="messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InvalidRequest(f"'{where}' must be an object.", param=where)
    role = message.get("role")
    if role not in ("system", "developer", "user", "assistant", "tool", "function"):
        raise InvalidRequest(
            f"'{where}.role' must be system, developer, user, assistant or tool.", param=f"{where}.role"
        )
    content = message.get("content")
    if content is None and role != "assistant":
        raise InvalidRequest(
            f"Missing required parameter: '{where}.content'.",
            param=f"{where}.content",
            code="missing_required_parameter",
        )
    _check_calls(message.get("tool_calls"), f"{where}.tool_calls")
    role = "system" if role == "developer" else role
    return message | {"role": role, "content": text_of(content, f"{where}.content")}


def _check_calls(calls: Any, where: str) -> None:
    """Those of an earlier turn, as templates read them."""
    if calls is None:
        return
    if not isinstance(calls, list):
        raise InvalidRequest(f"'{where}' must be a list of calls.", param=where)
    for place, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        parts = (function.get("name"), function.get("arguments", "")) if isinstance(function, dict) else ()
        if not parts or not all(isinstance(part, str) for part in parts):
            param = f"{where}[{place}]"
            raise InvalidRequest(f"'{param}' must be a call with a function's name and arguments as text.", param=param)


def text_of(content: Any, where: str) -> str:
    """Content is a string or a list of text parts; other parts (images, audio) need another model."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise InvalidRequest(f"'{where}' must be a string or a list of parts.", param=where)
    return "".join(_texts(content, where))


def _texts(parts: list[Any], where: str) -> Iterable[str]:
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise InvalidRequest(f"'{where}[{index}]' must be an object with a type.", param=f"{where}[{index}]")
        if part["type"] not in ("text", "refusal"):
            raise InvalidRequest(
                f"this model reads text only, not '{part['type'][:40]}'.", param=f"{where}[{index}].type"
            )
        text = part.get(part["type"])
        if not isinstance(text, str):
            raise InvalidRequest(f"'{where}[{index}].text' must be a string.", param=f"{where}[{index}].text")
        yield text


def read_prompts(body: Body, *, vocabulary: int) -> list[str | list[int]]:
    """The prompts of a legacy completion: a string, strings, token ids or lists of those. Missing is an empty one."""
    return read_inputs(body, "prompt", vocabulary=vocabulary) if body.read("prompt", Any) is not None else [""]


def read_inputs(body: Body, name: str, *, vocabulary: int) -> list[str | list[int]]:
    value = body.require(name, Any)
    items: list[Any] = [value] if isinstance(value, str) or _is_ids(value) else value if isinstance(value, list) else []
    if not items or not all(isinstance(item, str) or _is_ids(item) for item in items):
        raise InvalidRequest(f"'{name}' must be a string, a list of strings, or token ids, and not empty.", param=name)
    for item in items:
        if not isinstance(item, str) and not all(0 <= token < vocabulary for token in item):
            raise InvalidRequest(
                f"'{name}' holds token ids outside this model's vocabulary (0 to {vocabulary - 1}).", param=name
            )
    return items


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)
