import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import FilterInvalid
from retrieval.filters import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, AttributeTable, check

DOCUMENTS: dict[int, dict[str, Any]] = {
    1: {"year": 2024, "team": "wool", "draft": True},
    2: {"year": 2025.0, "team": "hay", "draft": False},
    3: {"year": "2025", "team": "Wool", "draft": 1},
    4: {"team": "", "draft": 0},
    5: {},
}
TABLE = AttributeTable(DOCUMENTS)  # type: ignore[arg-type]

VALUES = st.one_of(
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([-0.0, 0.5, 1.0, 2.0, 1e308, 10**400]),
    st.sampled_from(["", "a", "A", "b", "1", "1.0", "True", "true", "ä"]),
)
NAMES = st.sampled_from(["a", "b", "type", "filters", ""])
LEAVES = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["eq", "ne"]), "key": NAMES, "value": VALUES}),
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["gt", "gte", "lt", "lte"]),
            "key": NAMES,
            "value": VALUES.filter(lambda value: not isinstance(value, bool)),
        }
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["in", "nin"]), "key": NAMES, "value": st.lists(VALUES, max_size=4)}
    ),
)


def compounds(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    kinds = st.sampled_from(["and", "or"])
    return st.fixed_dictionaries({"type": kinds, "filters": st.lists(parts, min_size=1, max_size=3)})


CONDITIONS = st.one_of(LEAVES, compounds(LEAVES), compounds(compounds(LEAVES)))
SHELVES = st.dictionaries(st.integers(0, 9), st.dictionaries(NAMES, VALUES, max_size=4), max_size=8)


def kind(value: Any) -> str:
    return "boolean" if isinstance(value, bool) else "word" if isinstance(value, str) else "number"


def same(one: Any, other: Any) -> bool:
    return bool(kind(one) == kind(other) and one == other)


def meets(own: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    """The rules once more, one document at a time."""
    wanted = condition.get("value")
    match condition["type"]:
        case "and":
            return all(meets(own, part) for part in condition["filters"])
        case "or":
            return any(meets(own, part) for part in condition["filters"])
        case "ne":
            return not meets(own, {**condition, "type": "eq"})
        case "nin":
            return not meets(own, {**condition, "type": "in"})
    if condition["key"] not in own:
        return False
    have = own[condition["key"]]
    match condition["type"]:
        case "eq":
            return same(have, wanted)
        case "in":
            return any(same(have, one) for one in wanted)
    if kind(have) != kind(wanted):
        return False
    return bool(
        {"gt": have > wanted, "gte": have >= wanted, "lt": have < wanted, "lte": have <= wanted}[condition["type"]]
    )


@given(shelf=SHELVES, condition=CONDITIONS)
def test_the_documents_are_those_that_meet_the_condition_one_by_one(
    shelf: dict[int, dict[str, Any]], condition: dict[str, Any]
) -> None:
    table = AttributeTable(shelf)  # type: ignore[arg-type]
    assert table.matching(condition) == {document for document, own in shelf.items() if meets(own, condition)}


@given(shelf=SHELVES, condition=LEAVES)
def test_a_condition_and_its_opposite_share_the_documents_among_them(
    shelf: dict[int, dict[str, Any]], condition: dict[str, Any]
) -> None:
    opposite = {"eq": "ne", "ne": "eq", "in": "nin", "nin": "in"}.get(condition["type"])
    if opposite:
        table = AttributeTable(shelf)  # type: ignore[arg-type]
        one, other = table.matching(condition), table.matching({**condition, "type": opposite})
        assert not one & other
        assert one | other == shelf.keys()


@pytest.mark.parametrize(
    ("type_", "key", "value", "found"),
    [
        ("eq", "year", 2025, {2}),
        ("eq", "year", 2025.0, {2}),
        ("eq", "year", "2025", {3}),
        ("eq", "draft", True, {1}),
        ("eq", "draft", 1, {3}),
        ("eq", "draft", 1.0, {3}),
        ("eq", "draft", False, {2}),
        ("eq", "draft", 0, {4}),
        ("eq", "draft", "True", set()),
        ("eq", "team", "wool", {1}),
        ("eq", "team", "", {4}),
        ("eq", "colour", "red", set()),
        ("ne", "year", 2025, {1, 3, 4, 5}),
        ("ne", "colour", "red", {1, 2, 3, 4, 5}),
        ("in", "year", [2024.0, "2025"], {1, 3}),
        ("in", "draft", [1, False], {2, 3}),
        ("in", "year", [], set()),
        ("nin", "year", [], {1, 2, 3, 4, 5}),
        ("nin", "year", [2024, 2025], {3, 4, 5}),
        ("gt", "year", 2024, {2}),
        ("gte", "year", 2024, {1, 2}),
        ("lt", "year", 2024.5, {1}),
        ("gte", "year", "2", {3}),
        ("lt", "draft", 1, {4}),
        ("lt", "team", "x", {1, 2, 3, 4}),
        ("gt", "team", "a", {1, 2}),
        ("gt", "colour", 0, set()),
        ("lte", "colour", 0, set()),
    ],
)
def test_numbers_words_and_truth_are_three_kinds(type_: str, key: str, value: Any, found: set[int]) -> None:
    assert TABLE.matching({"type": type_, "key": key, "value": value}) == found


def test_without_documents_nothing_is_found() -> None:
    empty = AttributeTable({})
    assert empty.matching({"type": "ne", "key": "a", "value": 1}) == frozenset()
    assert empty.matching({"type": "and", "filters": [{"type": "nin", "key": "a", "value": []}]}) == frozenset()


def test_attributes_that_change_later_do_not_change_what_is_found() -> None:
    own = {"year": 1}
    table = AttributeTable({7: own})  # type: ignore[dict-item]
    own["year"] = 2
    assert table.matching({"type": "eq", "key": "year", "value": 1}) == {7}


EQ = {"type": "eq", "key": "a", "value": 1}


@pytest.mark.parametrize(
    ("condition", "param"),
    [
        (None, "filters"),
        ([], "filters"),
        ("year = 2024", "filters"),
        ({}, "filters.type"),
        ({"type": "like", "key": "a", "value": "x"}, "filters.type"),
        ({"type": "EQ", "key": "a", "value": "x"}, "filters.type"),
        ({"type": None, "key": "a", "value": "x"}, "filters.type"),
        ({"type": ["and"], "filters": [EQ]}, "filters.type"),
        ({"type": {}, "filters": [EQ]}, "filters.type"),
        ({"type": "eq", "value": 1}, "filters.key"),
        ({"type": "eq", "key": "a"}, "filters.value"),
        ({"type": "eq", "key": 1, "value": 1}, "filters.key"),
        ({"type": "eq", "key": None, "value": 1}, "filters.key"),
        ({"type": "eq", "key": "a", "value": None}, "filters.value"),
        ({"type": "eq", "key": "a", "value": [1]}, "filters.value"),
        ({"type": "eq", "key": "a", "value": {}}, "filters.value"),
        ({"type": "gt", "key": "a", "value": True}, "filters.value"),
        ({"type": "lte", "key": "a", "value": False}, "filters.value"),
        ({"type": "in", "key": "a", "value": "abc"}, "filters.value"),
        ({"type": "in", "key": "a", "value": {"b": 1}}, "filters.value"),
        ({"type": "nin", "key": "a", "value": [1, None]}, "filters.value"),
        ({"type": "in", "key": "a", "value": [[1]]}, "filters.value"),
        ({"type": "in", "key": "a", "value": [1] * (MAX_VALUES + 1)}, "filters.value"),
        ({"type": "and"}, "filters.filters"),
        ({"type": "or", "filters": [EQ, {"type": "no"}]}, "filters.filters[1].type"),
        ({"type": "or", "filters": [EQ, None]}, "filters.filters[1]"),
        ({"type": "or", "filters": [{"type": "and", "filters": [EQ, EQ | {"key": 1}]}]}, "filters.filters[0].filters[1].key"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_place(condition: Any, param: str) -> None:
    with pytest.raises(FilterInvalid) as caught:
        TABLE.matching(condition)
    assert caught.value.param == param
    assert f"'{param}'" in str(caught.value)


@pytest.mark.parametrize(
    "condition",
    [
        {"type": "and", "filters": []},
        {"type": "or", "filters": EQ},
        {"type": "and", "filters": [EQ], "key": "a"},
        EQ | {"filters": [EQ]},
        EQ | {"Value": 2},
        EQ | {"x" * 10_000: 2},
    ],
    ids=lambda one: str(one)[:60],
)
def test_a_condition_with_too_little_or_too_much_in_it_is_refused(condition: dict[str, Any]) -> None:
    with pytest.raises(FilterInvalid, match="filters") as caught:
        check(condition)
    assert len(str(caught.value)) < 200


def nested(depth: int) -> dict[str, Any]:
    return EQ if depth == 1 else {"type": "and", "filters": [nested(depth - 1)]}


def test_conditions_are_nested_as_deep_as_is_allowed_and_no_deeper() -> None:
    assert AttributeTable({1: {"a": 1}, 2: {}}).matching(nested(MAX_DEPTH)) == {1}  # type: ignore[dict-item]
    for depth in (MAX_DEPTH + 1, 900):
        with pytest.raises(FilterInvalid, match=f"{MAX_DEPTH} levels") as caught:
            check(nested(depth))
        assert caught.value.param == "filters"


def test_there_are_as_many_conditions_as_are_allowed_and_no_more() -> None:
    check({"type": "or", "filters": [EQ] * (MAX_CONDITIONS - 1)})
    with pytest.raises(FilterInvalid, match=f"more than {MAX_CONDITIONS}"):
        check({"type": "or", "filters": [EQ] * MAX_CONDITIONS})
    with pytest.raises(FilterInvalid, match=f"more than {MAX_CONDITIONS}"):
        check({"type": "or", "filters": [{"type": "and", "filters": [EQ] * 20}] * 5})


def test_a_list_of_values_is_as_long_as_is_allowed() -> None:
    assert TABLE.matching({"type": "in", "key": "year", "value": list(range(2024, 2024 + MAX_VALUES))}) == {1, 2}


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["and", "eq", "in"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["type", "key", "value", "filters", "x"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_whatever_a_client_sends_is_a_condition_or_refused(sent: Any) -> None:
    try:
        found = TABLE.matching(sent)
    except FilterInvalid as exc:
        assert exc.param.startswith("filters")
    else:
        assert found <= DOCUMENTS.keys()
        assert json.dumps(check(sent)) == json.dumps(sent)
