"""`create_app`: the only place where services are built and joined. `lifespan.py` opens and closes what is built here."""

import time
from pathlib import Path
from typing import Any

from litestar import Litestar
from litestar.openapi import OpenAPIConfig
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.encodings import Encodings
from backends.llamacpp.fleet import Fleet
from backends.registry import Connect, build_backends, connect
from gateway import __version__
from gateway.access_log import AccessLog
from gateway.attempts import Attempts
from gateway.bookkeeping import Bookkeeping
from gateway.embeddings import Embeddings
from gateway.errors import CODES, answer_failure
from gateway.journal import Journal
from gateway.lifespan import lifespan
from gateway.metrics import Metrics
from gateway.openapi import complete
from gateway.pipeline import Pipeline
from gateway.routes.admin.keys import change_key, create_key, delete_key, get_key, list_keys, rotate_key
from gateway.routes.chat import CHAT, COMPLETIONS, chat, completions
from gateway.routes.embeddings import EMBEDDINGS, embeddings
from gateway.routes.health import health, metrics, ready
from gateway.routes.hot import HotPath
from gateway.routes.models import get_model, list_models
from gateway.schema_page import SchemaPage
from gateway.services import Services
from gateway.settings import Loaded
from gateway.targets import Targets
from gateway.telemetry import Telemetry
from policies.errors import PromptInvalid
from policies.generations import Watcher
from policies.keys import KIND, GivenKey, Keys
from policies.prompts import load_prompts
from policies.quotas_memory import MemoryQuotas
from policies.roles import ADMIN, all_roles
from retrieval.catalog import Catalog
from retrieval.embedding import Embedder
from retrieval.embedding_cache import EmbeddingCache
from retrieval.index import make_index
from retrieval.ingestion import Ingestion
from retrieval.lexical import LexicalIndex
from retrieval.search import Searcher

HOT = (CHAT, COMPLETIONS, EMBEDDINGS)

ROUTES = [
    chat, completions, embeddings, list_models, get_model, health, ready, metrics,
    create_key, list_keys, get_key, change_key, rotate_key, delete_key,
]  # fmt: skip


def create_app(
    loaded: Loaded, database: AsyncEngine, *, connect: Connect = connect, access_log: AccessLog | None = None
) -> Telemetry:
    """The ASGI application. Nothing is opened yet: that is the lifespan's.

    Raises:
        ModelFileUnusable, PromptInvalid: with everything that is missing or wrong.
    """
    services = build_services(loaded, database, connect=connect, access_log=access_log or AccessLog())
    app = Litestar(
        route_handlers=ROUTES,
        lifespan=[lifespan],
        exception_handlers={Exception: answer_failure},
        openapi_config=OpenAPIConfig(
            title="Chasqui",
            version=__version__,
            path="/schema",
            render_plugins=[SchemaPage()],
            use_handler_docstrings=True,
        ),
        logging_config=None,
        request_max_body_size=None,  # `read_body` stops at the configured limit, before anything is decoded
    )
    complete(app.openapi_schema)
    app.state.services = services
    return Telemetry(HotPath(app, HOT), services)


def build_services(loaded: Loaded, database: AsyncEngine, *, connect: Connect, access_log: AccessLog) -> Services:
    settings = loaded.settings
    meters = Metrics(
        models=[model.name for model in settings.models],
        backends=[backend.name for backend in settings.backends],
        errors=CODES,
    )
    fleet = Fleet(on_restart=meters.worker_restarted)
    backends = build_backends(
        settings.backends,
        fleet=fleet,
        home=loaded.home,
        config_dir=loaded.path.parent,
        secrets=loaded.secrets,
        connect=connect,
    )
    roles = all_roles(settings.roles)
    keys = Keys(database, roles, clock=time.time, given=given_keys(loaded))
    watcher = Watcher(database)
    watcher.on_change(KIND, keys.reload)
    journal = Journal(loaded.home / "journal")
    books = Bookkeeping(MemoryQuotas(time.monotonic), journal, meters)
    encodings = Encodings(loaded.tiktoken_dir)
    targets = build_targets(loaded, backends)
    searchers, ingestions = build_collections(loaded, database, backends)
    collections = {collection.name: collection for collection in settings.collections}
    attempts = Attempts(backends, targets, searchers, collections, books, encodings)
    cache = EmbeddingCache(database, max_bytes=settings.embedding_cache.max_mb * 2**20)
    return Services(
        database=database,
        fleet=fleet,
        backends=backends,
        keys=keys,
        roles=roles,
        watcher=watcher,
        targets=targets,
        pipeline=Pipeline(targets, attempts, books),
        embeddings=Embeddings(targets, backends, cache, books, encodings, sharing=settings.embedding_cache.sharing),
        searchers=searchers,
        ingestions=ingestions,
        journal=journal,
        access_log=access_log,
        metrics=meters,
        max_body_bytes=int(settings.server.max_body_mb * 2**20),
        created_at=int(time.time()),
    )


def build_targets(loaded: Loaded, backends: Any) -> Targets:
    settings = loaded.settings
    prompts = load_prompts(settings.prompts.paths, root=Path.cwd())
    missing = [model for model in settings.models if model.prompt and model.prompt not in prompts]
    if missing:
        raise PromptInvalid(
            "\n".join(f"model '{model.name}': no file has a prompt '{model.prompt}'" for model in missing)
        )
    return Targets(settings.models, backends, prompts)


def build_collections(
    loaded: Loaded, database: AsyncEngine, backends: Any
) -> tuple[dict[str, Searcher], dict[str, Ingestion]]:
    catalog, lexical = Catalog(database), LexicalIndex(database)
    searchers: dict[str, Searcher] = {}
    ingestions: dict[str, Ingestion] = {}
    for settings in loaded.settings.collections:
        embedder = Embedder(backends[settings.embed])
        searcher = Searcher(settings.name, catalog=catalog, embedder=embedder, lexical=lexical, index=make_index(0))
        searchers[settings.name] = searcher
        ingestions[settings.name] = Ingestion(
            settings, catalog=catalog, embedder=embedder, searcher=searcher, root=Path.cwd()
        )
    return searchers, ingestions


def given_keys(loaded: Loaded) -> list[GivenKey]:
    """Keys from the environment, the administrator's included."""
    given = [GivenKey(key.name, key.role, loaded.secrets[key.key_env]) for key in loaded.settings.keys]
    if loaded.admin_key is not None:
        given.append(GivenKey("admin", ADMIN.name, loaded.admin_key))
    return given
