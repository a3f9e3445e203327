"""One suite for every index of vectors."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.index import EXACT_UPTO, VectorIndex, make_index
from retrieval.index_exact import ExactIndex
from retrieval.index_usearch import UsearchIndex

Make = Callable[[], VectorIndex]

DIMENSIONS = 24

every_index = pytest.mark.parametrize("make", [ExactIndex, UsearchIndex])


def unit_vectors(count: int, seed: int = 1) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSIONS)).astype(np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def filled(make: Make, ids: list[int], vectors: NDArray[np.float32]) -> VectorIndex:
    index = make()
    index.add(ids, vectors)
    return index


def nearest(ids: list[int], vectors: NDArray[np.float32], query: NDArray[np.float32], k: int) -> list[int]:
    return [ids[place] for place in np.argsort(-(vectors @ query), kind="stable")[:k]]


@every_index
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 10])
def test_neighbours_are_those_that_numpy_finds(make: Make, seed: int, k: int) -> None:
    vectors, ids = unit_vectors(300, seed), list(range(1000, 1600, 2))
    index = filled(make, ids, vectors)
    for query in unit_vectors(20, seed + 100):
        found = index.search(query, k)
        assert [id_ for id_, _ in found] == nearest(ids, vectors, query, k)
        cosines = [float(vectors[ids.index(id_)] @ query) for id_, _ in found]
        assert [score for _, score in found] == pytest.approx(cosines, abs=1e-5)


@every_index
def test_answers_are_plain_numbers(make: Make) -> None:
    ((id_, score),) = filled(make, [7], unit_vectors(1)).search(unit_vectors(1)[0], 1)
    assert (type(id_), type(score), id_) == (int, float, 7)
    assert score == pytest.approx(1.0, abs=1e-5)


@every_index
def test_a_removed_id_is_not_found_and_the_others_are(make: Make) -> None:
    vectors, ids = unit_vectors(50), list(range(50))
    index = filled(make, ids, vectors)
    index.remove([3, 4, 3, 99])
    kept = [id_ for id_ in ids if id_ not in (3, 4)]
    assert len(index) == 48
    assert [id_ for id_, _ in index.search(vectors[3], 50)] == nearest(kept, vectors[kept], vectors[3], 50)
    assert index.similarity(vectors[3], [3, 4]) == {}


@every_index
def test_an_id_that_was_removed_may_come_back_with_another_vector(make: Make) -> None:
    vectors = unit_vectors(20)
    index = filled(make, list(range(10)), vectors[:10])
    index.remove([5])
    index.add([5], vectors[15:16])
    assert len(index) == 10
    assert index.search(vectors[15], 1)[0][0] == 5
    assert index.similarity(vectors[15], [5])[5] == pytest.approx(1.0, abs=1e-5)


@every_index
def test_adding_an_id_again_replaces_its_vector(make: Make) -> None:
    vectors = unit_vectors(20)
    index = filled(make, list(range(10)), vectors[:10])
    index.add([5, 6], vectors[15:17])
    assert len(index) == 10
    assert [index.search(vectors[place], 1)[0][0] for place in (15, 16)] == [5, 6]
    assert 5 not in [id_ for id_, score in index.search(vectors[5], 10) if score > 0.999]


@every_index
def test_many_changes_leave_the_index_able_to_find(make: Make) -> None:
    """Documents that are edited five times. Approximate neighbours may miss one in fifty, not more."""
    size = 200
    vectors, ids, index = unit_vectors(6 * size), list(range(size)), make()
    index.add(ids, vectors[:size])
    for number in range(5 * size):
        index.remove([number % size])
        index.add([number % size], vectors[size + number : size + number + 1])
    current = vectors[5 * size :]
    assert len(index) == size
    assert sum(index.search(current[id_], 1)[0][0] == id_ for id_ in ids) >= 0.98 * size
    shared = [
        len({id_ for id_, _ in index.search(query, 10)} & set(nearest(ids, current, query, 10)))
        for query in unit_vectors(50, seed=9)
    ]
    assert sum(shared) >= 0.98 * 10 * len(shared)


@every_index
@pytest.mark.parametrize(
    "query", [np.zeros(DIMENSIONS), np.full(DIMENSIONS, np.nan), np.array([np.inf] + [0.0] * (DIMENSIONS - 1))]
)
def test_a_query_without_direction_is_near_to_nothing(make: Make, query: NDArray[np.float64]) -> None:
    assert filled(make, [1, 2], unit_vectors(2)).search(query.astype(np.float32), 2) == []


@every_index
@pytest.mark.parametrize(("k", "size"), [(1, 1), (3, 3), (4, 3), (1000, 3)])
def test_k_may_be_larger_than_what_is_there(make: Make, k: int, size: int) -> None:
    assert len(filled(make, [1, 2, 3], unit_vectors(3)).search(unit_vectors(1)[0], k)) == size


@every_index
def test_an_empty_index_finds_nothing(make: Make) -> None:
    index, query = make(), unit_vectors(1)[0]
    index.add([], np.zeros((0, DIMENSIONS), np.float32))
    index.remove([1])
    assert (len(index), index.search(query, 5), index.similarity(query, [1])) == (0, [], {})
    index.add([1], unit_vectors(1))
    index.remove([1])
    assert (len(index), index.search(query, 5), index.similarity(query, [1])) == (0, [], {})


@every_index
def test_similarity_is_the_cosine_with_the_ids_that_are_there(make: Make) -> None:
    vectors = unit_vectors(10)
    index = filled(make, list(range(9)), vectors[:9])
    got = index.similarity(vectors[9], [8, 0, 77])
    assert got == pytest.approx({8: float(vectors[8] @ vectors[9]), 0: float(vectors[0] @ vectors[9])}, abs=1e-5)


@pytest.mark.parametrize(
    ("expected", "kind"), [(0, ExactIndex), (EXACT_UPTO, ExactIndex), (EXACT_UPTO + 1, UsearchIndex)]
)
def test_small_collections_compare_with_everything(expected: int, kind: type) -> None:
    assert isinstance(make_index(expected), kind)
