"""What a configuration makes of collections: who embeds, who reranks, what is kept in step with files, what is built and searched."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from backends.health import Watched
from backends.settings import LlamaCppSettings
from gateway.access import Access
from gateway.settings_schema import GatewaySettings
from retrieval.building import Builder
from retrieval.catalog import Catalog
from retrieval.documents import Documents
from retrieval.embedding import Embedder
from retrieval.files import Files
from retrieval.ids import declared_id
from retrieval.leases import Leases
from retrieval.lexical import LexicalIndex
from retrieval.library import Library
from retrieval.parsers import Parsers
from retrieval.reranking import Reranker
from retrieval.retrievals import Retrievals
from retrieval.search import Searcher
from retrieval.settings import CollectionSettings, FilesSettings
from retrieval.sources import Declared, Sources


@dataclass(frozen=True)
class Knowledge:
    access: Access
    searcher: Searcher
    builder: Builder
    declared: Mapping[str, Declared]
    """By name."""
    embedders: Mapping[str, Embedder]
    """By backend; every one that might embed."""
    limits: FilesSettings
    rerank_names: frozenset[str]
    """Backends here that rerank."""
    default_embed: str | None
    """The backend that embeds stores made over the API."""

    @property
    def library(self) -> Library:
        return self.searcher.library

    @property
    def ready(self) -> bool:
        return all(one.state == "ready" for one in self.declared.values())

    def chunks(self) -> dict[str, int]:
        """Vectors in memory, by the names of the configuration's collections."""
        counts = {}
        for stored_id, name in ((declared_id(name), name) for name in self.declared):
            view = self.library.named(stored_id)
            counts[name] = len(view) if view is not None else 0
        return counts


def build_library(database: AsyncEngine, home: Path) -> Library:
    catalog = Catalog(database)
    return Library(
        database,
        catalog,
        Documents(database),
        Files(database, catalog),
        LexicalIndex(database),
        Retrievals(database),
        folder=home / "indexes",
    )


def build_knowledge(
    settings: GatewaySettings,
    library: Library,
    parsers: Parsers,
    backends: Mapping[str, Watched],
    previous: Knowledge | None,
) -> Knowledge:
    """What goes on as it was, goes on: a build under way, and the watch over files that are watched as before."""
    embedders = {name: _embedder(backend, name, previous) for name, backend in backends.items()}
    rerankers = {name: Reranker(backend) for name, backend in backends.items()}
    sources = Sources(library.files, settings.collections, settings.files, root=Path.cwd())
    builder = Builder(library.database, library, embedders, parsers, sources)
    if previous is not None and previous.embedders == embedders and _watched(previous) == list(settings.collections):
        builder = previous.builder
    before = previous.declared if previous is not None else {}
    declared = {
        one.name: before[one.name]
        if one.name in before and before[one.name].settings == one
        else Declared(one, library.catalog, Leases(library.database), root=Path.cwd(), wake=library.wanted.set)
        for one in settings.collections
    }
    return Knowledge(
        access=Access(library.catalog, library.files, settings.collections),
        searcher=Searcher(library, embedders, rerankers),
        builder=builder,
        declared=declared,
        embedders=embedders,
        limits=settings.files,
        rerank_names=frozenset(_serving(settings, "rerank")),
        default_embed=settings.default_embed or next(iter(_serving(settings, "embeddings")), None),
    )


def _watched(previous: Knowledge) -> list[CollectionSettings]:
    return [one.settings for one in previous.declared.values()]


def _embedder(backend: Watched, name: str, previous: Knowledge | None) -> Embedder:
    """The same for the same backend, so that it can be told."""
    known = previous.embedders.get(name) if previous is not None else None
    return known if known is not None and known.backend is backend else Embedder(backend)


def _serving(settings: GatewaySettings, what: str) -> list[str]:
    """The models of this machine that do."""
    return [one.name for one in settings.backends if isinstance(one, LlamaCppSettings) and one.serves == what]
