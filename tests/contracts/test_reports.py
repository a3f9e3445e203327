"""What is asked of the ledger, on every database."""

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.journal import Content
from policies.errors import NotThere
from policies.feedback import Feedbacks, Said
from policies.ledger import Ledger
from policies.reports import Question, Reports
from tests.contracts.test_ledger import NOW_S, NOW_US, lines
from tests.gateway.test_journal import end

pytestmark = pytest.mark.anyio

HOUR_US = 3_600_000_000


@pytest.fixture
async def reports(database: AsyncEngine) -> Reports:
    """Six requests, an hour apart, the last one now."""
    await Ledger(database).add(
        lines(
            end(1, at=NOW_US - 5 * HOUR_US, tags=()),
            end(2, at=NOW_US - 4 * HOUR_US, key="key_2", tags=("a",)),
            end(3, at=NOW_US - 3 * HOUR_US, model="gpt-4o", entry="gpt-4o", backend="up", user="bob"),
            end(4, at=NOW_US - 2 * HOUR_US, status=502, outcome="failed", error="upstream_error", completion_tokens=0),
            end(
                5,
                at=NOW_US - HOUR_US,
                status=429,
                outcome="failed",
                admitted=0,
                prompt_tokens=0,
                completion_tokens=0,
                cost=0,
            ),
            end(6, at=NOW_US, tags=("a", "b")),
        ),
        [msgspec.json.encode(Content("req_6", "asked", "answered"))],
    )
    return Reports(database)


def ids(rows: list[dict[str, object]]) -> list[int]:
    return [int(str(row["id"]).removeprefix("req_")) for row in rows]


async def test_requests_come_newest_first_in_pages_that_fit_together(reports: Reports) -> None:
    question = Question()
    first = await reports.requests(question, limit=4)
    assert ids(first) == [6, 5, 4, 3]
    assert ids(await reports.requests(question, limit=4, after="req_3")) == [2, 1]
    assert ids(await reports.requests(question, limit=4, oldest_first=True)) == [1, 2, 3, 4]
    assert ids(await reports.requests(question, limit=4, after="req_4", oldest_first=True)) == [5, 6]
    with pytest.raises(NotThere):
        await reports.requests(question, limit=4, after="req_99")


@pytest.mark.parametrize(
    ("question", "found"),
    [
        (Question(exact={"key": "key_2"}), [2]),
        (Question(exact={"model": "gpt-4o"}), [3]),
        (Question(exact={"backend": "up"}), [3]),
        (Question(exact={"user": "bob"}), [3]),
        (Question(exact={"status": 502}), [4]),
        (Question(exact={"outcome": "failed", "key": "key_1"}), [5, 4]),
        (Question(tag="a"), [6, 2]),
        (Question(tag="t2"), [5, 4, 3]),
        (Question(since_s=NOW_S - 3600), [6, 5]),
        (Question(until_s=NOW_S - 4 * 3600), [1]),
        (Question(since_s=NOW_S - 3 * 3600, until_s=NOW_S), [5, 4, 3]),
        (Question(exact={"key": "'; DROP TABLE requests; --"}), []),
    ],
    ids=str,
)
async def test_requests_are_found_by(reports: Reports, question: Question, found: list[int]) -> None:
    assert ids(await reports.requests(question, limit=10)) == found


async def test_one_request_has_its_content_and_what_was_said_of_it(reports: Reports, database: AsyncEngine) -> None:
    feedbacks = Feedbacks(database)
    await feedbacks.say("req_6", Said(2, "meh", 1), key="key_1")
    await feedbacks.say("req_6", Said(5, "größe", 2), key=None)
    row = await reports.request("req_6")
    assert (row["request"], row["answer"], row["stars"], row["words"]) == ("asked", "answered", 5, "größe")
    row = await reports.request("req_1")
    assert (row["request"], row["answer"], row["stars"]) == (None, None, None)
    assert [row["stars"] for row in await reports.requests(Question(), limit=2)] == [5, None]
    for call in (
        reports.request("req_99"),
        feedbacks.say("req_99", Said(1, "", 1), key=None),
        feedbacks.say("req_6", Said(1, "", 1), key="key_2"),
        feedbacks.say("req_\0", Said(1, "", 1), key=None),
    ):
        with pytest.raises(NotThere):
            await call


async def test_usage_is_summed_by_what_is_asked_for(reports: Reports) -> None:
    def counts(rows: list[dict[str, object]], *names: str) -> list[tuple[object, ...]]:
        return [tuple(row[name] for name in names) for row in rows]

    (total,) = await reports.usage([], Question())
    assert total == {
        "requests": 5, "refused": 1, "failed": 1, "prompt_tokens": 50, "completion_tokens": 20, "cached_tokens": 12,
        "cost": 150, "compute_ms": 240,
    }  # fmt: skip
    by_key = await reports.usage(["key", "model"], Question())
    assert counts(by_key, "key", "model", "requests", "refused", "cost") == [
        ("key_1", "gpt-4o", 1, 0, 30),
        ("key_1", "guide", 3, 1, 90),
        ("key_2", "guide", 1, 0, 30),
    ]
    by_hour = await reports.usage(["hour"], Question(since_s=NOW_S - 3600))
    assert counts(by_hour, "hour", "requests", "refused") == [("2025-10-09T07:00Z", 0, 1), ("2025-10-09T08:00Z", 1, 0)]
    by_day = await reports.usage(["day"], Question(exact={"key": "key_1"}))
    assert counts(by_day, "day", "requests") == [("2025-10-09", 4)]
    assert counts(await reports.usage(["user"], Question()), "user", "requests") == [("ann", 4), ("bob", 1)]
    by_tag = await reports.usage(["tag", "day"], Question())
    assert sorted(counts(by_tag, "tag", "day", "requests"), key=str) == [
        (None, "2025-10-09", 1), ("a", "2025-10-09", 2), ("b", "2025-10-09", 1), ("t1", "2025-10-09", 2),
        ("t2", "2025-10-09", 2),
    ] or sorted(counts(by_tag, "tag", "day", "requests"), key=str) == [
        ("a", "2025-10-09", 2), ("b", "2025-10-09", 1), ("t1", "2025-10-09", 2), ("t2", "2025-10-09", 2),
        (None, "2025-10-09", 1),
    ]  # fmt: skip
    by_status = await reports.usage(["model"], Question(exact={"status": 502}))
    assert counts(by_status, "model", "requests", "failed") == [("guide", 1, 1)]
    assert counts(await reports.usage(["key"], Question(tag="a")), "key", "requests") == [("key_1", 1), ("key_2", 1)]
    (nothing,) = await reports.usage([], Question(until_s=5.0))
    assert nothing["requests"] == 0
    assert await reports.usage(["key"], Question(until_s=5.0)) == []
