import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.fusion import fuse

RANKINGS = st.lists(st.lists(st.integers(0, 20), unique=True, max_size=12), max_size=4)


@pytest.mark.parametrize(
    ("rankings", "order"),
    [
        ([], []),
        ([[], []], []),
        ([[3, 1, 2]], [3, 1, 2]),
        ([[1, 2], [3, 4]], [1, 3, 2, 4]),
        ([[1, 2, 3], [3]], [3, 1, 2]),
        ([[1, 2], [2, 1]], [1, 2]),
    ],
)
def test_best_first_and_ties_in_order_of_appearance(rankings: list[list[int]], order: list[int]) -> None:
    assert [id_ for id_, _ in fuse(rankings)] == order


def test_a_score_is_the_sum_of_reciprocal_ranks() -> None:
    assert dict(fuse([[7, 8], [8]], damping=10)) == {7: 1 / 11, 8: 1 / 12 + 1 / 11}


@given(rankings=RANKINGS, damping=st.integers(0, 100))
def test_every_id_once_with_scores_in_bounds_and_in_order(rankings: list[list[int]], damping: int) -> None:
    fused = fuse(rankings, damping=damping)
    scores = [score for _, score in fused]
    assert sorted(id_ for id_, _ in fused) == sorted({id_ for ranking in rankings for id_ in ranking})
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= len(rankings) / (damping + 1) + 1e-12 for score in scores)
