from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval import lexical
from retrieval.catalog import Stored
from retrieval.documents import NewChunk
from retrieval.lexical import MAX_TERMS, LexicalIndex, distinct
from tests.retrieval.shelf import Shelf

pytestmark = pytest.mark.anyio

TEXTS = [
    ("Holds", "A hold on tokens expires when the request ends."),
    ("Windows", "Rolling windows keep sixty slices of a minute."),
    ("", "The llama carries; near the pass it rests, or not."),
    ("Llama", "Condors."),
    ("", "año ñandú 日本"),
]


class Asked:
    """A collection, asked by words."""

    def __init__(self, database: AsyncEngine, shelf: Shelf, stored: Stored, ids: list[int]) -> None:
        self.index = LexicalIndex(database)
        self.shelf = shelf
        self.stored = stored
        self.ids = ids

    async def __call__(self, query: str, k: int = 10, **options: Any) -> list[int]:
        return [id_ for id_, _ in await self.index.search(self.stored.id, query, k, **options)]

    async def filled(self, *new: NewChunk) -> list[int]:
        """Another collection in its place, with these chunks."""
        self.stored = await self.shelf.store("other")
        return await self.shelf.put(self.stored, "b.md", new)


@pytest.fixture
async def asked(database: AsyncEngine, tmp_path: Path) -> Asked:
    """Over collection `docs`, beside another one."""
    shelf = Shelf(database, tmp_path)
    stored, secret = await shelf.store("docs"), await shelf.store("secret")
    ids = await shelf.put(stored, "a.md", [NewChunk(heading, text, 5) for heading, text in TEXTS])
    await shelf.put(secret, "a.md", [NewChunk("", "llama tokens", 2)])
    return Asked(database, shelf, stored, ids)


@pytest.mark.parametrize(
    ("query", "places"),
    [
        ("tokens", [0]),
        ("TOKENS, expiring!", [0]),
        ("llama", [3, 2]),
        ("llamas", [3, 2]),
        ("slice tokens", [1, 0]),
        ("nandu", [4]),
        ("ÑANDÚ", [4]),
        ("日本", [4]),
        ("nothing of this", []),
        ("zzz", []),
        ("", []),
        ("?!…", []),
    ],
)
async def test_words_are_found_by_their_stem(asked: Asked, query: str, places: list[int]) -> None:
    found = await asked(query)
    assert sorted(found) == sorted(asked.ids[place] for place in places)
    if len(places) == 2 and "llama" in query:
        assert found == [asked.ids[place] for place in places]


@pytest.mark.parametrize(
    "query",
    [
        '" OR NEAR( * ) -',
        'tokens" OR "llama',
        '"',
        "tokens AND NOT windows",
        "heading:tokens",
        "{heading text}: tokens",
        "tok*",
        "^tokens",
        "tokens + slices",
        "'; DROP TABLE chunks; --",
        "NEAR(tokens slices, 5)",
        "\0tokens",
        "(((",
        "_",
        "²",
        ":terms %s ?",
        "x" * 5000 + " tokens",
        "ﷺ" * 1000,
        "|&!()<->:*'\\",
    ],
)
async def test_operators_of_the_engine_are_only_words(asked: Asked, query: str) -> None:
    assert set(await asked(query)) <= set(asked.ids)
    assert await asked("tokens") == asked.ids[:1]


async def test_an_operator_is_looked_up_as_the_word_it_is(asked: Asked) -> None:
    assert await asked('" OR NEAR( * ) -') == [asked.ids[2]]
    assert set(await asked("tokens AND NOT windows")) == {asked.ids[0], asked.ids[1]}
    assert await asked("tok*") == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(max_size=60))
async def test_no_query_breaks_the_engine(asked: Asked, query: str) -> None:
    assert set(await asked(query)) <= set(asked.ids)


async def test_a_rare_word_says_more_than_common_ones(asked: Asked) -> None:
    new = [NewChunk("", f"what is the use of a thing of the kind {number}", 9) for number in range(20)]
    new.append(NewChunk("", "A quipu keeps numbers in knots, and nobody reads it any more.", 12))
    made = await asked.filled(*new)
    assert (await asked("what is the use of a quipu", 5))[0] == made[-1]


@pytest.mark.parametrize("query", ["quotas", "example", "wait_s", "Лама", "ёлка"])
async def test_words_inside_addresses_names_and_other_alphabets_are_found(asked: Asked, query: str) -> None:
    new = [NewChunk("", "See docs/quotas.md, www.example.org or max_wait_s=3.5; ЛАМА и Ёлка", 9), NewChunk("", "no", 1)]
    made = await asked.filled(*new)
    assert await asked(query, 5) == made[:1]


async def test_at_most_k_are_found(asked: Asked) -> None:
    assert await asked("llama", 1) == [asked.ids[3]]


def test_a_query_is_cut_to_its_last_words_each_once() -> None:
    words = [f"w{number}" for number in range(100)]
    assert distinct(["w0", "w0", *words]) == words[-MAX_TERMS:]


async def test_a_word_in_a_heading_weighs_more_than_in_the_text(asked: Asked) -> None:
    new = [NewChunk("Condor", "llama", 1), NewChunk("Llama", "condor", 1), NewChunk("Other", "puna", 1)]
    made = await asked.filled(*new)
    assert await asked("llama") == [made[1], made[0]]
    assert await asked("condor") == [made[0], made[1]]


async def test_only_the_documents_that_are_allowed_are_found(asked: Asked) -> None:
    more = await asked.shelf.put(asked.stored, "more.md", [NewChunk("", "another llama", 2)])
    assert set(await asked("llama")) == {asked.ids[2], asked.ids[3], *more}
    live = await asked.shelf.documents.live(asked.stored.id)
    newest = max(live)
    assert await asked("llama", within={newest}) == more
    assert await asked("llama", within=set()) == []


async def test_common_words_are_left_out_where_rare_ones_lead_to_enough(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is bounded is the work: a word that is everywhere does not make everything be ranked."""
    monkeypatch.setattr(lexical, "CANDIDATES", 10)
    new = [NewChunk("", f"the runner number {number} of the road", 7) for number in range(40)]
    new.append(NewChunk("", "the quipu", 2))
    made = await asked.filled(*new)
    assert (await asked("the runner of the quipu"))[0] == made[-1]
    assert len(await asked("the road", 50)) <= 41
