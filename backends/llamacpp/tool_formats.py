"""How a model writes that it calls a tool: known from its chat template, with the grammar that makes it do so.

A template that knows nothing of tools gets them in words, and its model writes as Hermes models do (`tool_messages.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from backends.llamacpp.grammars import WHITESPACE, Source
from backends.llamacpp.tools import Tool, Tools


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
