"""What can be set about collections, searches and the embedding cache."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from backends.settings import Name, Settings


class ChunkSettings(Settings):
    max_tokens: Annotated[int, Field(ge=16, le=4096)] = 256
    overlap_tokens: Annotated[int, Field(ge=0)] = 32
    vector_tokens: Annotated[int, Field(ge=16)] = 96
    """What one vector stands for: a larger chunk has several, and is as near to a question as the nearest of them."""

    @model_validator(mode="after")
    def _overlap_is_smaller(self) -> "ChunkSettings":
        if self.overlap_tokens > self.max_tokens // 2:
            raise ValueError("overlap_tokens is at most half of max_tokens")
        return self


class CollectionSettings(Settings):
    """A collection that is kept in step with files and web pages."""

    name: Name
    embed: Name
    """The backend that makes its vectors."""
    paths: list[str] = []
    """Globs, relative to the working directory."""
    urls: list[Annotated[str, Field(pattern=r"^https?://\S+$")]] = []
    """Web pages, read again every `refresh_s`. Addresses in private networks are refused."""
    allow_hosts: list[str] = []
    """Hosts (`wiki.example.org`, `*.example.org`, `10.0.0.7:8080`) that pages and their redirects may come from, private ones too;
    without any, the hosts of `urls`, as far as they are public."""
    refresh_s: Annotated[float, Field(ge=10)] = 3600
    chunk: ChunkSettings = ChunkSettings()
    local_only: bool = False
    """True: its passages are shown to local engines only."""
    tools: bool = True
    """False: a request that gets passages from it loses its `tools`, so that no document can have one called."""
    link: str | None = None
    """What citations link to: an address with `{path}` in it. Without: the path itself, or the page's address."""

    @model_validator(mode="after")
    def _has_a_source(self) -> "CollectionSettings":
        if not self.paths and not self.urls:
            raise ValueError("names neither `paths` nor `urls`")
        return self


class RetrievalSettings(Settings):
    """How a model uses its collections."""

    top_k: Annotated[int, Field(ge=1, le=50)] = 6
    max_context_tokens: Annotated[int, Field(ge=64)] = 1500
    mode: Literal["hybrid", "dense", "lexical"] = "hybrid"
    min_score: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Cosine between question and chunk; with `rerank`, what that says."""
    candidates: Annotated[int, Field(ge=1, le=200)] = 50
    """From each of the two searches, before they are fused."""
    rerank: Name | Literal[False] = False
    """A backend that `serves: rerank`: it reads the candidates and puts them in order."""
    neighbours: Annotated[int, Field(ge=0, le=5)] = 0
    """Chunks before and after each hit that are shown with it."""
    rewrite: Name | Literal[False] = False
    """A model that makes a question of its own out of a follow-up; a conversation's first question stays as it is."""
    keep_previous: Annotated[int, Field(ge=0, le=20)] = 2
    """Passages of the turn before that are shown again behind the new ones."""
    citations: Literal["markers", "sources", "none"] = "markers"
    """`markers`: the model is told to cite as `[1]`; `sources`: a list of what it cited is put under its answer, too."""


class FilesSettings(Settings):
    """Uploads, and how documents are read."""

    max_mb: Annotated[float, Field(gt=0, le=2048)] = 128
    """Of one file, uploaded or on disk."""
    role_mb: Annotated[float, Field(gt=0)] | None = None
    """Of all files of a role."""
    parsers: Annotated[int, Field(ge=1, le=16)] = 1
    """Processes that read documents."""
    parse_s: Annotated[float, Field(gt=0, le=3600)] = 120
    """That a document may take."""
    parse_memory_mb: Annotated[int, Field(ge=512)] = 2048
    """Of such a process."""


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
