"""One suite for every store of quotas: what an admission promises, whoever keeps the numbers."""

import math
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from policies.errors import QuotaExceeded, QuotaStoreDown
from policies.quotas import History, Limit, Measure, NoHistory, QuotaStore, Scope, Standings
from policies.quotas_memory import MemoryQuotas
from policies.quotas_redis import RedisQuotas
from policies.spans import SLICES, Calendar, Rolling

pytestmark = pytest.mark.anyio

Make = Callable[..., QuotaStore]

REQUESTS, TOKENS, CONCURRENT = Measure.REQUESTS, Measure.TOKENS, Measure.CONCURRENT
COST, COMPUTE = Measure.COST, Measure.COMPUTE

INSTANT_S = 1e-6


def limit_of(measure: Measure, amount: int, per_s: float | None, scope: str = "key") -> Limit:
    return Limit(Scope(scope), measure, amount, Rolling(per_s) if per_s else None)


def per_s_of(limit: Limit) -> float:
    assert isinstance(limit.span, Rolling)
    return limit.span.seconds


LIMITS = (
    limit_of(REQUESTS, 6, 10.0),
    limit_of(TOKENS, 100, 10.0),
    limit_of(TOKENS, 150, 60.0),
    limit_of(CONCURRENT, 3, None),
)


STORES = ("memory", "redis")


@pytest.fixture(params=STORES)
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    if request.param == "memory":
        yield MemoryQuotas
        return
    client = Redis(unix_socket_path=str(request.getfixturevalue("redis_server").socket))
    made: list[RedisQuotas] = []

    def make(clock: "Clock", history: History | None = None) -> RedisQuotas:
        prefix = f"{{{secrets.token_hex(8)}}}:"
        shared = {"timeout_s": 10.0, "now": clock, "elapsed": time.monotonic, "clock": clock, "prefix": prefix}
        made.append(RedisQuotas(client, history or NoHistory(), **shared))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for store in made:
        await store.aclose()
    await client.aclose()


async def settle(store: QuotaStore, request_id: str, used: dict[Measure, int]) -> Standings:
    """Settled, and in force."""
    standings = store.settle(request_id, used)
    await store.drain()
    return standings


async def used(store: QuotaStore, limits: list[Limit]) -> list[int]:
    """What lies in the window of each of these limits, of measures that differ."""
    name = secrets.token_hex(4)
    await store.reserve(name, limits, {})
    standing = store.standing(name)
    return [one.limit - one.remaining for one in (standing[limit.measure] for limit in limits)]


async def keep_alive(store: QuotaStore) -> None:
    """What a living process does by itself, every third of a lease."""
    if isinstance(store, RedisQuotas):
        await store.renew()


class Clock:
    def __init__(self) -> None:
        self.now_s = 12_345.678

    def __call__(self) -> float:
        return self.now_s


def tokens(amount: int, per_s: float = 60.0, scope: str = "key") -> Limit:
    return limit_of(TOKENS, amount, per_s, scope)


async def refusal(store: QuotaStore, limits: list[Limit], amounts: dict[Measure, int]) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        await store.reserve("refused", limits, amounts)
    return caught.value


@dataclass
class Books:
    """What has been admitted and when, written down by somebody who knows nothing of slices."""

    entries: dict[str, list[list[float]]] = field(default_factory=dict)
    """Request -> [when, tokens] of each admission."""
    open: set[str] = field(default_factory=set)

    def held(self, request_id: str) -> float:
        return sum(amount for _, amount in self.entries[request_id])

    def settle(self, request_id: str, used: float) -> None:
        """What was not used is given back, the latest first."""
        back = self.held(request_id) - used
        for entry in reversed(self.entries[request_id]):
            given = min(entry[1], back)
            entry[1] -= given
            back -= given
        self.open.discard(request_id)

    def admitted(self, measure: Measure, since_s: float) -> float:
        if measure is REQUESTS:
            return sum(1 for entries in self.entries.values() if entries[0][0] > since_s)
        return sum(amount for entries in self.entries.values() for when, amount in entries if when > since_s)

    def check(self, now_s: float) -> None:
        for limit in LIMITS:
            if limit.span is None:
                assert len(self.open) <= limit.amount
            else:
                assert self.admitted(limit.measure, now_s - per_s_of(limit)) <= limit.amount, limit


