"""What is asked of the engine, what it says, and what is known of a sequence in between. Data only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from backends.llamacpp.constrained import Constraint
from backends.llamacpp.engine_thread import Job
from backends.llamacpp.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Ask:
    """One sequence."""

    prompt: Sequence[int]
    """Token ids of the vocabulary, at least one; with `max_tokens` no more than the pool holds."""
    sampling: Sampling
    max_tokens: int
    stops: Sequence[str] = ()
    scope: str = ""
    """Prompts of the same scope may begin where others left cells."""
    public_tokens: int = 0
    """Of the prompt's beginning, that any scope may share: prompt templates, texts of collections."""
    grammar: str | None = None
    """What the answer has to be, in llguidance's words (`constrained.py`)."""
    top_logprobs: int | None = None
    """None: no logprobs. 0: of the chosen tokens. More: and of so many likely ones at each place."""
    shown: frozenset[int] = frozenset()
    """Control tokens whose text belongs to the answer, as the marks of tool calls."""


class Score(NamedTuple):
    """How likely a token was, as a natural logarithm, and the likeliest in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Began(NamedTuple):
    shared: int


class Ended(NamedTuple):
    finish: str


class Likely(NamedTuple):
    """A `Score` with the bytes of its tokens."""

    piece: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    offset: int = 0
    """Characters of the answer before it."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Of one sequence or of several together, milliseconds; as llama-server counts them."""

    cache_n: int = 0
    """Tokens of the prompt that were in the cells before."""
    prompt_n: int = 0
    """Tokens of the prompt that were decoded."""
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0

    def __add__(self, other: "Timings") -> "Timings":
        return Timings(
            self.cache_n + other.cache_n,
            self.prompt_n + other.prompt_n,
            self.prompt_ms + other.prompt_ms,
            self.predicted_n + other.predicted_n,
            self.predicted_ms + other.predicted_ms,
        )


NO_TIME = Timings()


class Step(NamedTuple):
    """What one or more tokens added to an answer."""

    text: str
    tokens: int
    finish: str | None = None
    """`stop` or `length` on the last step of a sequence."""
    shared: int = 0
    """Tokens of the prompt that were in the cells before; said once."""
    likely: tuple[Likely, ...] = ()
    """Of the tokens whose text is shown with this step or was before."""
    timings: Timings = NO_TIME
    """Of the sequence up to here."""


class Generation(Job):
    """
    Args:
        constraint: of `ask.grammar`.
    """

    def __init__(self, ask: Ask, constraint: Constraint | None = None) -> None:
        super().__init__()
        self.ask = ask
        self.constraint = constraint

    @property
    def sampling(self) -> Sampling:
        """A grammar says itself when the answer may end, and sometimes that it must."""
        return replace(self.ask.sampling, ignore_eos=False) if self.constraint is not None else self.ask.sampling


@dataclass(slots=True, eq=False)
class Running:
    """A sequence that is worked on, or waits to be again."""

    job: Generation
    tokens: list[int]
    """Of the prompt, and what was generated."""
    chain: Any
    sequence: int = -1
    cached: int = 0
    """Of `tokens`, those that are in cells."""
    produced: int = 0
    begun: bool = False

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.cached

    @property
    def cells(self) -> int:
        """That it may come to need."""
        return len(self.tokens) + self.job.ask.max_tokens - self.produced


@dataclass
class Counters:
    """Since the start; read by others than the thread that counts."""

    steps: int = 0
    prompt_tokens: int = 0
    """Decoded."""
    shared_tokens: int = 0
    """That were in the cells already."""
    generated_tokens: int = 0
    finished: int = 0
    preempted: int = 0
    cancelled: int = 0
    busy_s: float = 0.0
    """That llama.cpp was at work."""
