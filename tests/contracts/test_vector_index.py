"""One suite for every index of vectors, compared with numpy."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import index_usearch
from retrieval.index import EXACT_UPTO, Keys, Nearest, VectorIndex, Vectors
from retrieval.index_exact import ExactIndex
from retrieval.index_usearch import UsearchIndex
from retrieval.indexes import make_index

Make = Callable[[], VectorIndex]

DIMENSIONS = 24

TOLERANCE = {ExactIndex: 1e-6, UsearchIndex: 2e-3}
"""One keeps what it was given, the other one half precision."""

every_index = pytest.mark.parametrize("make", [ExactIndex, UsearchIndex])


def unit_vectors(count: int, seed: int = 1) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSIONS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def keys(values: Sequence[int]) -> Keys:
    return np.asarray(values, np.uint64)


def filled(make: Make, vectors: Vectors, own: Keys | None = None) -> VectorIndex:
    index = make()
    index.add(np.arange(len(vectors), dtype=np.uint64) if own is None else own, vectors)
    return index


def check(found: Nearest, current: dict[int, Vectors], query: Vectors, k: int, tolerance: float) -> None:
    """They are as near as the nearest that numpy finds, in order, each with its cosine."""
    ids = found.keys.tolist()
    assert (found.keys.dtype, found.scores.dtype) == (np.uint64, np.float32)
    assert len(set(ids)) == len(ids) == len(found.scores) == min(k, len(current))
    assert set(ids) <= current.keys()
    best = np.sort([float(vector @ query) for vector in current.values()])[::-1][:k]
    assert found.scores == pytest.approx(best, abs=tolerance)
    assert found.scores == pytest.approx([float(current[id_] @ query) for id_ in ids], abs=tolerance)
    assert (np.diff(found.scores) <= 1e-6).all()


@every_index
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 10])
def test_neighbours_are_those_that_numpy_finds(make: Make, seed: int, k: int) -> None:
    vectors, own = unit_vectors(300, seed), keys(range(1000, 1600, 2))
    index = filled(make, vectors, own)
    current = dict(zip(own.tolist(), vectors, strict=True))
    for query in unit_vectors(20, seed + 100):
        check(index.search(query, k), current, query, k, TOLERANCE[make])


@every_index
def test_keys_may_be_as_large_as_they_get(make: Make) -> None:
    own = keys([0, 2**63, 2**63 - 1, 2**64 - 2])
    vectors = unit_vectors(4)
    index = filled(make, vectors, own)
    for key, vector in zip(own.tolist(), vectors, strict=True):
        assert index.search(vector, 1).keys.tolist() == [key]
        assert index.search(vector, 4, within=np.sort(own)).keys.tolist()[0] == key
    assert sorted(index.get(own)[0].tolist()) == sorted(own.tolist())


@every_index
def test_a_removed_key_is_not_found_and_the_others_are(make: Make) -> None:
    vectors = unit_vectors(50)
    index = filled(make, vectors)
    index.remove(keys([3, 4, 99]))
    index.remove(keys([3]))
    kept = {number: vector for number, vector in enumerate(vectors) if number not in (3, 4)}
    assert len(index) == 48
    check(index.search(vectors[3], 48), kept, vectors[3], 48, TOLERANCE[make])
    check(index.search(vectors[3], 5, within=keys(range(50))), kept, vectors[3], 5, TOLERANCE[make])
    assert index.search(vectors[3], 5, within=keys([3, 4])).keys.tolist() == []
    assert len(index.get(keys([3, 4]))[0]) == 0


@every_index
def test_a_key_that_was_removed_may_come_back_with_another_vector(make: Make) -> None:
    vectors = unit_vectors(20)
    index = filled(make, vectors[:10])
    index.remove(keys([5]))
    index.add(keys([5]), vectors[15:16])
    assert len(index) == 10
    assert index.search(vectors[15], 1).keys.tolist() == [5]
    assert index.get(keys([5]))[1][0] == pytest.approx(vectors[15], abs=1e-3)


@every_index
def test_adding_a_key_again_replaces_its_vector(make: Make) -> None:
    vectors = unit_vectors(20)
    index = filled(make, vectors[:10])
    index.add(keys([5, 6, 77]), vectors[15:18])
    assert len(index) == 11
    assert [index.search(vectors[place], 1).keys.tolist() for place in (15, 16, 17)] == [[5], [6], [77]]
    assert index.search(vectors[5], 1).scores[0] < 0.99


@every_index
def test_many_changes_leave_the_index_able_to_find(make: Make) -> None:
    """Documents that are edited five times. Approximate neighbours may miss one in fifty, not more."""
    size = 200
    vectors = unit_vectors(6 * size)
    index = filled(make, vectors[:size])
    for number in range(5 * size):
        index.remove(keys([number % size]))
        index.add(keys([number % size]), vectors[size + number : size + number + 1])
    current = vectors[5 * size :]
    assert len(index) == size
    assert sum(index.search(current[id_], 1).keys.tolist() == [id_] for id_ in range(size)) >= 0.98 * size
    shared = [
        len({*index.search(query, 10).keys.tolist()} & {*np.argsort(-(current @ query))[:10].tolist()})
        for query in unit_vectors(50, seed=9)
    ]
    assert sum(shared) >= 0.98 * 10 * len(shared)
    whole = np.arange(size, dtype=np.uint64)
    check(index.search(current[0], 10, within=whole), dict(enumerate(current)), current[0], 10, TOLERANCE[make])


@every_index
def test_an_index_that_was_emptied_can_be_filled_again(make: Make) -> None:
    vectors = unit_vectors(100)
    index = filled(make, vectors)
    index.remove(np.arange(100, dtype=np.uint64))
    assert (len(index), index.search(vectors[0], 5).keys.tolist()) == (0, [])
    index.add(np.arange(50, 100, dtype=np.uint64), vectors[50:])
    current = {number: vectors[number] for number in range(50, 100)}
    for query in unit_vectors(20, seed=2):
        check(index.search(query, 5), current, query, 5, TOLERANCE[make])


@every_index
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("within", [None, [1], [1, 2]])
def test_a_query_without_direction_is_near_to_nothing(
    make: Make, value: float, everywhere: bool, within: list[int] | None
) -> None:
    query = np.zeros(DIMENSIONS, np.float32)
    query[slice(None) if everywhere else slice(1)] = value
    allowed = None if within is None else keys(within)
    found = filled(make, unit_vectors(2), keys([1, 2])).search(query, 2, within=allowed)
    assert (found.keys.tolist(), found.scores.tolist()) == ([], [])


@every_index
@pytest.mark.parametrize("within", [None, range(21)])
def test_a_stored_vector_without_direction_is_near_to_nothing(make: Make, within: Sequence[int] | None) -> None:
    vectors = np.concatenate([np.zeros((1, DIMENSIONS), np.float32), unit_vectors(20)])
    index = filled(make, vectors)
    found = index.search(vectors[1], 21, within=None if within is None else keys(within))
    assert found.keys.tolist()[0] == 1
    assert dict(zip(found.keys.tolist(), found.scores.tolist(), strict=True)).get(0, 0.0) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(index.get(keys([0]))[1]).all()


@every_index
@pytest.mark.parametrize(("k", "size"), [(1, 1), (3, 3), (4, 3), (1000, 3)])
@pytest.mark.parametrize("within", [None, [1, 2, 3], [0, 1, 2, 3, 4]])
def test_k_may_be_larger_than_what_is_there(make: Make, k: int, size: int, within: list[int] | None) -> None:
    allowed = None if within is None else keys(within)
    found = filled(make, unit_vectors(3), keys([1, 2, 3])).search(unit_vectors(1)[0], k, within=allowed)
    assert len(found.keys) == len(found.scores) == size


@every_index
def test_an_empty_index_finds_nothing(make: Make) -> None:
    index, query = make(), unit_vectors(1)[0]
    index.remove(keys([1]))
    index.remove(keys([]))
    index.add(keys([]), np.zeros((0, DIMENSIONS), np.float32))
    for within in (None, keys([]), keys([1])):
        assert index.search(query, 5, within=within).keys.tolist() == []
    assert [len(part) for part in index.get(keys([1]))] == [0, 0]
    index.add(keys([1]), unit_vectors(1))
    index.remove(keys([1]))
    assert (len(index), index.search(query, 5).keys.tolist()) == (0, [])
    assert index.search(query, 5, within=keys([1])).keys.tolist() == []


@every_index
def test_vectors_are_given_back_beside_their_keys(make: Make) -> None:
    vectors = unit_vectors(9)
    index = filled(make, vectors)
    there, got = index.get(keys([8, 0, 77, 3]))
    assert there.tolist() == [8, 0, 3]
    assert (there.dtype, got.dtype, got.shape) == (np.uint64, np.float32, (3, DIMENSIONS))
    assert got == pytest.approx(vectors[[8, 0, 3]], abs=1e-3)
    assert np.linalg.norm(got, axis=1) == pytest.approx([1, 1, 1], abs=1e-6)
    assert [len(part) for part in index.get(keys([]))] == [0, 0]


@every_index
@pytest.mark.parametrize("exact_within", [0, 10, 2000])
@pytest.mark.parametrize("size", [0, 1, 2, 9, 11, 50, 200, 399, 400])
def test_the_nearest_of_those_allowed_are_found_however_few_they_are(
    make: Make, size: int, exact_within: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_usearch, "EXACT_WITHIN", exact_within)
    vectors = unit_vectors(400)
    index = filled(make, vectors)
    chosen = np.sort(np.random.default_rng(size).permutation(400)[:size]).astype(np.uint64)
    current = {int(key): vectors[key] for key in chosen}
    for query in unit_vectors(10, seed=3):
        for k in (1, 7, 60):
            check(index.search(query, k, within=chosen), current, query, k, TOLERANCE[make])


@every_index
@pytest.mark.parametrize("fetched_most", [50, 8000])
def test_those_allowed_are_found_where_they_are_the_farthest(
    make: Make, fetched_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter that leaves only what looks least like the question."""
    monkeypatch.setattr(index_usearch, "EXACT_WITHIN", 5)
    monkeypatch.setattr(index_usearch, "FETCHED_MOST", fetched_most)
    vectors = unit_vectors(500)
    index = filled(make, vectors)
    for query in unit_vectors(10, seed=4):
        chosen = np.sort(np.argsort(vectors @ query)[:40]).astype(np.uint64)
        check(index.search(query, 10, within=chosen), {int(key): vectors[key] for key in chosen}, query, 10, 2e-3)


