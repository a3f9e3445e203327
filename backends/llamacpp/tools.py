"""`tools` and `tool_choice` of a chat body, read and checked to OpenAI's letter."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from backends.errors import InvalidRequest
from backends.llamacpp.grammars import check_schema
from backends.wire import Body

MAX_TOOLS = 128

NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Tool(NamedTuple):
    name: str
    parameters: dict[str, Any]
    as_given: dict[str, Any]
    """For the template."""


@dataclass(frozen=True, slots=True)
class Tools:
    known: Sequence[Tool]
    """Those that may be called."""
    forced: bool
    """The answer is a call, and nothing else."""
    named: bool
    """The client has said which."""
    parallel: bool
    """More than one call in an answer."""
    shown: Sequence[Tool] = ()
    """Those that the model is told of."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.known)


class Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: Any = None
    strict: bool | None = None


class GivenTool(msgspec.Struct):
    type: str
    function: Function | None = None


class ChosenFunction(msgspec.Struct):
    name: str


class Choice(msgspec.Struct):
    type: str
    function: ChosenFunction | None = None


def read_tools(body: Body) -> Tools | None:
    """None: the answer calls nothing.

    Raises:
        InvalidRequest
    """
    given = body.read("tools", list[GivenTool]) or []
    choice: Any = body.read("tool_choice", Any)
    if len(given) > MAX_TOOLS:
        raise InvalidRequest(f"'tools' has {len(given)} entries; {MAX_TOOLS} at most.", param="tools")
    if not given:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
        return None
    raw = body.require("tools", list[dict[str, Any]])
    tools = [_tool(one, raw[place], f"tools[{place}]") for place, one in enumerate(given)]
    if len({tool.name for tool in tools}) < len(tools):
        raise InvalidRequest("'tools' holds a name twice.", param="tools")
    parallel = body.read("parallel_tool_calls", bool, True)
    if choice == "none":
        return None
    if choice in (None, "auto", "required"):
        return Tools(tools, forced=choice == "required", named=False, parallel=parallel, shown=tools)
    return Tools([_chosen(body, tools)], forced=True, named=True, parallel=False, shown=tools)


def _tool(given: GivenTool, raw: dict[str, Any], where: str) -> Tool:
    if given.type != "function":
        raise InvalidRequest(
            f"local models know tools of type 'function', not '{given.type[:40]}'.", param=f"{where}.type"
        )
    if given.function is None:
        param = f"{where}.function"
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if not _NAME.fullmatch(given.function.name):
        raise InvalidRequest(
            f"'{where}.function.name' may have 64 letters, digits, dashes and underscores.",
            param=f"{where}.function.name",
        )
    parameters = given.function.parameters if given.function.parameters is not None else NO_ARGUMENTS
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        param = f"{where}.function.parameters"
        raise InvalidRequest(f"'{param}' must be a JSON schema of type object.", param=param)
    check_schema(parameters, f"{where}.function.parameters")
    return Tool(given.function.name, {"type": "object"} | parameters, raw)


def _chosen(body: Body, tools: Sequence[Tool]) -> Tool:
    wrong = InvalidRequest(
        "'tool_choice' is none, auto, required, or names one of 'tools': "
        '{"type": "function", "function": {"name": "..."}}.',
        param="tool_choice",
    )
    if isinstance(body.read("tool_choice", Any), str):
        raise wrong
    choice = body.require("tool_choice", Choice)
    if choice.type != "function" or choice.function is None:
        raise wrong
    for tool in tools:
        if tool.name == choice.function.name:
            return tool
    raise InvalidRequest(
        f"'tool_choice' names '{choice.function.name[:64]}', which is not in 'tools'.", param="tool_choice"
    )
