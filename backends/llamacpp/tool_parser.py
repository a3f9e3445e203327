"""Text of an answer, as it comes -> words for the client, and calls of tools. Pure; one per sequence.

What turns out to be no call after all, because it is no JSON or has no name, is told as the text it was. Arguments go out as they are
written, as soon as the name is known.
"""

import re
import secrets
import string
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import msgspec

from backends.llamacpp.tool_formats import ToolFormat

_NAME_FIRST = re.compile(r'\s*\{\s*"name"\s*:\s*"([A-Za-z0-9_.-]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_NAME_AND_ARGS = re.compile(r"\s*([A-Za-z0-9_.-]+)(?:\[CALL_ID\][A-Za-z0-9]+)?\[ARGS\]\s*(?=\{)")
_MAY_BE_NAME = re.compile(r"\s*[A-Za-z0-9_.-]{0,64}(?:\[[A-Z_]{0,7}\]?[A-Za-z0-9]*){0,2}(?:\[ARGS\]\s*)?")

_LETTERS = string.ascii_letters + string.digits


class CallPart(NamedTuple):
    """A part of a call: its beginning with id and name, then pieces of its arguments."""

    number: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


Part = str | CallPart


class ToolParser:
    """
    States: outside -> call -> arguments -> after -> outside …; `text`, where the answer as a whole is no call.

    Args:
        names: that may be called.
        parallel: False: whatever follows the first call is not part of the answer.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], *, parallel: bool = True) -> None:
        self._form = form
        self._names = names
        self._parallel = parallel
        self._opening = form.marks[0] if form.opening else ""
        self._read: Callable[[list[Part]], bool] = self._in_outside
        """The state."""
        self._buffer = ""
        self._seen = 0
        """Of the buffer, characters that the scanner has read already."""
        self._call = ""
        """Everything since the opening of a call that nothing was told of yet."""
        self._scanner = _Scanner()
        self._said = False
        self.calls = 0

    @property
    def full(self) -> bool:
        """The one call that was allowed is complete."""
        return not self._parallel and self.calls > 0 and self._read in (self._in_after, self._in_outside)

    def feed(self, text: str) -> list[Part]:
        self._buffer += text
        parts: list[Part] = []
        while not self.full and self._read(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """What was held back, at the end of the answer."""
        rest = ""
        if self._read in (self._in_outside, self._in_text):
            rest = self._buffer
        elif self._read == self._in_call:
            parts = self._whole_call()
            if parts:
                return parts
            rest = self._call + self._buffer
        self._buffer = self._call = ""
        return [rest] if rest and (self._said or not self.calls) and (rest.strip() or not self.calls) else []

    def _in_outside(self, parts: list[Part]) -> bool:
        if not self._opening:
            return self._begins_with_a_call(parts)
        at = self._buffer.find(self._opening)
        if at >= 0:
            self._say(self._buffer[:at].rstrip(), parts)
            self._call, self._buffer = self._opening, self._buffer[at + len(self._opening) :]
            self._read, self._seen, self._scanner = self._in_call, 0, _Scanner()
            return True
        keep = next(
            (
                n
                for n in range(min(len(self._opening) - 1, len(self._buffer)), 0, -1)
                if self._opening.startswith(self._buffer[-n:])
            ),
            0,
        )
        certain = self._buffer[: len(self._buffer) - keep]
        certain = certain.rstrip()  # what stands between words and a call is nobody's text
        self._buffer = self._buffer[len(certain) :]
        self._say(certain, parts)
        return False

    def _begins_with_a_call(self, parts: list[Part]) -> bool:
        """Formats without marks: an answer that begins as an object is a call, if it turns out to be one."""
        for mark in self._form.marks:
            self._buffer = self._buffer.removeprefix(mark) if not self._said else self._buffer
        begun = self._buffer.lstrip()
        if not begun or any(mark.startswith(begun) for mark in self._form.marks):
            return False
        self._read = self._in_call if begun[0] == "{" else self._in_text
        return True

    def _in_text(self, parts: list[Part]) -> bool:
        text, self._buffer = self._buffer, ""
        self._say(text, parts)
        return False

    def _in_call(self, parts: list[Part]) -> bool:
        if self._form.style == "args":
            found, may_be = _NAME_AND_ARGS.match(self._buffer), _MAY_BE_NAME.fullmatch(self._buffer) is not None
        else:
            begun = self._buffer.lstrip()
            if self._form.between and self._call == self._opening and begun[:1] == "[":
                self._buffer, self._call = begun[1:], self._call + "["
                return True
            found, may_be = _NAME_FIRST.match(self._buffer), not begun or begun[0] == "{"
        if found is not None and self._knows(found[1]):
            self._opened(found[1], parts)
            nested = self._form.style == "json"
            self._scanner = _Scanner(depth=1 if nested else 0)
            self._buffer = self._buffer[found.end() :]
            self._read = self._in_arguments
            return True
        if not may_be:
            return self._was_no_call(parts)
        if self._form.style == "json":
            return self._wait_for_all(parts)
        return False

    def _wait_for_all(self, parts: list[Part]) -> bool:
        """Name and arguments in another order, or arguments that are text: told when the object is complete."""
        end = self._scanner.end_of(self._buffer[self._seen :], 0)
        if end is None:
            self._seen = len(self._buffer)
            return False
        end += self._seen
        whole, rest = self._buffer[:end], self._buffer[end:]
        self._buffer = whole
        told = self._whole_call()
        if not told:
            self._buffer = whole + rest
            return self._was_no_call(parts)
        parts += told
        self._buffer = rest
        return True

    def _whole_call(self) -> list[Part]:
        try:
            call = msgspec.json.decode(self._buffer.strip(), type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError):
            return []
        name, arguments = call.get("name"), call.get("arguments", call.get("parameters"))
        if not isinstance(name, str) or not self._knows(name) or not isinstance(arguments, dict | str | None):
            return []
        parts: list[Part] = []
        self._opened(name, parts)
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()
        parts.append(CallPart(self.calls - 1, arguments=text))
        self._read, self._buffer = self._in_after, ""
        return parts

    def _in_arguments(self, parts: list[Part]) -> bool:
        inner = 1 if self._form.style == "json" else 0
        end = self._scanner.end_of(self._buffer, inner)
        piece = self._buffer if end is None else self._buffer[:end]
        self._buffer = self._buffer[len(piece) :]
        if piece:
            parts.append(CallPart(self.calls - 1, arguments=piece))
        if end is None:
            return False
        self._read = self._in_closing if inner else self._in_after
        return True

    def _in_closing(self, parts: list[Part]) -> bool:
        """The rest of the object around the arguments."""
        end = self._scanner.end_of(self._buffer, 0)
        self._buffer = "" if end is None else self._buffer[end:]
        if end is not None:
            self._read = self._in_after
        return end is not None

    def _in_after(self, parts: list[Part]) -> bool:
        rest = self._buffer.lstrip()
        if self._form.between:
            if rest[:1] == ",":
                self._buffer, self._call = rest[1:], ","
                self._read, self._seen, self._scanner = self._in_call, 0, _Scanner()
                return True
            if rest[:1] == "]":
                self._buffer, self._read = rest[1:], self._in_outside
                return True
            return False if not rest else self._was_no_call(parts)
        closing = self._form.closing.strip()
        if closing and (rest.startswith(closing) or (rest and not closing.startswith(rest))):
            self._buffer, self._read = rest.removeprefix(closing), self._in_outside
            return True
        if not closing and rest:
            self._buffer = rest.removeprefix(";") if not self._opening else rest
            self._call, self._seen, self._scanner = "", 0, _Scanner()
            self._read = self._in_outside if self._opening else self._in_call
            return bool(self._buffer)
        return False

    def _was_no_call(self, parts: list[Part]) -> bool:
        self._buffer, self._call = self._call + self._buffer, ""
        self._say(self._buffer, parts)
        self._buffer, self._read = "", self._in_text
        return False

    def _opened(self, name: str, parts: list[Part]) -> None:
        tail = "".join(secrets.choice(_LETTERS) for _ in range(self._form.id_chars))
        parts.append(CallPart(self.calls, tail if self._form.id_chars == 9 else f"call_{tail}", name))
        self.calls += 1
        self._call = ""

    def _knows(self, name: str) -> bool:
        """Text without marks may be any JSON; with marks, a name that nobody has given is the client's to see."""
        return bool(self._opening) or name in self._names

    def _say(self, text: str, parts: list[Part]) -> None:
        if text:
            self._said = True
            parts.append(text)


class _Scanner:
    """Where a JSON object ends, read piece by piece."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._escaped = False

    def end_of(self, text: str, depth: int) -> int | None:
        """Behind the bracket that brings the depth back to `depth`; None: `text` does not go so far."""
        for place, char in enumerate(text):
            if self._in_string:
                self._read_string(char)
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= depth:
                    return place + 1
        return None

    def _read_string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
