"""Who has to leave memory for whom."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.llamacpp.eviction import Limits, Loaded, leavers


def loaded(name: str, memory: int = 10, last_use_s: float = 0, users: int = 0, *, stays: bool = False) -> Loaded:
    return Loaded(name, memory, last_use_s, users, stays)


@pytest.mark.parametrize(
    ("present", "newcomer", "limits", "leave"),
    [
        ([], 10, Limits(), []),
        ([loaded("a"), loaded("b")], 10, Limits(), []),
        ([loaded("a")], 10, Limits(models=2), []),
        ([loaded("a", last_use_s=2), loaded("b", last_use_s=1)], 10, Limits(models=2), ["b"]),
        ([loaded("a", users=1), loaded("b", last_use_s=5)], 10, Limits(models=2), ["b"]),
        ([loaded("a", users=1), loaded("b", users=1, last_use_s=5)], 10, Limits(models=2), ["a"]),
        ([loaded("a", stays=True), loaded("b", last_use_s=5)], 10, Limits(models=2), ["b"]),
        ([loaded("a", stays=True)], 10, Limits(models=1), None),
        ([loaded("a"), loaded("b", last_use_s=1)], 10, Limits(memory_bytes=25), ["a"]),
        ([loaded("a"), loaded("b", last_use_s=1)], 25, Limits(memory_bytes=25), ["a", "b"]),
        ([], 26, Limits(memory_bytes=25), None),
        ([loaded("small", 1), loaded("large", 20, last_use_s=1)], 10, Limits(memory_bytes=25), ["large"]),
    ],
)
def test_as_few_as_possible_leave_idle_ones_first(
    present: list[Loaded], newcomer: int, limits: Limits, leave: list[str] | None
) -> None:
    assert leavers(present, newcomer, limits) == leave


models = st.builds(
    Loaded,
    name=st.uuids().map(str),
    memory_bytes=st.integers(1, 100),
    last_use_s=st.floats(0, 100),
    users=st.integers(0, 3),
    stays=st.booleans(),
)


@given(
    present=st.lists(models, max_size=8, unique_by=lambda one: one.name),
    newcomer=st.integers(1, 100),
    limits=st.builds(Limits, st.none() | st.integers(1, 9), st.none() | st.integers(1, 400)),
)
def test_what_leaves_makes_room_nobody_leaves_for_nothing_and_those_who_stay_stay(
    present: list[Loaded], newcomer: int, limits: Limits
) -> None:
    names = leavers(present, newcomer, limits)
    fixed = [one for one in present if one.stays]
    if names is None:
        assert not limits.hold(len(fixed) + 1, sum(one.memory_bytes for one in fixed) + newcomer)
        return
    rest = [one for one in present if one.name not in names]
    assert set(fixed) <= set(rest)
    assert limits.hold(len(rest) + 1, sum(one.memory_bytes for one in rest) + newcomer)
    for name in names:
        (back,) = [one for one in present if one.name == name]
        memory = sum(one.memory_bytes for one in rest) + newcomer + back.memory_bytes
        assert not limits.hold(len(rest) + 2, memory), "it could have stayed"
