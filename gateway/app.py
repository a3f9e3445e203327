"""`create_app`: the only place where services are built and joined. `lifespan.py` opens and closes what is built here."""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from litestar import Litestar
from litestar.openapi import OpenAPIConfig
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.connecting import connect
from backends.encodings import Encodings
from backends.health import Watched
from backends.llamacpp.fleet import Fleet
from backends.registry import Connect, build_backends
from gateway import __version__
from gateway.access_log import AccessLog
from gateway.addresses import Address, Addresses
from gateway.alerting import Alerting
from gateway.answer_desk import AnswerDesk
from gateway.attempts import Attempts
from gateway.bookkeeping import Bookkeeping
from gateway.cache_metrics import CacheCollector
from gateway.clock import steady_clock
from gateway.collection_desk import CollectionDesk
from gateway.database import cache_database
from gateway.embedding_files import EmbeddingFiles
from gateway.embeddings import Embeddings
from gateway.engine_metrics import EngineCollector
from gateway.errors import CODES, answer_failure
from gateway.file_desk import FileDesk
from gateway.file_shelf import FileShelf
from gateway.forwarding import Forwarding
from gateway.jobs import Jobs
from gateway.journal import Journal
from gateway.knowledge import Knowledge, build_knowledge, build_library
from gateway.ledger_writer import LedgerWriter
from gateway.lifespan import lifespan
from gateway.metrics import Metrics
from gateway.openapi import complete
from gateway.pipeline import Pipeline
from gateway.reload import Reloader
from gateway.reranking import Reranking
from gateway.retrieving import Retrieving
from gateway.routes.admin.audit import list_audit
from gateway.routes.admin.backends import clear_ram_disk, get_backend, list_backends, list_ram_disk, order_backend
from gateway.routes.admin.cache import clear_cache, list_texts, show_cache
from gateway.routes.admin.keys import change_key, create_key, delete_key, get_key, list_keys, rotate_key
from gateway.routes.admin.requests import get_request, list_requests
from gateway.routes.admin.roles import list_roles
from gateway.routes.admin.usage import get_usage
from gateway.routes.chat import CHAT, COMPLETIONS, chat, completions
from gateway.routes.embedding_files import embed_file, get_embedded_file
from gateway.routes.embeddings import EMBEDDINGS, embeddings
from gateway.routes.feedback import give_any_feedback, give_feedback
from gateway.routes.files import delete_file, get_file, get_file_content, list_files, upload_file
from gateway.routes.forwarded import forwarded
from gateway.routes.health import health, metrics, ready
from gateway.routes.hot import HotPath
from gateway.routes.models import get_model, list_models
from gateway.routes.rerank import RERANK, rerank
from gateway.routes.retrievals import get_retrieval
from gateway.routes.similarity import SIMILARITY, TEXT_SEARCH, search_texts, similarity
from gateway.routes.store_files import (
    attach_file,
    attach_files,
    cancel_batch,
    change_store_file,
    detach_file,
    get_batch,
    get_store_file,
    get_store_file_content,
    list_batch_files,
    list_store_files,
)
from gateway.routes.vector_stores import (
    change_store,
    create_store,
    delete_store,
    get_store,
    list_stores,
    rebuild_store,
    search_store,
)
from gateway.schema_page import SchemaPage
from gateway.services import House, Services
from gateway.settings import Loaded
from gateway.settings_schema import GatewaySettings, QuotaSettings
from gateway.settings_secrets import key_name
from gateway.similarity import Similarity
from gateway.targets import Targets
from gateway.telemetry import Telemetry
from gateway.text_searching import TextSearching
from policies.alerts import Alerts
from policies.answer_cache import AnswerCache
from policies.audit import Audit
from policies.errors import PromptInvalid
from policies.failed_keys import FailedKeys
from policies.feedback import Feedbacks
from policies.generations import Watcher
from policies.keys import KIND, GivenKey, Keys
from policies.ledger import Ledger
from policies.prompts import load_prompts
from policies.quotas import History, QuotaStore
from policies.quotas_guard import GuardedQuotas
from policies.quotas_memory import MemoryQuotas
from policies.reports import Reports
from policies.roles import ADMIN, Caller, Role, all_roles
from retrieval.embedding_cache import EmbeddingCache
from retrieval.parsers import Parsers
from retrieval.text_search import TextSearch
from retrieval.vector_memory import VectorMemory
from retrieval.vector_store import Limits, VectorStore

MAX_VECTORS = 1_000_000
"""In memory, however small they are."""

HOT = (CHAT, COMPLETIONS, EMBEDDINGS, RERANK, SIMILARITY, TEXT_SEARCH)

ROUTES = [
    chat, completions, embeddings, rerank, similarity, search_texts, embed_file, get_embedded_file,
    list_models, get_model, health, ready, metrics,
    upload_file, list_files, get_file, get_file_content, delete_file, get_retrieval,
    create_store, list_stores, get_store, change_store, delete_store, rebuild_store, search_store,
    attach_file, list_store_files, get_store_file, change_store_file, detach_file, get_store_file_content,
    attach_files, get_batch, cancel_batch, list_batch_files,
    create_key, list_keys, get_key, change_key, rotate_key, delete_key,
    list_backends, get_backend, order_backend, list_ram_disk, clear_ram_disk,
    show_cache, list_texts, clear_cache, list_roles, list_requests, get_request, get_usage, list_audit, give_feedback, give_any_feedback,
]  # fmt: skip


