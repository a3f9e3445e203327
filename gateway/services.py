"""What `create_app` has built, for the routes to use."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncEngine

from backends.health import Watched
from backends.llamacpp.fleet import Fleet
from backends.registry import Connect
from gateway.access_log import AccessLog
from gateway.collection_desk import CollectionDesk
from gateway.embedding_files import EmbeddingFiles
from gateway.embeddings import Embeddings
from gateway.file_desk import FileDesk
from gateway.forwarding import Forwarding
from gateway.journal import Journal
from gateway.knowledge import Knowledge
from gateway.ledger_writer import LedgerWriter
from gateway.metrics import Metrics
from gateway.pipeline import Pipeline
from gateway.reranking import Reranking
from gateway.retrieving import Retrieving
from gateway.settings import Loaded
from gateway.similarity import Similarity
from gateway.targets import Targets
from gateway.text_searching import TextSearching
from policies.answer_cache import AnswerCache
from policies.audit import Audit
from policies.failed_keys import FailedKeys
from policies.feedback import Feedbacks
from policies.generations import Watcher
from policies.keys import Keys
from policies.ledger import Ledger
from policies.quotas_guard import GuardedQuotas
from policies.reports import Reports
from policies.roles import Role
from retrieval.embedding_cache import EmbeddingCache
from retrieval.library import Library
from retrieval.parsers import Parsers


@dataclass(frozen=True)
class House:
    """What outlives a configuration: opened once, closed at the end."""

    database: AsyncEngine
    cache_database: AsyncEngine
    fleet: Fleet
    watcher: Watcher
    quotas: GuardedQuotas
    journal: Journal
    ledger: Ledger
    writer: LedgerWriter
    failed_keys: FailedKeys
    audit: Audit
    reports: Reports
    feedbacks: Feedbacks
    access_log: AccessLog
    metrics: Metrics
    connect: Connect
    library: Library
    parsers: Parsers
    work_ms: dict[str, float] = field(default_factory=dict)
    """By backend of this machine: what a request keeps it busy for."""


@dataclass
class Requests:
    count: int = 0


@dataclass(frozen=True)
class Services:
    """What one configuration makes of it. A request keeps those that it began with."""

    house: House
    loaded: Loaded
    backends: Mapping[str, Watched]
    keys: Keys
    roles: Mapping[str, Role]
    targets: Targets
    pipeline: Pipeline
    embeddings: Embeddings
    reranking: Reranking
    similarity: Similarity
    text_searching: TextSearching
    embedding_files: EmbeddingFiles
    forwarding: Forwarding
    knowledge: Knowledge
    retrieving: Retrieving
    collection_desk: CollectionDesk
    file_desk: FileDesk
    cache: EmbeddingCache
    answers: AnswerCache
    max_body_bytes: int
    created_at: int
    requests: Requests = field(default_factory=Requests)
    """Those that began with these services and have not ended."""

    @property
    def metrics(self) -> Metrics:
        return self.house.metrics
