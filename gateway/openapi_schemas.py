"""The bodies that /schema describes: plain data in OpenAPI 3.1's own words."""

from typing import Any

import msgspec

from gateway.routes.admin.backends import Order as BackendOrder
from gateway.routes.admin.keys import KeyFields
from gateway.routes.feedback import FeedbackFields
from policies.settings import LimitSettings
from retrieval.frames import ORIENTATIONS

Schema = dict[str, Any]

JSON = "application/json"
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}


def record(required: str = "", **fields: Schema) -> Schema:
    """An object with these fields and any others."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": True}


def listed(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


def optional(schema: Schema, words: str) -> Schema:
    """As OpenAI: an explicit null is as good as none."""
    return {"description": words, "anyOf": [schema, {"type": "null"}]}


def named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def whole(low: int | None = None, high: int | None = None) -> Schema:
    return {"type": "integer"} | _range(low, high)


def number(low: float, high: float) -> Schema:
    return {"type": "number"} | _range(low, high)


def _range(low: float | None, high: float | None) -> Schema:
    return {name: bound for name, bound in (("minimum", low), ("maximum", high)) if bound is not None}


# --- What comes in --------------------------------------------------------------------------------------------------

TEXT_PART = record("type text", type={"const": "text"}, text=TEXT)
OTHER_PART = record("type", type=TEXT) | {
    "description": "Images and the like, for an upstream; local models read text."
}
CONTENT: Schema = {"anyOf": [TEXT, listed({"anyOf": [TEXT_PART, OTHER_PART]})]}

MESSAGE: Schema = {
    "anyOf": [
        record("role content", role={"enum": ["system", "developer", "user", "tool", "function"]}, content=CONTENT),
        record("role", role={"const": "assistant"}, content=optional(CONTENT, "None where it calls tools.")),
    ]
}

PROMPT_CALL: Schema = {
    "type": "object",
    "properties": {
        "id": TEXT,
        "version": {"type": ["integer", "string"]},
        "variables": {"type": "object", "additionalProperties": True},
    },
    "additionalProperties": False,
}

BIASES = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
    "additionalProperties": number(-100, 100),
}

GENERATION: dict[str, Schema] = {
    "model": {**TEXT, "description": "Any name of `GET /v1/models`.", "examples": ["guide"]},
    "stream": optional(FLAG, "Events as they come, `data: …` each, the last one `[DONE]`."),
    "stream_options": optional(record(include_usage=FLAG), "Only with `stream`."),
    "max_tokens": optional(whole(1), "Of the answer."),
    "n": optional(whole(1, 128), "How many answers."),
    "stop": optional({"anyOf": [TEXT, listed(TEXT, maxItems=4)]}, "The answer ends before these."),
    "seed": optional(whole(), "The same seed and request give the same answer, as far as the backend can."),
    "temperature": optional(number(0, 2), "0: always the likeliest token."),
    "top_p": optional(number(0, 1), "Only the likeliest tokens that add up to this."),
    "presence_penalty": optional(number(-2, 2), "Against tokens that are there already."),
    "frequency_penalty": optional(number(-2, 2), "The same, by how often."),
    "logit_bias": optional(BIASES, "Token id to bias."),
    "top_k": optional(whole(0), "llama.cpp's; 0 is off."),
    "min_p": optional(number(0, 1), "llama.cpp's; 0 is off."),
    "repeat_penalty": optional(number(0.01, 10), "llama.cpp's; 1 is off."),
}
"""Ranges are OpenAI's. Local models hold clients to them; what goes to an upstream is for that to judge."""

RETRIEVAL: Schema = record(
    "",
    top_k=whole(1, 50), max_context_tokens=whole(64), mode={"enum": ["hybrid", "dense", "lexical"]},
    min_score=number(0, 1), candidates=whole(1, 200), neighbours=whole(0, 5), keep_previous=whole(0, 20),
    citations={"enum": ["markers", "sources", "none"]}, rewrite=FLAG, rerank=FLAG, filters={"type": "object"},
) | {"additionalProperties": False}  # fmt: skip

