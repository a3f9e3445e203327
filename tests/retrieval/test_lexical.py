import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval.catalog import Catalog, DocumentRow, NewChunk
from retrieval.lexical import MAX_TERMS, LexicalIndex, quoted

pytestmark = pytest.mark.anyio

TEXTS = [
    ("Holds", "A hold on tokens expires when the request ends."),
    ("Windows", "Rolling windows keep sixty slices of a minute."),
    ("", "The llama carries; near the pass it rests, or not."),
    ("Llama", "Condors."),
    ("", "año ñandú 日本"),
]


@pytest.fixture
async def ids(database: AsyncEngine) -> list[int]:
    """Chunks of collection `docs`, and one of another."""
    catalog = Catalog(database)
    new = [NewChunk(heading, text, 5) for heading, text in TEXTS]
    row = DocumentRow(collection="docs", path="a.md", fingerprint="f", embedding="e", title="", created_at=1)
    made, _ = await catalog.put(row, new, np.ones((len(new), 2), np.float32), replaces=None)
    row = DocumentRow(collection="secret", path="a.md", fingerprint="f", embedding="e", title="", created_at=1)
    await catalog.put(row, [NewChunk("", "llama tokens", 2)], np.ones((1, 2), np.float32), replaces=None)
    return made


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
        ("nothing of this", [1]),
        ("zzz", []),
        ("", []),
        ("?!…", []),
    ],
)
async def test_words_are_found_by_their_stem(
    database: AsyncEngine, ids: list[int], query: str, places: list[int]
) -> None:
    found = await LexicalIndex(database).search("docs", query, 10)
    assert sorted(found) == sorted(ids[place] for place in places)
    if len(places) == 2 and "llama" in query:
        assert found == [ids[place] for place in places]


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
async def test_operators_of_the_engine_are_only_words(database: AsyncEngine, ids: list[int], query: str) -> None:
    index = LexicalIndex(database)
    assert set(await index.search("docs", query, 10)) <= set(ids)
    assert await index.search("docs", "tokens", 10) == ids[:1]


async def test_an_operator_is_looked_up_as_the_word_it_is(database: AsyncEngine, ids: list[int]) -> None:
    index = LexicalIndex(database)
    assert await index.search("docs", '" OR NEAR( * ) -', 10) == [ids[2]]
    assert set(await index.search("docs", "tokens AND NOT windows", 10)) == {ids[0], ids[1], ids[2]}
    assert await index.search("docs", "tok*", 10) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(max_size=60))
async def test_no_query_breaks_the_engine(database: AsyncEngine, ids: list[int], query: str) -> None:
    assert set(await LexicalIndex(database).search("docs", query, 10)) <= set(ids)


async def test_a_rare_word_says_more_than_common_ones(database: AsyncEngine) -> None:
    new = [NewChunk("", f"what is the use of a thing of the kind {number}", 9) for number in range(20)]
    new.append(NewChunk("", "A quipu keeps numbers in knots, and nobody reads it any more.", 12))
    row = DocumentRow(collection="docs", path="b.md", fingerprint="f", embedding="e", title="", created_at=1)
    made, _ = await Catalog(database).put(row, new, np.ones((len(new), 2), np.float32), replaces=None)
    assert (await LexicalIndex(database).search("docs", "what is the use of a quipu", 5))[0] == made[-1]


@pytest.mark.parametrize("query", ["quotas", "example", "wait_s", "Лама", "ёлка"])
async def test_words_inside_addresses_names_and_other_alphabets_are_found(database: AsyncEngine, query: str) -> None:
    new = [NewChunk("", "See docs/quotas.md, www.example.org or max_wait_s=3.5; ЛАМА и Ёлка", 9), NewChunk("", "no", 1)]
    row = DocumentRow(collection="docs", path="b.md", fingerprint="f", embedding="e", title="", created_at=1)
    made, _ = await Catalog(database).put(row, new, np.ones((2, 2), np.float32), replaces=None)
    assert await LexicalIndex(database).search("docs", query, 5) == made[:1]


async def test_at_most_k_are_found(database: AsyncEngine, ids: list[int]) -> None:
    assert await LexicalIndex(database).search("docs", "llama", 1) == [ids[3]]


def test_a_query_is_cut_to_its_first_words_each_once() -> None:
    words = [f"w{number}" for number in range(100)]
    assert quoted("w0 W0 w0 " + " ".join(words)) == " OR ".join(f'"{word}"' for word in words[:MAX_TERMS])


async def test_a_word_in_a_heading_weighs_more_than_in_the_text(database: AsyncEngine) -> None:
    new = [NewChunk("Condor", "llama", 1), NewChunk("Llama", "condor", 1), NewChunk("Other", "puna", 1)]
    row = DocumentRow(collection="docs", path="b.md", fingerprint="f", embedding="e", title="", created_at=1)
    made, _ = await Catalog(database).put(row, new, np.ones((3, 2), np.float32), replaces=None)
    assert await LexicalIndex(database).search("docs", "llama", 10) == [made[1], made[0]]
    assert await LexicalIndex(database).search("docs", "condor", 10) == [made[0], made[1]]
