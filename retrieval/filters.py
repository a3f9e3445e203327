"""Conditions over attributes, as OpenAI's vector stores take them, and which documents meet them.

A comparison is `{type: eq|ne|gt|gte|lt|lte|in|nin, key, value}`, a compound `{type: and|or, filters: […]}`. A document without
the attribute meets `ne` and `nin` only. Numbers compare with numbers and words with words; true and false are neither.
"""

from collections.abc import Callable, Mapping
from typing import Any

from retrieval.errors import FilterInvalid
from retrieval.tables import DocumentId

MAX_DEPTH = 8
MAX_CONDITIONS = 100
MAX_VALUES = 2000

Attributes = Mapping[str, Any]
Value = str | float | bool

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "gt": lambda have, want: have > want,
    "gte": lambda have, want: have >= want,
    "lt": lambda have, want: have < want,
    "lte": lambda have, want: have <= want,
}


class AttributeTable:
    """The attributes of a collection's documents, by name and value: a filter looks at values, not at documents."""

    def __init__(self, attributes: Mapping[DocumentId, Attributes]) -> None:
        self._all = frozenset(attributes)
        self._by_value: dict[str, dict[tuple[str, Any], set[DocumentId]]] = {}
        for document, own in attributes.items():
            for name, value in own.items():
                self._by_value.setdefault(name, {}).setdefault(_typed(value), set()).add(document)

    def matching(self, condition: Any) -> frozenset[DocumentId]:
        """
        Raises:
            FilterInvalid
        """
        return self._match(check(condition))

    def _match(self, condition: Mapping[str, Any]) -> frozenset[DocumentId]:
        kind = condition["type"]
        if kind in ("and", "or"):
            parts = [self._match(part) for part in condition["filters"]]
            return frozenset.intersection(*parts) if kind == "and" else frozenset().union(*parts)
        held = self._by_value.get(condition["key"], {})
        if kind in ("eq", "ne", "in", "nin"):
            wanted = condition["value"] if kind in ("in", "nin") else [condition["value"]]
            found = frozenset().union(*(held.get(_typed(value), ()) for value in wanted))
            return found if kind in ("eq", "in") else self._all - found
        of_kind, value = _typed(condition["value"])
        compare = _COMPARE[kind]
        return frozenset().union(
            *(found for (own, have), found in held.items() if own == of_kind and compare(have, value))
        )


def check(condition: Any) -> Mapping[str, Any]:
    """
    Raises:
        FilterInvalid: with the place of what is wrong in it.
    """
    _check(condition, "filters", depth=1)
    if _count(condition) > MAX_CONDITIONS:
        raise FilterInvalid(f"'filters' has more than {MAX_CONDITIONS} conditions.")
    return dict(condition)


def _check(condition: Any, where: str, *, depth: int) -> None:
    if not isinstance(condition, Mapping):
        raise FilterInvalid(f"'{where}' must be an object with a 'type'.", param=where)
    if depth > MAX_DEPTH:
        raise FilterInvalid(f"'{where}' is nested too deeply; {MAX_DEPTH} levels at most.", param="filters")
    kind = condition.get("type")
    if kind in ("and", "or"):
        _check_fields(condition, where, "filters")
        parts = condition["filters"]
        if not isinstance(parts, list) or not parts:
            raise FilterInvalid(f"'{where}.filters' must be a list of conditions, and not empty.", param=where)
        for number, part in enumerate(parts):
            _check(part, f"{where}.filters[{number}]", depth=depth + 1)
        return
    if kind not in ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"):
        raise FilterInvalid(
            f"'{where}.type' is one of eq, ne, gt, gte, lt, lte, in, nin, and, or.", param=f"{where}.type"
        )
    _check_fields(condition, where, "key", "value")
    if not isinstance(condition["key"], str):
        raise FilterInvalid(f"'{where}.key' must be a string.", param=f"{where}.key")
    _check_value(kind, condition["value"], f"{where}.value")


def _check_fields(condition: Mapping[str, Any], where: str, *names: str) -> None:
    for name in names:
        if name not in condition:
            raise FilterInvalid(f"'{where}.{name}' is missing.", param=f"{where}.{name}")
    for name in condition.keys() - {"type", *names}:
        raise FilterInvalid(f"'{where}.{str(name)[:40]}' is no field of this condition.", param=where)


def _check_value(kind: str, value: Any, where: str) -> None:
    if kind in ("in", "nin"):
        if not isinstance(value, list) or len(value) > MAX_VALUES or not all(map(_is_value, value)):
            raise FilterInvalid(
                f"'{where}' must be a list of strings, numbers or booleans, {MAX_VALUES} at most.", param=where
            )
    elif not _is_value(value):
        raise FilterInvalid(f"'{where}' must be a string, a number or a boolean.", param=where)
    elif kind in _COMPARE and isinstance(value, bool):
        raise FilterInvalid(f"'{where}' is a boolean, which is neither more nor less than another.", param=where)


def _is_value(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _count(condition: Mapping[str, Any]) -> int:
    return 1 + sum(map(_count, condition.get("filters", ())))


def _typed(value: Any) -> tuple[str, Any]:
    """1 and 1.0 are the same, 1 and true are not."""
    if isinstance(value, bool):
        return ("boolean", value)
    return ("number", value) if isinstance(value, int | float) else ("string", str(value))