CHAT = record(
    "model messages",
    **GENERATION,
    messages=listed(MESSAGE, minItems=1),
    max_completion_tokens=optional(whole(1), "Beats `max_tokens`."),
    prompt=optional(PROMPT_CALL, "For models with a template: what to fill in."),
    collections=optional(
        listed(TEXT, maxItems=16), "Vector stores that the answer is to come from, beside the model's own."
    ),
    retrieval=optional(RETRIEVAL, "How they are searched, where the model's own settings will not do."),
    include=optional(listed({"const": "retrieval"}), "`retrieval`: the passages are in the answer, too."),
) | {"examples": [{"model": "guide", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 60}]}

IDS = listed(COUNT, minItems=1)

COMPLETION = record(
    "model", **GENERATION, prompt=optional({"anyOf": [TEXT, listed(TEXT), IDS, listed(IDS)]}, "Text or token ids.")
) | {"examples": [{"model": "guide", "prompt": "The messenger ran", "max_tokens": 16}]}

INPUT: Schema = {**TEXT, "minLength": 1}

EMBEDDING = record(
    "model input",
    model=GENERATION["model"],
    input={"anyOf": [INPUT, listed(INPUT, minItems=1, maxItems=2048), IDS, listed(IDS, minItems=1, maxItems=2048)]},
    encoding_format=optional({"enum": ["float", "base64"]}, "`float` where it is not given."),
) | {"examples": [{"model": "text-embedding-3-small", "input": ["a messenger", "a road"]}]}

STRINGS = listed(INPUT, minItems=1, maxItems=2048)
SIMILARITY = record(
    "model",
    model=GENERATION["model"],
    input=optional(STRINGS, "Each with each."),
    pairs=optional(listed(listed(INPUT, minItems=2, maxItems=2), minItems=1, maxItems=1024), "The two of each."),
    metric=optional({"enum": ["cosine", "dot", "euclidean"]}, "`cosine` where it is not given."),
) | {"examples": [{"model": "text-embedding-3-small", "input": ["a messenger", "a road"]}]}
TEXT_SEARCH = record(
    "model query", model=GENERATION["model"], query=INPUT, k=optional(whole(1, 1000), "10 where it is not given.")
) | {"examples": [{"model": "text-embedding-3-small", "query": "who runs", "k": 5}]}

BINARY: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}
ORIENTATION: Schema = {"enum": [*ORIENTATIONS, "parquet"]}
EMBEDDING_FILE = record("file model", file=BINARY, model=GENERATION["model"], json_format=ORIENTATION)

DOCUMENT: Schema = {"anyOf": [TEXT, record("text", text=TEXT)]}
RERANK = record(
    "model query documents",
    model=GENERATION["model"],
    query=TEXT,
    documents=listed(DOCUMENT, minItems=1, maxItems=10_000),
    top_n=optional(whole(1), "How many to tell; all where it is not given."),
    return_documents=optional(FLAG, "With their texts."),
) | {"examples": [{"model": "reranker", "query": "Who runs?", "documents": ["A messenger runs.", "A stone lies."]}]}

KEY_FIELDS: Schema = msgspec.json.schema_components([KeyFields])[1]["KeyFields"]
KEY_FIELDS["properties"]["limits"] = listed(LimitSettings.model_json_schema())
KEY_EXAMPLE = {"name": "reports", "limits": [{"per": "1h", "requests": 1000}], "models": ["guide"]}

KEY_CREATION = KEY_FIELDS | {"required": ["name"], "examples": [KEY_EXAMPLE]}
KEY_CHANGE = KEY_FIELDS | {"examples": [{"disabled": True}]}

# --- What goes out --------------------------------------------------------------------------------------------------

USAGE = record("prompt_tokens total_tokens", prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT)


def generated(kind: str, choice: Schema) -> Schema:
    return record(
        "choices", id=TEXT, object={**TEXT, "examples": [kind]}, created=COUNT, model=TEXT, usage=USAGE,
        choices=listed(choice),
    )  # fmt: skip


FINISH: Schema = {"type": ["string", "null"]}
CHAT_ANSWER = generated("chat.completion", record("index", index=COUNT, message=record("role"), finish_reason=FINISH))
COMPLETION_ANSWER = generated("text_completion", record("index", index=COUNT, text=TEXT, finish_reason=FINISH))

EVENT = record("data", data=TEXT) | {"description": "Where the body says `stream`: a chunk as JSON, at last `[DONE]`."}

