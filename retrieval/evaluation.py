"""How good a search is, by questions whose passages are known: recall, MRR, nDCG, latency. Pure.

A question has one or several answers, each a quotation from a source; any of them will do. A passage that holds one of them
(white space aside) answers the question.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

RECALL_AT = (1, 5, 10)
NDCG_AT = 10


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: str
    """The end of a file's name or path."""
    quote: str


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    question: str
    answers: list[Answer]


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage as a search gives it."""

    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Scores:
    questions: int
    recall: Mapping[int, float]
    """By k: the share of questions that a passage among the first k answers."""
    mrr: float
    ndcg: float
    p50_ms: float
    p95_ms: float

    def as_json(self) -> dict[str, Any]:
        recall = {f"recall@{k}": round(value, 4) for k, value in self.recall.items()}
        means = {"mrr": round(self.mrr, 4), f"ndcg@{NDCG_AT}": round(self.ndcg, 4)}
        return {
            "questions": self.questions,
            **recall,
            **means,
            "p50_ms": round(self.p50_ms, 2),
            "p95_ms": round(self.p95_ms, 2),
        }


def read_questions(text: str) -> list[Question]:
    """Of JSON lines.

    Raises:
        ValueError: with the line that is wrong.
    """
    questions = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                one = msgspec.json.decode(line, type=Question)
            except msgspec.MsgspecError as exc:
                raise ValueError(f"line {number}: {exc}") from None
            if not one.answers:
                raise ValueError(f"line {number}: a question without an answer measures nothing")
            questions.append(one)
    if not questions:
        raise ValueError("there are no questions in it")
    return questions


def rank_of(question: Question, hits: Sequence[Hit]) -> int | None:
    """Of the first passage that answers it, from 1."""
    return next((rank for rank, hit in enumerate(hits, start=1) if answers(question, hit)), None)


def answers(question: Question, hit: Hit) -> bool:
    text = plain(hit.text)
    return any(hit.source.endswith(one.source) and plain(one.quote) in text for one in question.answers)


def score(ranks: Sequence[int | None], latencies_s: Sequence[float]) -> Scores:
    """
    Args:
        ranks: of each question, as `rank_of` tells it.
    """
    count = max(1, len(ranks))
    found = [rank for rank in ranks if rank is not None]
    return Scores(
        questions=len(ranks),
        recall={k: sum(rank <= k for rank in found) / count for k in RECALL_AT},
        mrr=sum(1 / rank for rank in found) / count,
        ndcg=sum(1 / math.log2(1 + rank) for rank in found if rank <= NDCG_AT) / count,
        p50_ms=quantile(latencies_s, 0.5) * 1000,
        p95_ms=quantile(latencies_s, 0.95) * 1000,
    )


def quantile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def coverage(question: Question, answer: str) -> float:
    """Of the words of the quotation that is nearest to an answer, the share that the answer has, too."""
    said = set(words(answer))
    shares = []
    for one in question.answers:
        wanted = set(words(one.quote))
        shares.append(len(wanted & said) / len(wanted) if wanted else 0.0)
    return max(shares, default=0.0)


def words(text: str) -> list[str]:
    return [word.strip(".,;:!?()[]`*\"'|").lower() for word in text.split() if word.strip(".,;:!?()[]`*\"'|")]


def plain(text: str) -> str:
    return " ".join(text.split())
