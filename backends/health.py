"""What is known of a backend's health from the requests it answers, and the circuit breaker that acts on it.

States of the breaker: closed -> open (`failures` in a row) -> half-open (`open_s` later) -> closed or open again. While it is
open every request is refused at once, so that clients do not wait for a backend that does not answer. Half-open lets one
request through; the others are refused until it has ended. Only the methods here change the state, on the event loop.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from backends.base import Answer, Backend, Call, Event, Forward, Forwarded, Meter, PromptSize
from backends.errors import BackendError, BackendTimeout, BackendUnavailable, UpstreamBroken
from backends.settings import BreakerSettings
from backends.slots import Slots

FORGETTING_S = 30.0
"""After so long without an observation a latency counts half: a backend that was slow once is asked again some time."""

LATENCY_MEMORY = 0.2
"""Weight of the newest observation in the decaying mean."""

ITS_OWN_FAULT = (BackendUnavailable, BackendTimeout, UpstreamBroken)
"""Refusals (400, 429 …) are answers: a backend that gives them is well."""


class Facts(NamedTuple):
    """What routing may know of a backend."""

    in_flight: int = 0
    latency_s: float | None = None
    """Decaying mean until the first event or the whole answer; None: nothing was asked yet."""


class Breaker:
    """
    Args:
        clock: seconds that never go back.
    """

    def __init__(self, settings: BreakerSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._failures = 0
        self._opened_s: float | None = None
        self._probing = False

    def refuse_for_s(self) -> float | None:
        """Seconds for which requests are refused; None: this one may go. In half-open it becomes the probe."""
        if self._opened_s is None:
            return None
        left_s = self._opened_s + self._settings.open_s - self._clock()
        if left_s > 0 or self._probing:
            return max(left_s, 1.0)
        self._probing = True
        return None

    @property
    def refuses(self) -> bool:
        """Whether `refuse_for_s` would refuse now; asking this makes nobody the probe."""
        if self._opened_s is None:
            return False
        return self._probing or self._opened_s + self._settings.open_s > self._clock()

    @property
    def open(self) -> bool:
        return self._opened_s is not None

    def succeeded(self) -> None:
        self._failures, self._opened_s, self._probing = 0, None, False

    def failed(self) -> None:
        self._failures += 1
        if self._probing or self._failures >= self._settings.failures:
            self._opened_s, self._probing = self._clock(), False

    def abandoned(self) -> None:
        """The request ended without a verdict: its client left."""
        self._probing = False


@runtime_checkable
class Forwards(Protocol):
    async def forward(self, call: Forward) -> Forwarded: ...


class Watched:
    """A backend with its health. Implements `Backend` around another one.

    Args:
        breaker: None: requests are never refused here.
        slots: None: any number at a time.
    """

    def __init__(
        self, inner: Backend, breaker: Breaker | None, clock: Callable[[], float], slots: Slots | None = None
    ) -> None:
        self.inner = inner
        self.name = inner.name
        self.local = inner.local
        self.quotes = inner.quotes
        self.breaker = breaker
        self.paths: Sequence[str] = ()
        """Beside chat, completions and embeddings; `*` at the end stands for the rest."""
        self.origin: object = None
        """What it was built from; equal means that it need not be built again."""
        self.probing: Callable[[], Coroutine[Any, Any, None]] | None = None
        """Runs for as long as the backend is in use, where its settings ask for it."""
        self._slots = slots
        self._clock = clock
        self._in_flight = 0
        self._latency_s: float | None = None
        self._observed_s = 0.0

    @property
    def facts(self) -> Facts:
        if self._latency_s is None:
            return Facts(self._in_flight, None)
        age_s = self._clock() - self._observed_s
        return Facts(self._in_flight, self._latency_s * 0.5 ** (age_s / FORGETTING_S))

    @property
    def waiting(self) -> int:
        """Requests in its queue."""
        return self._slots.waiting if self._slots is not None else 0

    async def complete(self, call: Call) -> Answer:
        verdict = await self._admitted(call)
        try:
            answer = await self.inner.complete(call)
            verdict.succeeded()
            return answer
        except BackendError as failure:
            verdict.failed(failure)
            raise
        finally:
            verdict.close()

    async def stream(self, call: Call) -> AsyncGenerator[Event, None]:
        verdict = await self._admitted(call)
        events = self.inner.stream(call)
        try:
            async for event in events:
                verdict.began()
                yield event
            verdict.succeeded()
        except BackendError as failure:
            verdict.failed(failure)
            raise
        finally:
            try:
                await events.aclose()
            finally:
                verdict.close()

    async def _admitted(self, call: Call | Forward) -> "_Verdict":
        """A slot, and no open breaker in the way.

        Raises:
            BackendBusy, BackendUnavailable
        """
        if self._slots is not None:
            if self.breaker is not None and self.breaker.refuses:
                raise self._left_alone(self.breaker.refuse_for_s() or 1.0)
            if not self._slots.take_free():
                await self._queue(self._slots, call)
        wait_s = self.breaker.refuse_for_s() if self.breaker is not None else None
        if wait_s is not None:
            self._give_slot()
            raise self._left_alone(wait_s)
        self._in_flight += 1
        began_s = self._clock()
        if self.local and call.meter is not None:
            call.meter.begins(began_s)
        return _Verdict(self, began_s, call.meter)

    async def _queue(self, slots: Slots, call: Call | Forward) -> None:
        began_s = self._clock()
        try:
            await slots.take(call.caller, usual_s=self._latency_s)
        finally:
            if call.meter is not None:
                call.meter.queued_s += self._clock() - began_s

    def _left_alone(self, wait_s: float) -> BackendUnavailable:
        words = "it failed repeatedly and is left alone for a while"
        return BackendUnavailable(self.name, words, retry_after_s=wait_s)

    def _give_slot(self) -> None:
        if self._slots is not None:
            self._slots.give()

    def forwards(self, path: str) -> bool:
        """Whether requests to this path may be handed on to it."""
        return any(path.startswith(one[:-1]) if one.endswith("*") else path == one for one in self.paths)

    async def forward(self, call: Forward) -> Forwarded:
        """As `Relay.forward`; the slot is held and the verdict open until `pieces` are closed."""
        assert isinstance(self.inner, Forwards)
        verdict = await self._admitted(call)
        try:
            answer = await self.inner.forward(call)
        except BaseException as failure:
            if isinstance(failure, BackendError):
                verdict.failed(failure)
            verdict.close()
            raise
        verdict.began()
        return answer._replace(pieces=_judged(answer.pieces, verdict))

    async def count(self, call: Call) -> PromptSize | None:
        return await self.inner.count(call)

    async def count_texts(self, texts: Sequence[str]) -> list[int] | None:
        return await self.inner.count_texts(texts)

    async def identity(self) -> str:
        return await self.inner.identity()

    def status(self) -> str:
        return "failed" if self.breaker is not None and self.breaker.open else self.inner.status()

    async def aclose(self) -> None:
        await self.inner.aclose()

    def _observe(self, began_s: float) -> None:
        seconds = self._clock() - began_s
        before = self._latency_s if self._latency_s is not None else seconds
        self._latency_s = before + LATENCY_MEMORY * (seconds - before)
        self._observed_s = self._clock()

    def _end(self, began_s: float, meter: Meter | None) -> None:
        if self.local and meter is not None:
            meter.ends(began_s, self._clock())
        self._in_flight -= 1
        self._give_slot()


class _Verdict:
    """What one request says of its backend; the last word counts: a stream may begin well and break."""

    def __init__(self, watched: Watched, began_s: float, meter: Meter | None) -> None:
        self._watched = watched
        self._meter = meter
        self._breaker = watched.breaker
        self._began_s = began_s
        self._given = False

    def began(self) -> None:
        """The first event is there: fast or slow, and a breaker that was waiting for a sign of life closes."""
        if not self._given:
            self._given = True
            self._watched._observe(self._began_s)
            if self._breaker is not None and self._breaker.open:
                self._breaker.succeeded()

    def succeeded(self) -> None:
        self.began()
        if self._breaker is not None:
            self._breaker.succeeded()

    def failed(self, failure: BackendError) -> None:
        self._given = True
        if self._breaker is None:
            return
        if isinstance(failure, ITS_OWN_FAULT):
            self._breaker.failed()
        else:
            self._breaker.succeeded()

    def close(self) -> None:
        self._watched._end(self._began_s, self._meter)
        if not self._given and self._breaker is not None:
            self._breaker.abandoned()


async def _judged(pieces: AsyncGenerator[bytes, None], verdict: _Verdict) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in pieces:
            yield piece
        verdict.succeeded()
    except BackendError as failure:
        verdict.failed(failure)
        raise
    finally:
        try:
            await pieces.aclose()
        finally:
            verdict.close()
