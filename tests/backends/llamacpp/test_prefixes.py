import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backends.llamacpp.prefixes import NOWHERE, Prefixes, Resident, Start, shared_tokens


def resident(sequence: int, tokens: list[int], scope: str = "a") -> Resident:
    return Resident(sequence, scope, np.asarray(tokens, np.int32))


def test_the_longest_common_beginning_of_the_same_scope_wins() -> None:
    prefixes = Prefixes()
    prefixes.keep(resident(1, [1, 2, 3, 4, 5]))
    prefixes.keep(resident(2, [1, 2, 3, 4, 5, 6, 9]))
    prefixes.keep(resident(3, [1, 2, 3, 4, 5, 6, 7], scope="b"))
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    assert prefixes.best(prompt, "a") == Start(2, 6)
    assert prefixes.best(prompt, "b") == Start(3, 7)
    assert prefixes.best(prompt, "c") == NOWHERE
    assert prefixes.best(prompt, "a", [resident(9, prompt)]) == Start(9, 7)


def test_at_least_one_token_is_left_to_decode() -> None:
    prefixes = Prefixes()
    prefixes.keep(resident(1, [1, 2, 3, 4, 5, 6]))
    assert prefixes.best([1, 2, 3, 4, 5, 6], "a") == Start(1, 5)
    assert prefixes.best([1, 2, 3, 4, 5], "a") == Start(1, 4)


def test_a_few_tokens_are_not_worth_it() -> None:
    prefixes = Prefixes()
    prefixes.keep(resident(1, [1, 2, 3]))
    assert prefixes.best([1, 2, 3, 4], "a") == NOWHERE


def test_the_longest_unused_goes_first() -> None:
    prefixes = Prefixes()
    for sequence in (1, 2, 3):
        prefixes.keep(resident(sequence, [sequence] * 9))
    prefixes.keep(prefixes.take(1))
    assert prefixes.oldest() == 2
    assert prefixes.oldest(but=2) == 3
    prefixes.take(2)
    assert (prefixes.oldest(), len(prefixes)) == (3, 2)


@given(one=st.lists(st.integers(0, 3), max_size=20), other=st.lists(st.integers(0, 3), max_size=20))
def test_a_common_beginning_is_as_long_as_it_is(one: list[int], other: list[int]) -> None:
    wanted = 0
    while wanted < min(len(one), len(other)) and one[wanted] == other[wanted]:
        wanted += 1
    assert shared_tokens(np.asarray(one, np.int32), np.asarray(other, np.int32)) == wanted


def test_what_is_public_is_shared_with_every_scope_and_nothing_behind_it() -> None:
    prefixes = Prefixes()
    known = Resident(1, "a", np.arange(1, 21, dtype=np.int32), public=8)
    prefixes.keep(known)
    prompt = [*range(1, 21), 99]
    assert prefixes.best(prompt, "b") == (1, 8)
    assert prefixes.best(prompt, "a") == (1, 20)
