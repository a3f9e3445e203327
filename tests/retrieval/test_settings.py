import pytest
from pydantic import ValidationError

from retrieval.settings import ChunkSettings, CollectionSettings, EmbeddingCacheSettings, RetrievalSettings


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 15},
        {"max_tokens": 4097},
        {"max_tokens": 64, "overlap_tokens": 33},
        {"overlap_tokens": -1},
        {"size": 4},
    ],
)
def test_chunks_have_bounds_and_overlap_by_half_at_most(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ChunkSettings.model_validate(fields)
    assert ChunkSettings(max_tokens=64, overlap_tokens=32).overlap_tokens == 32


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 0},
        {"top_k": 51},
        {"max_context_tokens": 63},
        {"mode": "both"},
        {"min_score": 1.1},
        {"min_score": -0.1},
        {"rewrite": True},
        {"citations": "footnotes"},
    ],
)
def test_a_search_refuses_what_it_cannot_do(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RetrievalSettings.model_validate(fields)


def test_a_collection_needs_paths() -> None:
    with pytest.raises(ValidationError):
        CollectionSettings(name="docs", embed="minilm", paths=[])
    assert not CollectionSettings(name="docs", embed="minilm", paths=["*"]).local_only


@pytest.mark.parametrize("fields", [{"max_mb": 0}, {"sharing": "everyone"}])
def test_a_cache_has_a_size_and_known_sharing(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EmbeddingCacheSettings.model_validate(fields)
    assert EmbeddingCacheSettings().sharing == "role"
