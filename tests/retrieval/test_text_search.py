"""The nearest of kept texts, among vectors that can be compared."""

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.base import EMBEDDINGS, Call
from backends.wire import Body
from retrieval.embedding import Embedded, Embedder, Use
from retrieval.embedding_cache import EmbeddingCache
from retrieval.text_search import TextSearch
from tests.retrieval.fakes import WordsBackend
from tests.retrieval.test_embedding_cache import cache_over

pytestmark = pytest.mark.anyio

TEXTS = ["the runner carries a message", "a messenger with a message", "bread and salt"]


@pytest.fixture
async def cache(database: AsyncEngine) -> EmbeddingCache:
    cache = cache_over(database)
    await cache.open()
    return cache


async def embed(
    cache: EmbeddingCache, backend: WordsBackend, texts: list[str], *, owner: str | None = "role:r", **options: object
) -> Embedded:
    body = Body(msgspec.json.encode({"model": "m", **options}))
    return await Embedder(backend, cache).embed(texts, Call(EMBEDDINGS, body, "r", "m"), Use("all", owner=owner))


async def found(
    cache: EmbeddingCache, search: TextSearch, backend: WordsBackend, query: str, k: int = 2, **options: object
) -> list[str]:
    asked = await embed(cache, backend, [query], owner=None, **options)
    return [one.text for one in await search.nearest(asked.vectors[0], k, owner="role:r", space=asked.space)]


async def test_near_texts_are_found_new_ones_too_and_deleted_ones_no_more(cache: EmbeddingCache) -> None:
    backend, search = WordsBackend(), TextSearch(cache)
    await embed(cache, backend, TEXTS)
    assert (await found(cache, search, backend, "message messenger"))[0] == TEXTS[1]
    await embed(cache, backend, ["message messenger message"])
    assert (await found(cache, search, backend, "message messenger"))[0] == "message messenger message"
    await cache.forget(prefix="message")
    assert (await found(cache, search, backend, "message messenger", k=10)) != []
    assert "message messenger message" not in await found(cache, search, backend, "message messenger", k=10)


async def test_models_and_dimensions_are_spaces_of_their_own(cache: EmbeddingCache) -> None:
    search = TextSearch(cache)
    small, large = WordsBackend(dimensions=8), WordsBackend(dimensions=64, seed="other")
    await embed(cache, small, TEXTS[:1])
    await embed(cache, large, TEXTS[1:])
    await embed(cache, large, ["with fewer dimensions"], dimensions=4)
    assert await found(cache, search, small, "message", k=10) == TEXTS[:1]
    assert set(await found(cache, search, large, "message", k=10)) == set(TEXTS[1:])
    assert await found(cache, search, large, "message", k=10, dimensions=4) == ["with fewer dimensions"]


async def test_other_owners_find_nothing(cache: EmbeddingCache) -> None:
    backend, search = WordsBackend(), TextSearch(cache)
    asked = await embed(cache, backend, TEXTS)
    assert await search.nearest(asked.vectors[0], 5, owner="role:other", space=asked.space) == []