@every_index
def test_allowed_keys_that_are_not_there_are_not_found(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_usearch, "EXACT_WITHIN", 5)
    vectors = unit_vectors(100)
    index = filled(make, vectors)
    for allowed in (range(90, 93), range(90, 200)):
        current = {key: vectors[key] for key in allowed if key < 100}
        check(index.search(vectors[0], 20, within=keys(allowed)), current, vectors[0], 20, TOLERANCE[make])
    assert index.search(vectors[0], 5, within=keys(range(1000, 1100))).keys.tolist() == []


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("make", [ExactIndex, UsearchIndex])
def test_any_history_ends_as_numpy_says(make: Make, data: st.DataObject) -> None:
    """Adding, replacing and removing in any order; few enough that nothing may be missed."""
    pool = unit_vectors(200, seed=5)
    index, current = make(), dict[int, Vectors]()
    some = st.lists(st.integers(0, 30), max_size=12, unique=True)
    for number in range(data.draw(st.integers(1, 12))):
        own = data.draw(some)
        if data.draw(st.booleans()):
            vectors = pool[[(number * 17 + place) % len(pool) for place in range(len(own))]]
            index.add(keys(own), vectors.reshape(len(own), DIMENSIONS))
            current |= zip(own, vectors, strict=True)
        else:
            index.remove(keys(own))
            current = {key: vector for key, vector in current.items() if key not in own}
    assert len(index) == len(current)
    query, k = unit_vectors(1, seed=6)[0], data.draw(st.integers(1, 40))
    check(index.search(query, k), current, query, k, TOLERANCE[make])
    allowed = sorted(data.draw(some))
    inside = {key: current[key] for key in allowed if key in current}
    check(index.search(query, k, within=keys(allowed)), inside, query, k, TOLERANCE[make])
    assert set(index.get(keys(range(31)))[0].tolist()) == current.keys()


