"""An exchange as the journal writes it down."""

from gateway.attribution import plain
from gateway.exchange import Exchange
from gateway.journal import Begin, Content, End
from policies.ledger_sql import MICRO
from policies.quotas import Measure

LEFT = 499
"""nginx's status for a client that left before its answer."""

MAX_MODEL_CHARS = 256
MAX_ERROR_CHARS = 64
"""Of a code, which may be an upstream's."""


def begin_of(exchange: Exchange, now_s: float) -> Begin:
    assert exchange.caller is not None
    return Begin(
        id=exchange.id,
        key=exchange.caller.key_id,
        role=exchange.caller.role.name,
        model=model_of(exchange),
        entry=exchange.entry,
        backend=exchange.backend or "",
        operation=exchange.operation,
        prompt_tokens=min(exchange.prompt_tokens, exchange.held.get(Measure.TOKENS, 0)),
        held_tokens=exchange.held.get(Measure.TOKENS, 0),
        held_cost=exchange.held.get(Measure.COST, 0),
        user=exchange.user,
        tags=exchange.tags,
        at=int(now_s * MICRO),
    )


def end_of(exchange: Exchange, now_s: float, *, total_s: float, cost: int, work_ms: int) -> End:
    assert exchange.caller is not None
    total_ms, first_byte_s, usage = int(total_s * 1000), exchange.first_byte_s, exchange.usage
    if first_byte_s is None and exchange.outcome == "complete":
        first_byte_s = total_s  # an answer that is not streamed goes out when it is whole
    return End(
        id=exchange.id,
        at=int(now_s * MICRO),
        key=exchange.caller.key_id,
        role=exchange.caller.role.name,
        model=model_of(exchange),
        entry=exchange.entry,
        backend=exchange.backend or "",
        operation=exchange.operation,
        stream=int(exchange.stream),
        attempts=exchange.attempts,
        admitted=int(exchange.admitted),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        cost=cost,
        compute_ms=work_ms,
        queue_ms=round(exchange.meter.queued_s * 1000),
        first_byte_ms=None if first_byte_s is None else int(first_byte_s * 1000),
        total_ms=total_ms,
        status=exchange.status or (LEFT if exchange.outcome == "client_left" else 200),
        outcome=exchange.outcome,
        error=plain(exchange.error, MAX_ERROR_CHARS),
        cache=exchange.cache or "",
        user=exchange.user,
        tags=exchange.tags,
    )


def content_of(exchange: Exchange) -> Content | None:
    if exchange.contents is None:
        return None
    return Content(exchange.id, exchange.contents.request, exchange.contents.answer)


def model_of(exchange: Exchange) -> str:
    """A name that is in the configuration as it is, another as a database takes it."""
    return exchange.model if exchange.model == exchange.entry else plain(exchange.model, MAX_MODEL_CHARS)