VECTOR = record("embedding index", embedding={"anyOf": [listed({"type": "number"}), TEXT]}, index=COUNT)
EMBEDDING_ANSWER = record("data model usage", object={"const": "list"}, data=listed(VECTOR), model=TEXT, usage=USAGE)

RANKED = record(
    "index relevance_score", index=COUNT, relevance_score={"type": "number"}, document=record("text", text=TEXT)
)
RERANK_ANSWER = record("results", model=TEXT, results=listed(RANKED), usage=USAGE)

NUMBERS = listed({"type": "number"})
SIMILARITY_ANSWER = record(
    "object model metric similarities usage", object={"const": "similarity"}, model=TEXT, metric=TEXT, usage=USAGE,
    similarities={"anyOf": [listed(NUMBERS), NUMBERS], "description": "A matrix for `input`, a list for `pairs`."},
)  # fmt: skip
TEXT_MATCH = record(
    "index text score", object={"const": "embedding.match"}, index=COUNT, text=TEXT, score={"type": "number"}
)
TEXT_MATCHES = record("object data usage", object={"const": "list"}, data=listed(TEXT_MATCH), model=TEXT, usage=USAGE)

MODEL = record("id object", id=TEXT, object={"const": "model"}, created=COUNT, owned_by=TEXT)
MODELS = record("object data", object={"const": "list"}, data=listed(MODEL))

TIME: Schema = {"type": ["integer", "null"], "description": "Unix seconds."}
GLOBS: Schema = {"type": ["array", "null"], "items": TEXT}
KEY = record(
    "id object name role", id=TEXT, object={"const": "key"}, name=TEXT, role=TEXT, disabled=FLAG, created_at=COUNT,
    expires_at=TIME, limits=listed({"type": "object"}), models=GLOBS, collections=GLOBS, prompts=GLOBS, paths=GLOBS,
    metadata={"type": "object"}, log_content={"enum": ["on", "off"]}, key={**TEXT, "description": "From create and rotate only."},
)  # fmt: skip
KEYS = record("object data has_more", object={"const": "list"}, data=listed(named("Key")), has_more=FLAG)
KEY_REMOVED = record("id deleted", id=TEXT, object={"const": "key.deleted"}, deleted={"const": True})

ROLE = record("id object name", id=TEXT, object={"const": "role"}, name=TEXT, limits=listed({"type": "object"}))
AMOUNT: Schema = {"type": "number", "minimum": 0}
SPENT = {"cost_usd": AMOUNT, "compute_s": AMOUNT}
CONTENT_KEPT: Schema = {"anyOf": [record("request answer", request=TEXT, answer=TEXT), {"type": "null"}]}
FEEDBACK_KEPT: Schema = {"anyOf": [record("stars text", stars=whole(1, 5), text=TEXT), {"type": "null"}]}
FINISHED = record(
    "id object created_at key model status outcome usage", id=TEXT, object={"const": "request"}, created_at=COUNT, key=TEXT,
    role=TEXT, model=TEXT, backend=TEXT, operation=TEXT, stream=FLAG, attempts=COUNT, status=COUNT, outcome=TEXT,
    usage=USAGE, **SPENT, queue_ms=COUNT, first_byte_ms={"type": ["integer", "null"]}, total_ms=COUNT,
    tags=listed(TEXT), content=CONTENT_KEPT, feedback=FEEDBACK_KEPT,
)  # fmt: skip
SUMS = record(
    "requests", requests=COUNT, refused=COUNT, failed=COUNT, prompt_tokens=COUNT, completion_tokens=COUNT,
    cached_tokens=COUNT, total_tokens=COUNT, **SPENT,
)  # fmt: skip
CHANGE = record(
    "id object actor action object_id", id=TEXT, object={"const": "audit"}, created_at=COUNT, actor=TEXT, action=TEXT,
    object_id=TEXT, details={"type": "object"},
)  # fmt: skip
WORKER: Schema = {"anyOf": [{"type": "object"}, {"type": "null"}]}
CACHE_MODEL = record(
    "id object vectors bytes hits misses", id=TEXT, object={"const": "cache.model"}, vectors=COUNT, bytes=COUNT, hits=COUNT,
    misses=COUNT, oldest_at=TIME, newest_at=TIME,
)  # fmt: skip
CACHE_TEXT = record(
    "id owner model text created_at",
    id=TEXT,
    object={"const": "cache.text"},
    owner=TEXT,
    model=TEXT,
    text=TEXT,
    created_at=COUNT,
)
BACKEND = record(
    "id object status", id=TEXT, object={"const": "backend"}, status=TEXT, local=FLAG, in_flight=COUNT, waiting=COUNT,
    latency_ms={"type": ["number", "null"]}, worker=WORKER,
)  # fmt: skip
BACKEND_ORDER = msgspec.json.schema_components([BackendOrder])[1]["Order"] | {
    "examples": [{"action": "swap", "model": "models/other.gguf"}]
}
STAGED = record("id bytes", id=TEXT, object={"const": "ram_disk.file"}, bytes=COUNT)
FEEDBACK_GIVEN = msgspec.json.schema_components([FeedbackFields])[1]["FeedbackFields"] | {
    "examples": [{"request_id": "req_0123456789abcdef0123456789abcdef", "stars": 5, "text": "To the point."}]
}
FEEDBACK = record(
    "object request_id stars", object={"const": "feedback"}, request_id=TEXT, stars=whole(1, 5), text=TEXT
)


