"""What can be set about collections, searches and the embedding cache."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from backends.settings import Name, Settings


class ChunkSettings(Settings):
    max_tokens: Annotated[int, Field(ge=16, le=4096)] = 256
    overlap_tokens: Annotated[int, Field(ge=0)] = 32

    @model_validator(mode="after")
    def _overlap_is_smaller(self) -> "ChunkSettings":
        if self.overlap_tokens > self.max_tokens // 2:
            raise ValueError("overlap_tokens is at most half of max_tokens")
        return self


class CollectionSettings(Settings):
    """A collection filled from files."""

    name: Name
    embed: Name
    """The backend that makes its vectors."""
    paths: Annotated[list[str], Field(min_length=1)]
    """Globs, relative to the working directory."""
    chunk: ChunkSettings = ChunkSettings()
    local_only: bool = False
    """True: its passages are shown to local engines only."""


class RetrievalSettings(Settings):
    """How a model uses its collections."""

    top_k: Annotated[int, Field(ge=1, le=50)] = 6
    max_context_tokens: Annotated[int, Field(ge=64)] = 1500
    mode: Literal["hybrid", "dense", "lexical"] = "hybrid"
    min_score: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Cosine between question and chunk."""
    rewrite: Annotated[Literal[False], Field()] = False
    citations: Literal["markers"] = "markers"


class EmbeddingCacheSettings(Settings):
    max_mb: Annotated[int, Field(ge=1)] = 256
    """Of vectors in the database; the longest unused go first."""
    max_age_days: Annotated[float, Field(gt=0, le=36_500)] | None = None
    """Older vectors are computed again."""
    memory_mb: Annotated[int, Field(ge=1)] = 64
    """Of vectors in memory, in front of the database."""
    files_mb: Annotated[int, Field(ge=1)] = 1024
    """Of what `/v1/embeddings/files` has made, on disk, sentences included; the oldest go."""
    sharing: Literal["key", "role", "all"] = "role"
    """Who gets a hit from whose text. A hit's speed tells that somebody sent it before."""
    keep_text: bool = False
    """Texts are stored beside their vectors, so that `/v1/embeddings/search` finds them."""
    search: Literal["key", "role"] = "role"
    """Who finds kept texts: the key that sent them, or all keys of its role."""