def create_app(
    loaded: Loaded,
    database: AsyncEngine,
    *,
    load: Callable[[], Loaded] | None = None,
    admin: Address | None = None,
    connect: Connect = connect,
    access_log: AccessLog | None = None,
) -> Telemetry:
    """The ASGI application. Nothing is opened yet: that is the lifespan's.

    Args:
        load: reads the configuration anew, so that a changed one can be taken over; None: this one stays.
        admin: the address that /admin is served on; None: there is only one.

    Raises:
        ModelFileUnusable, PromptInvalid: with everything that is missing or wrong.
    """
    house = build_house(loaded, database, connect=connect, access_log=access_log)
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
    served: Any = HotPath(app, HOT, forwarded)
    if admin is not None:
        served = Addresses(served, admin)
    telemetry = Telemetry(served, build_services(loaded, house))
    house.metrics.registry.register(CacheCollector(lambda: telemetry.services.cache))
    house.watcher.on_change(KIND, lambda: telemetry.services.keys.reload())  # noqa: PLW0108 - of the services in use then
    app.state.telemetry, app.state.jobs, app.state.reloader = telemetry, Jobs(), None
    app.state.alerting = build_alerting(loaded, house, lambda: telemetry.services.keys.callers)  # of those in use then
    if load is not None:
        reloader = Reloader(telemetry, app.state.jobs, load=load, build=partial(_rebuilt, house))
        app.state.reloader, telemetry.reload = reloader, reloader.reload
    return telemetry


def build_house(loaded: Loaded, database: AsyncEngine, *, connect: Connect, access_log: AccessLog | None) -> House:
    settings, metrics = loaded.settings, Metrics(errors=CODES)
    clock = steady_clock()
    journal = Journal(loaded.home / "journal", fsync=settings.ledger.fsync == "always")
    ledger = Ledger(database)
    writer = LedgerWriter(journal, ledger, settings.ledger, clock=clock)
    metrics.follow(
        "chasqui_journal_backlog_bytes", "Of the journal, not in the ledger yet.", lambda: writer.backlog_bytes
    )
    fleet = Fleet(on_restart=metrics.worker_restarted)
    metrics.registry.register(EngineCollector(lambda: fleet.members))
    return House(
        database=database,
        cache_database=cache_database(database, loaded.home),
        fleet=fleet,
        watcher=Watcher(database),
        quotas=build_quotas(loaded.settings.limits, clock, writer, metrics),
        journal=journal,
        ledger=ledger,
        writer=writer,
        failed_keys=FailedKeys(
            settings.server.failed_keys_per_minute or None, clock=time.monotonic, throttled=metrics.address_throttled
        ),
        audit=Audit(database),
        reports=Reports(database),
        feedbacks=Feedbacks(database),
        access_log=access_log or AccessLog(),
        metrics=metrics,
        connect=connect,
        library=build_library(database, loaded.home),
        parsers=Parsers(settings.files),
    )


def build_quotas(
    settings: QuotaSettings, clock: Callable[[], float], history: History, metrics: Metrics
) -> GuardedQuotas:
    store: QuotaStore = MemoryQuotas(clock, history)
    if settings.store != "memory":
        from policies.quotas_redis import RedisQuotas, client_of  # the client's import takes a while

        store = RedisQuotas(
            client_of(settings.store, timeout_s=settings.timeout_s),
            history,
            timeout_s=settings.timeout_s,
            now=clock,
            elapsed=time.monotonic,
        )
    fallback = MemoryQuotas(clock) if settings.on_store_down == "allow" else None
    return GuardedQuotas(store, fallback, counted=metrics.store_down)


def build_alerting(loaded: Loaded, house: House, callers: Callable[[], Iterable[Caller]]) -> Alerting | None:
    settings = loaded.settings.limits.alerts
    if settings is None:
        return None
    secret = loaded.secrets[settings.secret_env] if settings.secret_env is not None else None
    alerting = Alerting(settings, Alerts(house.database), house.writer, secret=secret, callers=callers, clock=time.time)
    house.writer.tell(alerting.used)
    return alerting


