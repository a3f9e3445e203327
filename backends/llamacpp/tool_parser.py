"""Text of an answer, as it comes -> words for the client, and calls of tools. Pure; one per sequence.

What turns out to be no call after all, because it is no JSON or has no name, is told as the text it was. Arguments go out as they are
written, as soon as the name is known. White space around calls is nobody's text.
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
    States, each a method that reads the buffer and says whether there is more to do: outside -> call -> arguments -> closing ->
    after -> outside …; `text`, where the rest of the answer cannot hold a call.

    Args:
        names: that may be called.
        parallel: False: whatever follows the first call is not part of the answer.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], *, parallel: bool = True) -> None:
        self._form = form
        self._names = names
        self._parallel = parallel
        self._mark = form.marks[0] if form.opening else ""
        self._read: Callable[[list[Part]], bool] = self._outside
        self._buffer = ""
        self._withheld = ""
        """What stands before the buffer and was not told: white space before a mark, the mark."""
        self._seen = 0
        """Of the buffer, characters that the scanner has read already."""
        self._scanner = _Scanner()
        self.calls = 0

    @property
    def full(self) -> bool:
        """The one call that was allowed is complete."""
        return not self._parallel and self.calls > 0 and self._read in (self._after, self._outside)

    def feed(self, text: str) -> list[Part]:
        self._buffer += text
        parts: list[Part] = []
        while not self.full and self._read(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """What was held back, at the end of the answer."""
        parts: list[Part] = []
        if self.full:
            return parts
        if self._read == self._call and (told := self._whole_call()):
            return told
        if self._read not in (self._arguments, self._closing):
            rest = self._withheld + self._buffer
            if rest.strip() or not self.calls:
                self._say(rest, parts)
        self._withheld = self._buffer = ""
        return parts

    def _outside(self, parts: list[Part]) -> bool:
        if not self._mark:
            return self._begins_with_a_call(parts)
        at = self._buffer.find(self._mark)
        if at >= 0:
            words = self._buffer[:at].rstrip()
            self._say(words, parts)
            self._withheld = self._buffer[len(words) : at + len(self._mark)]
            self._to_call(self._buffer[at + len(self._mark) :])
            return True
        keep = _overlap(self._buffer, self._mark)
        certain = self._buffer[: len(self._buffer) - keep].rstrip()
        self._buffer = self._buffer[len(certain) :]
        self._say(certain, parts)
        return False

    def _begins_with_a_call(self, parts: list[Part]) -> bool:
        """Formats without marks: an answer that begins as an object is a call, if it turns out to be one."""
        begun = self._buffer.lstrip()
        for mark in self._form.marks:
            if begun.startswith(mark):
                self._withheld = self._buffer[: len(self._buffer) - len(begun)] + mark
                self._to_call(begun[len(mark) :])
                return True
        if not begun or any(mark.startswith(begun) for mark in self._form.marks):
            return False
        if begun[0] == "{":
            self._to_call(self._buffer)
        else:
            self._read = self._text
        return True

    def _text(self, parts: list[Part]) -> bool:
        text, self._buffer = self._buffer, ""
        self._say(text, parts)
        return False

    def _call(self, parts: list[Part]) -> bool:
        begun = self._buffer.lstrip()
        if self._form.style == "args":
            found, may_be = _NAME_AND_ARGS.match(self._buffer), _MAY_BE_NAME.fullmatch(self._buffer) is not None
        else:
            if self._form.between and self._withheld.endswith(self._mark) and begun[:1] == "[":
                self._withheld += self._buffer[: len(self._buffer) - len(begun)] + "["
                self._to_call(begun[1:])
                return True
            found, may_be = _NAME_FIRST.match(self._buffer), not begun or begun[0] == "{"
        if found is not None and self._knows(found[1]):
            self._opened(found[1], parts)
            self._scanner = _Scanner(depth=1 if self._form.style == "json" else 0)
            self._buffer = self._buffer[found.end() :]
            self._read = self._arguments
            return True
        if not may_be:
            return self._was_no_call(parts)
        return self._form.style == "json" and self._wait_for_all(parts)

    def _wait_for_all(self, parts: list[Part]) -> bool:
        """Name and arguments in another order, or arguments that are text: told when the object is complete."""
        end = self._scanner.end_of(self._buffer[self._seen :], 0)
        if end is None:
            self._seen = len(self._buffer)
            return False
        end += self._seen
        rest, self._buffer = self._buffer[end:], self._buffer[:end]
        if told := self._whole_call():
            parts += told
            self._buffer = rest
            return True
        self._buffer += rest
        return self._was_no_call(parts)

    def _whole_call(self) -> list[Part]:
        """The buffer as a call, where it is one; it is empty then."""
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
        self._read, self._buffer = self._after, ""
        return parts

    def _arguments(self, parts: list[Part]) -> bool:
        inner = 1 if self._form.style == "json" else 0
        end = self._scanner.end_of(self._buffer, inner)
        piece = self._buffer if end is None else self._buffer[:end]
        self._buffer = self._buffer[len(piece) :]
        if piece:
            parts.append(CallPart(self.calls - 1, arguments=piece))
        if end is None:
            return False
        self._read = self._closing if inner else self._after
        return True

    def _closing(self, _: list[Part]) -> bool:
        """The rest of the object around the arguments."""
        end = self._scanner.end_of(self._buffer, 0)
        self._buffer = "" if end is None else self._buffer[end:]
        if end is not None:
            self._read = self._after
        return end is not None

    def _after(self, parts: list[Part]) -> bool:
        rest = self._buffer.lstrip()
        if not rest:
            return False
        if self._form.between:
            return self._after_one_of_a_list(rest, parts)
        closing = self._form.closing.strip()
        if closing.startswith(rest) and closing != rest:
            return False
        if closing or self._mark:
            self._buffer, self._read = rest.removeprefix(closing), self._outside
            return bool(self._buffer)
        self._withheld = ";" if rest.startswith(";") else ""
        self._to_call(rest.removeprefix(";"))
        return True

    def _after_one_of_a_list(self, rest: str, parts: list[Part]) -> bool:
        if rest[0] == ",":
            self._withheld = ","
            self._to_call(rest[1:])
            return True
        if rest[0] == "]":
            self._buffer, self._read = rest[1:], self._outside
            return True
        return self._was_no_call(parts)

    def _to_call(self, buffer: str) -> None:
        self._buffer, self._seen, self._scanner = buffer, 0, _Scanner()
        self._read = self._call

    def _was_no_call(self, parts: list[Part]) -> bool:
        """Told as the text that it was; with marks, a call may still come behind it."""
        self._say(self._withheld, parts)
        self._withheld = ""
        self._read = self._outside if self._mark else self._text
        return True

    def _opened(self, name: str, parts: list[Part]) -> None:
        tail = "".join(secrets.choice(_LETTERS) for _ in range(self._form.id_chars))
        parts.append(CallPart(self.calls, tail if self._form.id_chars == 9 else f"call_{tail}", name))
        self.calls += 1
        self._withheld = ""

    def _knows(self, name: str) -> bool:
        """Text without marks may be any JSON; with marks, a name that nobody has given is the client's to see."""
        return bool(self._mark) or name in self._names

    @staticmethod
    def _say(text: str, parts: list[Part]) -> None:
        if text:
            parts.append(text)


def _overlap(text: str, mark: str) -> int:
    """Length of the longest tail of `text` that begins `mark`."""
    lengths = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((length for length in lengths if mark.startswith(text[-length:])), 0)


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