def test_everything_of_the_exact_index_is_given_out_to_make_another_of_it() -> None:
    vectors = unit_vectors(5)
    own, got = filled(ExactIndex, vectors, keys([5, 4, 3, 2, 1])).all()
    assert dict(zip(own.tolist(), got.tolist(), strict=True)) == dict(
        zip([5, 4, 3, 2, 1], vectors.tolist(), strict=True)
    )


def test_a_saved_graph_answers_as_before_and_goes_on_changing(tmp_path: Path) -> None:
    vectors = unit_vectors(300)
    index = filled(UsearchIndex, vectors[:200])
    index.remove(keys(range(20)))
    index.save(tmp_path / "graph")
    loaded = UsearchIndex.load(tmp_path / "graph", DIMENSIONS)
    assert len(loaded) == 180
    for query in unit_vectors(20, seed=7):
        before, after = index.search(query, 10), loaded.search(query, 10)
        assert (before.keys.tolist(), before.scores.tolist()) == (after.keys.tolist(), after.scores.tolist())
    loaded.add(keys(range(200, 300)), vectors[200:])
    loaded.remove(keys(range(20, 40)))
    current = {key: vectors[key] for key in range(40, 300)}
    check(loaded.search(vectors[250], 10), current, vectors[250], 10, TOLERANCE[UsearchIndex])