def build_services(loaded: Loaded, house: House, previous: Services | None = None) -> Services:
    """
    Args:
        previous: those in use; their parts whose settings are the same go on.

    Raises:
        ModelFileUnusable, PromptInvalid: with everything that is missing or wrong; nothing has changed then.
    """
    settings = loaded.settings
    backends = backends_of(loaded, house, previous)
    targets = build_targets(loaded, backends)
    roles = all_roles(settings.roles, previous.roles if previous else {})
    books = Bookkeeping(house.quotas, house.journal, house.metrics, work_ms=house.work_ms)
    encodings = Encodings(loaded.tiktoken_dir)
    before = previous.knowledge if previous else None
    knowledge = build_knowledge(settings, house.library, house.parsers, backends, before)
    retrieving = build_retrieving(settings, house, knowledge, targets, backends)
    attempts = Attempts(backends, targets, retrieving, books, encodings, house.metrics)
    cache = build_cache(loaded, house, previous)
    answers = AnswerCache(house.cache_database, settings.answer_cache)
    pipeline = Pipeline(
        targets, attempts, books, AnswerDesk(answers, backends), keepalive_s=settings.server.keepalive_s
    )
    tell_house(house, settings, backends)
    return Services(
        house=house,
        loaded=loaded,
        backends=backends,
        keys=build_keys(loaded, house, roles, previous),
        roles=roles,
        targets=targets,
        pipeline=pipeline,
        answers=answers,
        reranking=Reranking(targets, backends, books),
        **embedding_stories(loaded, house, targets, backends, cache, books, encodings),
        forwarding=Forwarding(targets, backends, books),
        knowledge=knowledge,
        retrieving=retrieving,
        collection_desk=CollectionDesk(knowledge, retrieving, books),
        file_desk=FileDesk(knowledge, books),
        cache=cache,
        max_body_bytes=int(settings.server.max_body_mb * 2**20),
        created_at=previous.created_at if previous else int(time.time()),
    )


def build_retrieving(
    settings: GatewaySettings, house: House, knowledge: Knowledge, targets: Targets, backends: Mapping[str, Watched]
) -> Retrieving:
    return Retrieving(
        knowledge.access,
        knowledge.searcher,
        house.library.retrievals,
        targets,
        backends,
        house.metrics,
        default_rewrite=settings.default_rewrite,
    )


def build_keys(loaded: Loaded, house: House, roles: Mapping[str, Role], previous: Services | None) -> Keys:
    before = previous.keys if previous else None
    return Keys(house.database, roles, clock=time.time, given=given_keys(loaded), previous=before)


class EmbeddingStories(TypedDict):
    embeddings: Embeddings
    similarity: Similarity
    text_searching: TextSearching
    embedding_files: EmbeddingFiles


def embedding_stories(
    loaded: Loaded,
    house: House,
    targets: Targets,
    backends: Mapping[str, Watched],
    cache: EmbeddingCache,
    books: Bookkeeping,
    encodings: Encodings,
) -> EmbeddingStories:
    settings = loaded.settings.embedding_cache
    embeddings = Embeddings(targets, backends, cache, books, encodings, settings)
    age_s = None if settings.max_age_days is None else settings.max_age_days * 86_400
    shelf = FileShelf(
        loaded.home / "embedding-files", max_bytes=settings.files_mb * 2**20, suffix=".zip", max_age_s=age_s
    )
    searching = TextSearching(embeddings, TextSearch(embeddings.cache), books, embeddings.settings)
    return {
        "embeddings": embeddings,
        "similarity": Similarity(embeddings, books),
        "text_searching": searching,
        "embedding_files": EmbeddingFiles(embeddings, backends, shelf, books, house.parsers),
    }


def tell_house(house: House, settings: GatewaySettings, backends: Iterable[str]) -> None:
    house.fleet.limit(settings.fleet)
    house.metrics.name(models=[model.name for model in settings.models], backends=backends)


def backends_of(loaded: Loaded, house: House, previous: Services | None) -> dict[str, Watched]:
    return build_backends(
        loaded.settings.backends,
        fleet=house.fleet,
        home=loaded.home,
        config_dir=loaded.path.parent,
        secrets=loaded.secrets,
        connect=house.connect,
        previous=previous.backends if previous else {},
    )


def _rebuilt(house: House, loaded: Loaded, previous: Services) -> Services:
    return build_services(loaded, house, previous)


def build_cache(loaded: Loaded, house: House, previous: Services | None) -> EmbeddingCache:
    settings = loaded.settings.embedding_cache
    if previous is not None and previous.loaded.settings.embedding_cache == settings:
        return previous.cache
    age_s = None if settings.max_age_days is None else int(settings.max_age_days * 86_400)
    store = VectorStore(house.cache_database, Limits(settings.max_mb * 2**20, age_s), clock=time.time)
    memory = VectorMemory(max_vectors=MAX_VECTORS, max_bytes=settings.memory_mb * 2**20)
    return EmbeddingCache(store, memory, keep_text=settings.keep_text)


def build_targets(loaded: Loaded, backends: Mapping[str, Watched]) -> Targets:
    settings = loaded.settings
    prompts = load_prompts(settings.prompts.paths, root=Path.cwd())
    missing = [model for model in settings.models if model.prompt and model.prompt not in prompts]
    if missing:
        raise PromptInvalid(
            "\n".join(f"model '{model.name}': no file has a prompt '{model.prompt}'" for model in missing)
        )
    return Targets(settings.models, backends, prompts)


def given_keys(loaded: Loaded) -> list[GivenKey]:
    """Keys from the environment, the administrator's included."""
    given = [
        GivenKey(key.name, key.role, loaded.secrets[key_name(key)], key.log_content) for key in loaded.settings.keys
    ]
    if loaded.admin_key is not None:
        given.append(GivenKey("admin", ADMIN.name, loaded.admin_key))
    return given
