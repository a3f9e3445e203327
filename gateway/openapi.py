"""What /schema says of each operation beyond what the framework reads off the handlers: bodies, answers, errors, the key.

The hot routes read their bodies as bytes, and every error has OpenAI's shape, so the framework can know neither. `complete`
puts the words of `openapi_schemas.py` into the generated document.
"""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, NamedTuple

from litestar.openapi.spec import OpenAPI, Operation

from gateway.openapi_collections import COMPONENTS as COLLECTIONS
from gateway.openapi_schemas import COMPONENTS, EVENT, JSON, Schema, named

METHODS = ("get", "post", "patch", "delete", "head")

ANYWHERE = (400, 431, 500)
KEYED = (401, 403, 404)
BODIED = (408, 413)
STORED = (503,)
ENGINES = (409, 422, 429, 502, 503, 504)
"""409 and 422 are an upstream's own, passed on."""


class Words(NamedTuple):
    """`answer` and `body` name components; no answer: the framework's description of it is right."""

    answer: str | None
    errors: tuple[int, ...]
    body: str | None = None
    streams: bool = False
    sheets: bool = False
    keyed: bool = True
    form: bool = False
    """The body is multipart."""
    zips: bool = False


GENERATES = KEYED + BODIED + ENGINES
ADMINISTERS = KEYED + STORED

OPERATIONS: dict[tuple[str, str], Words] = {
    ("post", "/v1/chat/completions"): Words("ChatAnswer", GENERATES, "Chat", streams=True),
    ("post", "/v1/completions"): Words("CompletionAnswer", GENERATES, "Completion", streams=True),
    ("post", "/v1/embeddings"): Words("EmbeddingAnswer", GENERATES, "Embedding"),
    ("post", "/v1/rerank"): Words("RerankAnswer", GENERATES, "Rerank"),
    ("post", "/v1/similarity"): Words("SimilarityAnswer", GENERATES, "Similarity"),
    ("post", "/v1/embeddings/files"): Words("ZipFile", GENERATES, "EmbeddingFile", form=True, zips=True),
    ("get", "/v1/embeddings/files/{file_id}"): Words(None, ADMINISTERS),
    ("post", "/v1/embeddings/search"): Words("TextMatches", GENERATES, "TextSearch"),
    ("get", "/v1/models"): Words("Models", KEYED),
    ("get", "/v1/models/{model_id}"): Words("Model", KEYED),
    ("get", "/admin/keys"): Words("Keys", ADMINISTERS),
    ("post", "/admin/keys"): Words("Key", ADMINISTERS + BODIED, "KeyCreation"),
    ("get", "/admin/keys/{key_id}"): Words("Key", ADMINISTERS),
    ("patch", "/admin/keys/{key_id}"): Words("Key", ADMINISTERS + BODIED, "KeyChange"),
    ("delete", "/admin/keys/{key_id}"): Words("KeyRemoved", ADMINISTERS),
    ("post", "/admin/keys/{key_id}/rotate"): Words("Key", ADMINISTERS),
    ("get", "/admin/backends"): Words("Backends", ADMINISTERS),
    ("get", "/admin/backends/{name}"): Words("Backend", ADMINISTERS),
    ("post", "/admin/backends/{name}"): Words("Backend", ADMINISTERS + BODIED, "BackendOrder"),
    ("get", "/admin/cache"): Words("CacheModels", ADMINISTERS),
    ("get", "/admin/cache/texts"): Words("CacheTexts", ADMINISTERS),
    ("delete", "/admin/cache"): Words("CacheDeleted", ADMINISTERS),
    ("get", "/admin/ram-disk"): Words("RamDisk", ADMINISTERS),
    ("delete", "/admin/ram-disk"): Words("RamDisk", ADMINISTERS),
    ("get", "/admin/roles"): Words("Roles", ADMINISTERS),
    ("get", "/admin/requests"): Words("Requests", ADMINISTERS),
    ("get", "/admin/requests/{request_id}"): Words("FinishedRequest", ADMINISTERS),
    ("get", "/admin/usage"): Words("Usage", ADMINISTERS, sheets=True),
    ("get", "/admin/audit"): Words("Audit", ADMINISTERS),
    ("post", "/admin/feedback"): Words("Feedback", ADMINISTERS + BODIED, "FeedbackGiven"),
    ("post", "/v1/feedback"): Words("Feedback", ADMINISTERS + BODIED, "FeedbackGiven"),
    ("get", "/health"): Words("Health", (), keyed=False),
    ("head", "/health"): Words(None, (), keyed=False),
    ("get", "/health/ready"): Words("Ready", STORED, keyed=False),
    ("head", "/health/ready"): Words(None, STORED, keyed=False),
    ("get", "/metrics"): Words(None, (), keyed=False),
}

STORE = "/v1/vector_stores/{vector_store_id}"
FILE = STORE + "/files/{file_id}"
BATCH = STORE + "/file_batches/{batch_id}"
READS = KEYED + STORED
CHANGES = READS + BODIED

