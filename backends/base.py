"""What every engine looks like from above. A worker on this host, one on another and a provider are the same thing here."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from backends.forward_watch import ForwardWatch
from backends.transport import Upload
from backends.wire import Body, Usage

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"


class Passage(NamedTuple):
    """A piece of a document as it is shown to an engine."""

    number: int
    """From 1, in the order of rank; what `[1]` in an answer points to."""
    text: str
    source: str
    """Where it comes from, for people: a file name, with the heading where known."""
    score: float


class Meter:
    """How long a request waited for its turn, and how long engines of this machine worked on it. Seconds, on one clock."""

    __slots__ = ("_open", "_since_s", "_worked_s", "queued_s")

    def __init__(self) -> None:
        self.queued_s = 0.0
        self._worked_s = 0.0
        self._open = 0
        self._since_s = 0.0  # the sum over those that are open

    def begins(self, now_s: float) -> None:
        self._open += 1
        self._since_s += now_s

    def ends(self, began_s: float, now_s: float) -> None:
        self._open -= 1
        self._since_s -= began_s
        self._worked_s += now_s - began_s

    def worked_s(self, now_s: float) -> float:
        """With what has not ended yet."""
        return self._worked_s + self._open * now_s - self._since_s


@dataclass(frozen=True, slots=True)
class Call:
    """One request to one backend. `body.model` is already the backend's own name for the model."""

    path: str
    body: Body
    request_id: str
    model: str
    """The name the client asked for; answers carry it."""
    passages: tuple[Passage, ...] = ()
    marks: bool = True
    """An answer may cite passages by number."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """The few that may cross: openai-beta, traceparent."""
    caller: str = ""
    """Whose turn it is where requests wait: the key's id."""
    role: str = ""
    """Of the key."""
    public: tuple[int, int] = (0, 0)
    """So many leading messages, and characters of the one behind them, are no client's: a template's, or a collection's."""
    meter: Meter | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """A request beside chat, completions and embeddings, handed on as it is."""

    path: str
    body: bytes | Upload
    content_type: str
    request_id: str
    model: str
    """What the backend calls it."""
    headers: Mapping[str, str]
    caller: str
    meter: Meter | None = None


class Forwarded(NamedTuple):
    """The answer to one: JSON whole and valid, everything else as it comes."""

    headers: Mapping[str, str]
    """Content-type among them."""
    whole: bytes | None
    watch: ForwardWatch | None
    """What is known of a stream of events so far."""
    pieces: AsyncGenerator[bytes, None]
    """Of what is not whole. Close it."""


class Answer(NamedTuple):
    """A whole answer: complete, valid JSON."""

    body: bytes
    usage: Usage | None
    headers: Mapping[str, str]


class Event(NamedTuple):
    """A piece of a stream, ready to be sent on: one event, or several that arrived together."""

    raw: bytes
    usage: Usage | None = None
    """The running or final count, where this event carries one."""
    text_bytes: int = 0
    """Bytes of generated content in it, an estimate for engines that report no usage."""
    last: bool = False
    """Its end is the stream's end: whoever keeps books writes them before this one goes out."""


class PromptSize(msgspec.Struct, frozen=True):
    """Tokens as the serving model counts them, template included."""

    prompt_tokens: int
    context_tokens: int


@runtime_checkable
class Backend(Protocol):
    """Implementations: `relay.Relay`, `llamacpp.backend.LocalBackend`, `quote.Quote`, `scripted.Scripted`."""

    name: str
    local: bool
    """True: runs on this machine, tokens can be counted exactly and nothing leaves the house."""
    quotes: bool
    """True: answers from `call.passages` itself; to all others they are shown inside the last user message."""

    async def complete(self, call: Call) -> Answer:
        """Ask and wait for the whole answer.

        Raises:
            BackendError: one of its leaves; nothing has been sent to the client, so another backend may be asked.
        """
        ...

    def stream(self, call: Call) -> AsyncGenerator[Event, None]:
        """Ask for a stream. Failures before the first event raise there; later ones raise `UpstreamBroken` or
        `BackendTimeout` in the middle. Ends normally only after a complete answer. Hold it in `aclosing`.
        """
        ...

    async def count(self, call: Call) -> PromptSize | None:
        """Exact size of the prompt, or None where this backend cannot tell."""
        ...

    async def count_texts(self, texts: Sequence[str]) -> list[int] | None:
        """Tokens of each text, special tokens aside, or None where this backend cannot tell."""
        ...

    async def identity(self) -> str:
        """Changes whenever the same text could give another vector: a file's digest, or address and model."""
        ...

    def status(self) -> str:
        """One word for `/health/ready`: ready, asleep, downloading, starting, stopping, failed."""
        ...

    async def aclose(self) -> None: ...