def paged(items: str) -> Schema:
    return record("object data has_more", object={"const": "list"}, data=listed(named(items)), has_more=FLAG)


HEALTH = record("status version", status={"const": "ok"}, version=TEXT)
STATES: Schema = {"type": "object", "additionalProperties": TEXT}
READY = record(
    "status",
    status={"enum": ["ready", "degraded", "unavailable"]},
    store=TEXT,
    limits=TEXT,
    backends=STATES,
    collections=STATES,
)

NULLABLE: Schema = {"type": ["string", "null"]}
ERROR_FIELDS = {"message": TEXT, "type": TEXT, "param": NULLABLE, "code": TEXT}
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": ERROR_FIELDS,
            "required": list(ERROR_FIELDS),
            "additionalProperties": False,
        }
    },
    "required": ["error"],
    "additionalProperties": False,
}

COMPONENTS: dict[str, Schema] = {
    "Audit": paged("Change"),
    "Backend": BACKEND,
    "BackendOrder": BACKEND_ORDER,
    "Backends": paged("Backend"),
    "Change": CHANGE,
    "CacheDeleted": record("object vectors", object={"const": "cache.deleted"}, vectors=COUNT),
    "CacheModel": CACHE_MODEL,
    "CacheModels": paged("CacheModel"),
    "CacheText": CACHE_TEXT,
    "CacheTexts": paged("CacheText"),
    "Chat": CHAT,
    "ChatAnswer": CHAT_ANSWER,
    "Completion": COMPLETION,
    "CompletionAnswer": COMPLETION_ANSWER,
    "Embedding": EMBEDDING,
    "EmbeddingFile": EMBEDDING_FILE,
    "ZipFile": {"type": "string", "contentMediaType": "application/zip"},
    "EmbeddingAnswer": EMBEDDING_ANSWER,
    "Error": ERROR,
    "Feedback": FEEDBACK,
    "FeedbackGiven": FEEDBACK_GIVEN,
    "FinishedRequest": FINISHED,
    "Health": HEALTH,
    "Key": KEY,
    "KeyChange": KEY_CHANGE,
    "KeyCreation": KEY_CREATION,
    "KeyRemoved": KEY_REMOVED,
    "Keys": KEYS,
    "Model": MODEL,
    "Models": MODELS,
    "RamDisk": record("object data", object={"const": "list"}, data=listed(STAGED)),
    "Ready": READY,
    "Requests": paged("FinishedRequest"),
    "Rerank": RERANK,
    "RerankAnswer": RERANK_ANSWER,
    "Role": ROLE,
    "Roles": paged("Role"),
    "Similarity": SIMILARITY,
    "SimilarityAnswer": SIMILARITY_ANSWER,
    "Sums": SUMS,
    "TextMatches": TEXT_MATCHES,
    "TextSearch": TEXT_SEARCH,
    "Usage": record("object data", object={"const": "list"}, data=listed(named("Sums"))),
}