@pytest.mark.parametrize("dimensions", [DIMENSIONS - 1, DIMENSIONS + 1, 0])
def test_a_saved_graph_of_other_dimensions_is_refused(tmp_path: Path, dimensions: int) -> None:
    filled(UsearchIndex, unit_vectors(20)).save(tmp_path / "graph")
    with pytest.raises((ValueError, RuntimeError)):
        UsearchIndex.load(tmp_path / "graph", dimensions)


@pytest.mark.parametrize("content", [b"", b"x", b"usearch", bytes(4096)])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "graph").write_bytes(content)
    with pytest.raises((ValueError, RuntimeError)):
        UsearchIndex.load(tmp_path / "graph", DIMENSIONS)


@pytest.mark.parametrize(
    ("expected", "kind"), [(0, ExactIndex), (EXACT_UPTO, ExactIndex), (EXACT_UPTO + 1, UsearchIndex)]
)
def test_small_collections_compare_with_everything(expected: int, kind: type) -> None:
    assert isinstance(make_index(expected), kind)


def test_a_graph_that_much_was_removed_from_is_worn_and_made_anew_it_is_not(tmp_path: Path) -> None:
    vectors = unit_vectors(600)
    index = UsearchIndex()
    index.add(np.arange(600, dtype=np.uint64), vectors)
    assert not index.worn
    index.remove(keys(range(100)))
    assert not index.worn
    index.remove(keys(range(100, 400)))
    assert index.worn
    index.save(tmp_path / "graph")
    assert UsearchIndex.load(tmp_path / "graph", DIMENSIONS).worn, "it is not forgotten"
    current = {key: vectors[key] for key in range(400, 600)}
    fresh = index.renewed()
    assert not fresh.worn
    assert len(fresh) == len(index) == 200
    for query in unit_vectors(20, seed=8):
        check(fresh.search(query, 10), current, query, 10, TOLERANCE[UsearchIndex])
    fresh.remove(keys(range(400, 600)))
    assert len(fresh.renewed()) == 0
