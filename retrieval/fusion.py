"""Several rankings -> one. Pure."""

from collections.abc import Sequence

from retrieval.tables import ChunkId


def fuse(
    rankings: Sequence[Sequence[ChunkId]], *, damping: int = 60, weights: Sequence[float] | None = None
) -> list[tuple[ChunkId, float]]:
    """Merge rankings by reciprocal rank, best first; ties keep the order of first appearance.

    Args:
        rankings: any number of lists, each best first, no id twice in one list. May be empty.
        damping: in ranks. 60 is the value from the source, not one we tuned.
        weights: of each ranking; None: all count the same.

    Returns:
        (id, score) pairs. Scores lie in (0, len(rankings) / (damping + 1)]; compare them within one call only.

    Source: Cormack, Clarke, Büttcher, "Reciprocal Rank Fusion outperforms Condorcet …", SIGIR 2009.
    """
    scores: dict[ChunkId, float] = {}
    for weight, ranking in zip(weights or [1.0] * len(rankings), rankings, strict=True):
        for rank, chunk_id in enumerate(ranking, start=1):
            scores[chunk_id] = scores.get(chunk_id, 0.0) + weight / (damping + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])