OPERATIONS |= {
    ("post", "/v1/files"): Words("File", (*CHANGES, 429), "FileUpload", form=True),
    ("get", "/v1/files"): Words("Files", READS),
    ("get", "/v1/files/{file_id}"): Words("File", READS),
    ("get", "/v1/files/{file_id}/content"): Words(None, READS),
    ("delete", "/v1/files/{file_id}"): Words("Deleted", READS),
    ("post", "/v1/vector_stores"): Words("Store", CHANGES, "StoreFields"),
    ("get", "/v1/vector_stores"): Words("Stores", READS),
    ("get", STORE): Words("Store", READS),
    ("post", STORE): Words("Store", CHANGES, "StoreChange"),
    ("delete", STORE): Words("Deleted", READS),
    ("post", STORE + "/reindex"): Words("Store", CHANGES),
    ("post", STORE + "/search"): Words("Matches", GENERATES, "SearchFields"),
    ("post", STORE + "/files"): Words("StoreFile", CHANGES, "MemberFields"),
    ("get", STORE + "/files"): Words("StoreFiles", READS),
    ("get", FILE): Words("StoreFile", READS),
    ("post", FILE): Words("StoreFile", CHANGES, "AttributeFields"),
    ("delete", FILE): Words("Deleted", READS),
    ("get", FILE + "/content"): Words("StoreContent", READS),
    ("post", STORE + "/file_batches"): Words("Batch", CHANGES, "BatchFields"),
    ("get", BATCH): Words("Batch", READS),
    ("post", BATCH + "/cancel"): Words("Batch", CHANGES),
    ("get", BATCH + "/files"): Words("StoreFiles", READS),
    ("get", "/v1/retrievals/{retrieval_id}"): Words("Retrieval", READS),
}

PARAMETERS = {
    "model_id": "A name of `GET /v1/models`; slashes in it are taken as they are.",
    "file_id": "As its making has told.",
    "vector_store_id": "Its id; of a collection of the configuration, its name does as well.",
    "batch_id": "As its making has told.",
    "retrieval_id": "An answer's `x-chasqui-retrieval`.",
    "before": "The first `id` of the page behind.",
    "filter": "Only those in this state.",
    "purpose": "Only those that were uploaded for it.",
    "key_id": "The key's `id`, which is not the key.",
    "name": "A backend's; slashes in it are taken as they are.",
    "owner": "`role:…` or `key:…`: who may search the text.",
    "prefix": "The beginning of a kept text.",
    "older_than_s": "Seconds since it was made.",
    "everything": "No filter is an error without it.",
    "limit": "Entries of one page.",
    "request_id": "The answer's `x-request-id`.",
    "object_id": "Of one key only: its `id`.",
    "order": "`desc`: newest first.",
    "key": "A key's `id`; not the key.",
    "role": "The role that the key had then.",
    "model": "As the client named it.",
    "backend": "Who answered.",
    "user": "Whom the client said that it was for.",
    "tag": "One of the request's `metadata.tags`.",
    "format": "`json` or `csv`.",
    "since": "Unix seconds.",
    "until": "Unix seconds; what is at that moment is not in it.",
    "status": "What the client was told; 499: it left; 0: the gateway died.",
    "outcome": "complete, failed, broken, client_left or crashed.",
    "group_by": "Of key, role, model, backend, hour, day, user, tag; with commas between them.",
    "after": "The last `id` of the page before.",
}

SECURITY: Schema = {"key": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer sk-…`"}}


def complete(document: OpenAPI) -> None:
    """Fills in what `OPERATIONS` knows; an operation that it does not name stays as it was generated."""
    components: Any = document.components
    components.schemas = {**(components.schemas or {}), **COMPONENTS, **COLLECTIONS}
    components.security_schemes = SECURITY
    for path, item in (document.paths or {}).items():
        for method in METHODS:
            operation, words = getattr(item, method), OPERATIONS.get((method, path))
            if operation is not None and words is not None:
                _complete(operation, words, head=method == "head")


def _complete(operation: Operation, words: Words, *, head: bool) -> None:
    filled: Any = operation  # Litestar's own classes and plain data are written out alike
    if words.keyed:
        filled.security = [{"key": []}]
    if words.body:
        kind = "multipart/form-data" if words.form else JSON
        filled.request_body = {"required": True, "content": {kind: {"schema": named(words.body)}}}
    for parameter in filled.parameters or ():
        parameter.description = PARAMETERS.get(parameter.name)
    success = {status: answer for status, answer in filled.responses.items() if int(status) < 300}
    if words.answer is not None:
        for answer in success.values():
            answer.content = dict(_contents(words.answer, words))
    filled.responses = success | {
        str(status): _failure(status, head=head) for status in sorted({*ANYWHERE, *words.errors})
    }


def _contents(name: str, words: Words) -> Iterator[tuple[str, Schema]]:
    yield "application/zip" if words.zips else JSON, {"schema": named(name)}
    if words.zips:
        yield "text/event-stream", {"schema": EVENT}
    if words.sheets:
        yield "text/csv", {"schema": {"type": "string"}}
    if words.streams:
        yield "text/event-stream", {"schema": EVENT}  # in OpenAPI 3.1 this is the schema of each event


def _failure(status: int, *, head: bool) -> Schema:
    words = HTTPStatus(status).phrase
    return {"description": words} if head else {"description": words, "content": {JSON: {"schema": named("Error")}}}