RESERVE = st.tuples(st.just("reserve"), st.integers(0, 120))
RAISE = st.tuples(st.just("raise"), st.integers(0, 120))
SETTLE = st.tuples(st.just("settle"), st.integers(0, 100))
CLOCK = st.tuples(st.just("clock"), st.floats(0, 65) | st.sampled_from([1 / 6, 9.99, 10.0, 10.2, 59.9, 60.0, 61.0]))


async def play(store: QuotaStore, clock: Clock, steps: list[tuple[str, float]]) -> None:
    """Run the steps against the store and the books, checking all real windows after each admission."""
    books = Books()
    for number, (what, amount) in enumerate(steps):
        oldest = min(books.open, default=None, key=int)
        if what == "clock":
            clock.now_s += amount
            await keep_alive(store)
        elif what == "reserve":
            with suppress(QuotaExceeded):
                await store.reserve(str(number), LIMITS, {REQUESTS: 1, TOKENS: int(amount), CONCURRENT: 1})
                books.entries[str(number)] = [[clock.now_s, amount]]
                books.open.add(str(number))
                books.check(clock.now_s)
        elif oldest is not None and what == "raise":
            with suppress(QuotaExceeded):
                await store.raise_to(oldest, {TOKENS: int(amount)})
                books.entries[oldest].append([clock.now_s, max(0.0, amount - books.held(oldest))])
                books.check(clock.now_s)
        elif oldest is not None:
            used = math.floor(books.held(oldest) * amount / 100)
            await settle(store, oldest, {TOKENS: used})
            books.settle(oldest, used)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(RESERVE | SETTLE | CLOCK, max_size=40))
