"""What `create_app` has built, for the routes to use."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from backends.health import Watched
from backends.llamacpp.fleet import Fleet
from gateway.access_log import AccessLog
from gateway.embeddings import Embeddings
from gateway.journal import Journal
from gateway.metrics import Metrics
from gateway.pipeline import Pipeline
from gateway.targets import Targets
from policies.generations import Watcher
from policies.keys import Keys
from policies.roles import Role
from retrieval.ingestion import Ingestion
from retrieval.search import Searcher


@dataclass(frozen=True)
class Services:
    database: AsyncEngine
    fleet: Fleet
    backends: Mapping[str, Watched]
    keys: Keys
    roles: Mapping[str, Role]
    watcher: Watcher
    targets: Targets
    pipeline: Pipeline
    embeddings: Embeddings
    searchers: Mapping[str, Searcher]
    ingestions: Mapping[str, Ingestion]
    journal: Journal
    access_log: AccessLog
    metrics: Metrics
    max_body_bytes: int
    created_at: int
