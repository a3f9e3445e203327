"""What the two ways of looking bring home -> one ranking, over several questions and collections. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from retrieval.fusion import fuse
from retrieval.tables import ChunkId

DAMPING = 20
"""Flatter than the source's 60: with two legs, the first ranks should count for more. Measured, as `BALANCE`, with
`tests/retrieval/data/questions.jsonl`: see docs/decisions/0011."""

Weights = tuple[float, float]
BALANCE: Weights = (1.5, 1.0)
"""Of looking by meaning and by words."""

ALIKE = 0.9
"""Of two passages' words that are the same: from here on the second one says nothing new."""

JOINT_CHARS = 8192
"""How far two chunks in a row may overlap."""

Leg = Sequence[tuple[ChunkId, float]]
"""Best first, with scores of any scale."""


class Candidate(NamedTuple):
    id: ChunkId
    place: float
    """By its rank alone, in (0, 1]."""
    cosine: float | None
    """With the question, where that is known."""

    @property
    def score(self) -> float:
        """In [0, 1]."""
        return min(1.0, max(0.0, self.cosine if self.cosine is not None else self.place))


def ranked(dense: Leg, lexical: Leg, weights: Weights, cosines: Mapping[ChunkId, float]) -> list[Candidate]:
    """Both legs of one question, fused, best first.

    Args:
        cosines: of those that are known.
    """
    legs = [[id_ for id_, _ in leg] for leg in (dense, lexical)]
    most = sum(weight for weight, leg in zip(weights, legs, strict=True) if leg) / (DAMPING + 1) or 1.0
    order = fuse(legs, damping=DAMPING, weights=weights)
    return [Candidate(id_, score / most, cosines.get(id_)) for id_, score in order]


def merged(rankings: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """Of several questions over one collection; each candidate as it answers best."""
    if len(rankings) == 1:
        return list(rankings[0])
    known: dict[ChunkId, Candidate] = {}
    for candidate in (one for ranking in rankings for one in ranking):
        before = known.get(candidate.id)
        if before is None or (candidate.cosine or 0.0, candidate.place) > (before.cosine or 0.0, before.place):
            known[candidate.id] = candidate
    order = fuse([[one.id for one in ranking] for ranking in rankings], damping=DAMPING)
    return [known[id_] for id_, _ in order]


def across(by_collection: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """Each collection's ranking is fused in itself; only scores compare across them."""
    if len(by_collection) == 1:
        return list(by_collection[0])
    everything = [one for candidates in by_collection for one in candidates]
    return sorted(everything, key=lambda one: -one.score)


def is_new(text: str, known: list[frozenset[str]]) -> bool:
    """Whether none of the known texts says the same; it is known then."""
    words = frozenset(text.lower().split())
    if any(_alike(words, other) for other in known):
        return False
    known.append(words)
    return True


def _alike(some: frozenset[str], others: frozenset[str]) -> bool:
    smaller, larger = sorted((len(some), len(others)))
    if smaller < ALIKE * larger:
        return False
    return len(some & others) >= ALIKE * len(some | others)


def joined(texts: Sequence[str]) -> str:
    """Texts in a row, of which one may begin with what the one before it ends with."""
    whole = texts[0] if texts else ""
    for text in texts[1:]:
        overlap = next(
            (n for n in range(min(len(whole), len(text), JOINT_CHARS), 15, -1) if whole.endswith(text[:n])), 0
        )
        whole += text[overlap:] if overlap else f"\n\n{text}"
    return whole