async def test_no_real_window_ever_holds_more_than_its_limit(make: Make, steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    await play(make(clock), clock, steps)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(steps=[("reserve", 0), ("clock", 9.99), ("raise", 100), ("clock", 0.5), ("reserve", 50)])
@given(steps=st.lists(RESERVE | RAISE | SETTLE | CLOCK, max_size=40))
async def test_no_real_window_ever_holds_more_than_its_limit_when_holds_are_raised(
    make: Make, steps: list[tuple[str, float]]
) -> None:
    clock = Clock()
    await play(make(clock), clock, steps)


@pytest.mark.parametrize(
    "full",
    [limit_of(REQUESTS, 0, 10.0, "role"), tokens(4), limit_of(TOKENS, 4, 3600.0, "role")],
    ids=lambda limit: f"{limit.measure}-{limit.span}",
)
@pytest.mark.parametrize("place", [0, 1, 3])
async def test_a_refusal_takes_nothing_from_any_limit(make: Make, full: Limit, place: int) -> None:
    store = make(Clock())
    others = [limit_of(REQUESTS, 1, 60.0), limit_of(TOKENS, 5, 10.0), limit_of(CONCURRENT, 1, None)]
    amounts = {REQUESTS: 1, TOKENS: 5, CONCURRENT: 1}
    error = await refusal(store, [*others[:place], full, *others[place:]], amounts)
    assert (error.measure, error.limit) == (full.measure, full.amount)
    await store.reserve("fits", others, amounts)


async def test_concurrent_requests_are_counted_until_they_settle(make: Make) -> None:
    clock = Clock()
    store = make(clock)
    limits = [limit_of(CONCURRENT, 2, None)]
    await store.reserve("a", limits, {CONCURRENT: 1})
    await store.reserve("b", limits, {CONCURRENT: 1})
    clock.now_s += 10_000
    await keep_alive(store)
    error = await refusal(store, limits, {CONCURRENT: 1})
    assert error.measure == CONCURRENT
    assert error.retry_after_s is not None
    await settle(store, "a", {TOKENS: 0})
    await store.reserve("c", limits, {CONCURRENT: 1})


async def test_settling_twice_is_harmless(make: Make) -> None:
    store = make(Clock())
    limits = [tokens(100), limit_of(CONCURRENT, 1, None)]
    await store.reserve("a", limits, {TOKENS: 50, CONCURRENT: 1})
    await settle(store, "a", {TOKENS: 40})
    await settle(store, "a", {TOKENS: 0})
    await settle(store, "never seen", {TOKENS: 70})
    await store.reserve("b", limits, {TOKENS: 10, CONCURRENT: 1})
    standing = store.standing("b")
    assert standing[TOKENS].remaining == 50
    await refusal(store, limits, {CONCURRENT: 1})


async def test_reserving_twice_for_one_request_takes_once(make: Make) -> None:
    store = make(Clock())
    limits = [limit_of(REQUESTS, 1, 60.0), tokens(100)]
    for _ in range(3):
        await store.reserve("a", limits, {REQUESTS: 1, TOKENS: 60})
        standing = store.standing("a")
        assert standing[TOKENS].remaining == 40


async def test_a_debt_is_seen_by_the_next_admission(make: Make) -> None:
    clock = Clock()
    store = make(clock)
    limits = [tokens(100)]
    await store.reserve("a", limits, {TOKENS: 10})
    clock.now_s += 30
    await settle(store, "a", {TOKENS: 160})
    error = await refusal(store, limits, {TOKENS: 1})
    assert error.retry_after_s is not None
    clock.now_s += 61
    await store.reserve("b", limits, {TOKENS: 100})


async def test_a_debt_of_a_request_longer_than_the_window_is_seen_by_the_next_admission(make: Make) -> None:
    clock = Clock()
    store = make(clock)
    limits = [tokens(100, per_s=10.0)]
    await store.reserve("a", limits, {TOKENS: 10})
    clock.now_s += 15
    await settle(store, "a", {TOKENS: 500})
    await refusal(store, limits, {TOKENS: 1})


async def test_what_was_held_and_not_used_is_free_again(make: Make) -> None:
    clock = Clock()
    store = make(clock)
    limits = [tokens(100)]
    await store.reserve("a", limits, {TOKENS: 100})
    await refusal(store, limits, {TOKENS: 1})
    clock.now_s += 5
    await settle(store, "a", {TOKENS: 30})
    await store.reserve("b", limits, {TOKENS: 70})
    standing = store.standing("b")
    assert standing[TOKENS].remaining == 0


async def test_settling_says_where_the_windows_stand(make: Make) -> None:
    store = make(Clock())
    await store.reserve("a", [tokens(100), limit_of(CONCURRENT, 1, None)], {TOKENS: 100, CONCURRENT: 1})
    standing = await settle(store, "a", {TOKENS: 30})
    assert {measure: (one.limit, one.remaining) for measure, one in standing.items()} == {TOKENS: (100, 70)}
    assert await settle(store, "a", {TOKENS: 30}) == {}


async def test_a_refund_after_the_window_has_passed_frees_nothing_of_others(make: Make) -> None:
    clock = Clock()
    store = make(clock)
    limits = [tokens(100)]
    await store.reserve("a", limits, {TOKENS: 100})
    clock.now_s += 62
    await store.reserve("b", limits, {TOKENS: 100})
    await settle(store, "a", {TOKENS: 0})
    await refusal(store, limits, {TOKENS: 1})


async def test_a_raise_takes_the_difference_only_and_never_lowers(make: Make) -> None:
    store = make(Clock())
    await store.reserve("a", [tokens(100)], {TOKENS: 30})
    await store.raise_to("a", {TOKENS: 80})
    assert store.standing("a")[TOKENS].remaining == 20
    await store.raise_to("a", {TOKENS: 50})
    assert store.standing("a")[TOKENS].remaining == 20
    await settle(store, "a", {TOKENS: 80})
    await store.reserve("b", [tokens(100)], {})
    assert store.standing("b")[TOKENS].remaining == 20


@pytest.mark.parametrize(("wanted", "fits"), [(70, True), (71, False)])
async def test_a_refused_raise_leaves_the_hold_as_it_was(make: Make, wanted: int, fits: bool) -> None:
    store = make(Clock())
    limits = [tokens(1000), tokens(100, per_s=3600.0)]
    await store.reserve("other", limits, {TOKENS: 30})
    await store.reserve("a", limits, {TOKENS: 10})
    if not fits:
        with pytest.raises(QuotaExceeded) as caught:
            await store.raise_to("a", {TOKENS: wanted})
        assert (caught.value.limit, str(wanted) in str(caught.value)) == (100, True)
    await store.raise_to("a", {TOKENS: wanted if fits else 10})
    standing = store.standing("a")
    assert standing[TOKENS].remaining == (0 if fits else 60)


@pytest.mark.parametrize("how", ["reserve", "raise"])
async def test_a_request_that_can_never_fit_has_no_time_to_try_again(make: Make, how: str) -> None:
    store = make(Clock())
    limits = [tokens(100)]
    await store.reserve("other", limits, {TOKENS: 100})
    await store.reserve("a", limits, {})
    with pytest.raises(QuotaExceeded) as caught:
        await (store.raise_to("a", {TOKENS: 101}) if how == "raise" else store.reserve("b", limits, {TOKENS: 101}))
    assert caught.value.retry_after_s is None
    assert "larger than the limit" in str(caught.value)


async def test_the_limit_that_is_free_last_is_named(make: Make) -> None:
    store = make(Clock())
    limits = [tokens(10, per_s=3600.0), limit_of(REQUESTS, 1, 60.0), tokens(10, per_s=10.0)]
    await store.reserve("a", limits, {REQUESTS: 1, TOKENS: 10})
    error = await refusal(store, limits, {REQUESTS: 1, TOKENS: 10})
    assert error.measure == TOKENS
    assert error.retry_after_s is not None
    assert 3600 <= error.retry_after_s <= 3660 + INSTANT_S


def earliest_s(admitted: list[tuple[float, int]], amount: int, limit: Limit) -> float:
    """When an exact window, without slices, would admit `amount`."""
    over = sum(used for _, used in admitted) + amount - limit.amount
    for when, used in sorted(admitted):
        over -= used
        if over <= 0:
            return when + per_s_of(limit)
    raise AssertionError("it never fits")


async def wait_is_right(
    store: QuotaStore, clock: Clock, admitted: list[tuple[float, int]], amount: int, limit: Limit
) -> None:
    """Where `amount` is refused: not admitted before `retry_after_s`, admitted then, and that is not much too late."""
    try:
        await store.reserve("probe", [limit], {TOKENS: amount})
    except QuotaExceeded as error:
        assert error.retry_after_s is not None
        then_s = clock.now_s + error.retry_after_s
        assert then_s <= earliest_s(admitted, amount, limit) + 2 * per_s_of(limit) / SLICES + INSTANT_S
        clock.now_s = max(clock.now_s, then_s - INSTANT_S)
        await refusal(store, [limit], {TOKENS: amount})
        clock.now_s = then_s + INSTANT_S
        await store.reserve("probe", [limit], {TOKENS: amount})


PAST = st.lists(st.tuples(st.floats(0, 4), st.integers(1, 30)), max_size=20)
"""(seconds to wait, tokens to take) of earlier requests."""


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(past=PAST, amount=st.integers(1, 100), per_s=st.sampled_from([10.0, 60.0, 3600.0]))
async def test_the_same_request_is_admitted_when_retry_after_says_and_not_before(
    make: Make, past: list[tuple[float, int]], amount: int, per_s: float
) -> None:
    clock, limit = Clock(), tokens(100, per_s)
    store = make(clock)
    admitted = []
    for number, (wait_s, used) in enumerate(past):
        clock.now_s += wait_s
        with suppress(QuotaExceeded):
            await store.reserve(str(number), [limit], {TOKENS: used})
            admitted.append((clock.now_s, used))
    await wait_is_right(store, clock, admitted, amount, limit)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(past=[(0.0, 50), (0.0, 50)], amount=60, gap_s=5.0)
@given(past=PAST, amount=st.integers(1, 100), gap_s=st.floats(0, 5))
async def test_retry_after_is_right_when_holds_begin_with_no_tokens_and_are_raised_in_another_order(
    make: Make, past: list[tuple[float, int]], amount: int, gap_s: float
) -> None:
    """As the gateway does it: a request and a slot first, tokens later; of two requests the second may be first."""
    clock, limit = Clock(), tokens(100)
    store = make(clock)
    admitted = []
    for number in range(len(past)):
        await store.reserve(str(number), [limit], {})
        clock.now_s += gap_s
    for number, (wait_s, used) in reversed(list(enumerate(past))):
        clock.now_s += wait_s
        with suppress(QuotaExceeded):
            await store.raise_to(str(number), {TOKENS: used})
            admitted.append((clock.now_s, used))
    await wait_is_right(store, clock, admitted, amount, limit)


async def test_sixty_four_tasks_share_a_thousand_exactly(make: Make) -> None:
    store = make(Clock())
    limits = [limit_of(REQUESTS, 1000, 60.0), limit_of(CONCURRENT, 64, None)]
    admitted, refused = [], []

    async def client(name: int) -> None:
        for number in range(20):
            request_id = f"{name}/{number}"
            try:
                await store.reserve(request_id, limits, {REQUESTS: 1, CONCURRENT: 1})
            except QuotaExceeded:
                refused.append(request_id)
                continue
            admitted.append(request_id)
            await checkpoint()
            await settle(store, request_id, {TOKENS: 0})

    async with anyio.create_task_group() as group:
        for name in range(64):
            group.start_soon(client, name)
    assert (len(admitted), len(refused)) == (1000, 280)


async def test_scopes_do_not_share_and_one_scope_does(make: Make) -> None:
    store = make(Clock())
    await store.reserve("a", [tokens(10)], {TOKENS: 10})
    await store.reserve("b", [tokens(10, scope="other key")], {TOKENS: 10})
    await store.reserve("c", [tokens(10, per_s=10.0)], {TOKENS: 10})
    await refusal(store, [tokens(10)], {TOKENS: 1})


async def test_the_tightest_window_of_a_measure_is_shown(make: Make) -> None:
    clock = Clock()
    store = make(clock)
    limits = [
        tokens(1000),
        tokens(50, per_s=3600.0),
        limit_of(REQUESTS, 7, 60.0),
        limit_of(CONCURRENT, 3, None),
    ]
    await store.reserve("a", limits, {TOKENS: 20, REQUESTS: 1, CONCURRENT: 1})
    standing = store.standing("a")
    assert set(standing) == {TOKENS, REQUESTS}
    assert (standing[TOKENS].limit, standing[TOKENS].remaining) == (50, 30)
    assert 3600 <= standing[TOKENS].reset_s <= 3660
    assert (standing[REQUESTS].limit, standing[REQUESTS].remaining) == (7, 6)
    clock.now_s += standing[TOKENS].reset_s + INSTANT_S
    await settle(store, "a", {TOKENS: 20})
    await store.reserve("b", limits, {})
    assert store.standing("b")[TOKENS] == (50, 50, 0.0)


@pytest.mark.parametrize(
    ("measure", "per_s"), [(REQUESTS, 60.0), (TOKENS, 60.0), (CONCURRENT, None)], ids=["requests", "tokens", "slots"]
)
async def test_two_limits_that_share_a_counter_count_a_request_once(
    make: Make, measure: Measure, per_s: float | None
) -> None:
    """A role that says `concurrent: 4` twice, or 4 and 9, admits four."""
    store = make(Clock())
    limits = [limit_of(measure, 4, per_s), limit_of(measure, 9, per_s)]
    for number in range(4):
        await store.reserve(str(number), limits, {measure: 1})
    error = await refusal(store, limits, {measure: 1})
    assert error.limit == 4


async def test_each_measure_is_held_raised_and_settled_for_itself(make: Make) -> None:
    store = make(Clock())
    limits = [tokens(100), limit_of(COST, 10**12, 60.0), limit_of(COMPUTE, 9000, 60.0)]
    await store.reserve("a", limits, {TOKENS: 10, COST: 10**11})
    await store.raise_to("a", {TOKENS: 50, COST: 9 * 10**11, COMPUTE: 1})
    error = await refusal(store, limits, {TOKENS: 1, COST: 2 * 10**11})
    assert error.measure == COST
    await settle(store, "a", {TOKENS: 20, COST: 3 * 10**11 + 7, COMPUTE: 9000})
    assert await used(store, limits) == [20, 3 * 10**11 + 7, 9000]
    error = await refusal(store, limits, {COMPUTE: 1})
    assert error.measure == COMPUTE
    await store.reserve("b", limits, {TOKENS: 80, COST: 7 * 10**11 - 7})


async def test_what_is_not_named_at_the_end_stays_as_it_was_held(make: Make) -> None:
    store = make(Clock())
    limits = [tokens(100), limit_of(COST, 1000, 60.0)]
    await store.reserve("a", limits, {TOKENS: 10, COST: 300})
    await settle(store, "a", {TOKENS: 4})
    assert await used(store, limits) == [4, 300]


@pytest.mark.parametrize(
    ("unit", "now", "left_s"),
    [
        ("hour", "2026-11-20T18:59:50", 10),
        ("day", "2026-11-20T23:00:00", 3600),
        ("week", "2026-11-22T23:59:59", 1),
        ("month", "2024-02-29T23:59:00", 60),
        ("month", "2026-12-31T00:00:00", 86_400),
        ("month", "2027-01-31T23:59:59", 1),
    ],
)
async def test_a_calendar_window_is_full_until_its_period_ends_and_empty_then(
    make: Make, unit: str, now: str, left_s: int
) -> None:
    clock = Clock()
    clock.now_s = datetime.fromisoformat(now).replace(tzinfo=UTC).timestamp()
    store = make(clock)
    limits = [Limit(Scope("key"), TOKENS, 10, Calendar(unit))]
    await store.reserve("a", limits, {TOKENS: 10})
    assert store.standing("a")[TOKENS] == (10, 0, pytest.approx(left_s))
    error = await refusal(store, limits, {TOKENS: 1})
    assert error.retry_after_s == pytest.approx(left_s)
    clock.now_s += left_s - 0.001
    await refusal(store, limits, {TOKENS: 1})
    clock.now_s += 0.002
    await store.reserve("b", limits, {TOKENS: 10})
    await settle(store, "a", {TOKENS: 0})  # of the period before
    await refusal(store, limits, {TOKENS: 1})


class Known:
    """A history that says what it is given, and remembers what it was asked."""

    def __init__(self, used: list[tuple[float, int]]) -> None:
        self.said = used
        self.asked: list[tuple[Scope, Measure, float]] = []
        self.down = False

    async def used(
        self, scope: Scope, measure: Measure, *, since_s: float, whole: bool = False
    ) -> list[tuple[float, int]]:
        self.asked.append((scope, measure, since_s))
        if self.down:
            raise QuotaStoreDown("no database")
        if scope.holder != "key" or measure is not TOKENS:
            return []
        return [(at_s, amount) for at_s, amount in self.said if at_s >= since_s - 9999 * (not whole)]

    async def recent(self, scope: Scope, measure: Measure, *, since_s: float, until_s: float) -> int:
        return 0


async def test_a_window_begins_with_what_was_used_before(make: Make) -> None:
    clock = Clock()
    history = Known(
        [(clock.now_s - 3590, 30), (clock.now_s - 100, 20), (clock.now_s + 50, 7), (clock.now_s - 9999, 90)]
    )
    store = make(clock, history)
    limits = [tokens(100, per_s=3600.0), limit_of(REQUESTS, 5, 60.0)]
    await store.reserve("a", limits, {TOKENS: 43, REQUESTS: 1})
    error = await refusal(store, limits, {TOKENS: 1})
    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s <= 10 + 60
    assert {measure for _, measure, _ in history.asked} == {TOKENS, REQUESTS}
    assert history.asked[0][2] <= clock.now_s - 3600
    asked = len(history.asked)
    clock.now_s += 5000
    await store.reserve("b", limits, {TOKENS: 100})
    assert len(history.asked) == asked, "it is asked once"


async def test_without_its_history_a_window_admits_nobody_and_takes_nothing(make: Make) -> None:
    clock = Clock()
    history = Known([(clock.now_s, 60)])
    history.down = True
    store = make(clock, history)
    limits = [tokens(100)]
    for _ in range(2):
        with pytest.raises(QuotaStoreDown):
            await store.reserve("a", limits, {TOKENS: 10})
    await store.drain()
    history.down = False
    await store.reserve("b", limits, {TOKENS: 40})
    await refusal(store, limits, {TOKENS: 1})


async def test_many_who_come_at_once_to_a_window_that_begins_share_it(make: Make) -> None:
    clock = Clock()
    store = make(clock, Known([(clock.now_s, 60)]))
    limits = [tokens(100)]
    refused = []

    async def client(name: int) -> None:
        try:
            await store.reserve(str(name), limits, {TOKENS: 10})
        except QuotaExceeded:
            refused.append(name)

    async with anyio.create_task_group() as group:
        for name in range(20):
            group.start_soon(client, name)
    assert len(refused) == 16


async def test_the_same_limits_in_another_list_are_the_same_counters(make: Make) -> None:
    store = make(Clock())
    await store.reserve("a", [tokens(10)], {TOKENS: 6})
    await store.reserve("b", [tokens(10), tokens(20)], {TOKENS: 4})
    await refusal(store, (tokens(10),), {TOKENS: 1})  # type: ignore[arg-type]


async def test_limits_that_come_back_know_what_was_used_while_they_were_gone(make: Make) -> None:
    clock = Clock()
    history = Known([])
    store = make(clock, history)
    await store.reserve("a", [tokens(100)], {TOKENS: 10})
    await settle(store, "a", {TOKENS: 10})
    history.said = [(clock.now_s, 10), (clock.now_s, 50)]  # fifty of them without a limit
    await store.reserve("b", [tokens(100), limit_of(REQUESTS, 5, 60.0)], {TOKENS: 40})
    await refusal(store, [tokens(100)], {TOKENS: 1})
