"""What /schema says of each operation beyond what the framework reads off the handlers: bodies, answers, errors, the key.

The hot routes read their bodies as bytes, and every error has OpenAI's shape, so the framework can know neither. Plain
data in OpenAPI 3.1's own words; `complete` puts it into the generated document.
"""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from litestar.openapi.spec import OpenAPI, Operation

from gateway.routes.admin.keys import KeyFields
from policies.settings import LimitSettings

Schema = dict[str, Any]

JSON = "application/json"
METHODS = ("get", "post", "patch", "delete", "head")

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

CHAT = record(
    "model messages",
    **GENERATION,
    messages=listed(MESSAGE, minItems=1),
    max_completion_tokens=optional(whole(1), "Beats `max_tokens`."),
    prompt=optional(PROMPT_CALL, "For models with a template: what to fill in."),
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

MODEL = record("id object", id=TEXT, object={"const": "model"}, created=COUNT, owned_by=TEXT)
MODELS = record("object data", object={"const": "list"}, data=listed(MODEL))

TIME: Schema = {"type": ["integer", "null"], "description": "Unix seconds."}
GLOBS: Schema = {"type": ["array", "null"], "items": TEXT}
KEY = record(
    "id object name role", id=TEXT, object={"const": "key"}, name=TEXT, role=TEXT, disabled=FLAG, created_at=COUNT,
    expires_at=TIME, limits=listed({"type": "object"}), models=GLOBS, collections=GLOBS, prompts=GLOBS, paths=GLOBS,
    metadata={"type": "object"}, key={**TEXT, "description": "The secret, from create and rotate only."},
)  # fmt: skip
KEYS = record("object data has_more", object={"const": "list"}, data=listed(named("Key")), has_more=FLAG)
KEY_REMOVED = record("id deleted", id=TEXT, object={"const": "key.deleted"}, deleted={"const": True})

HEALTH = record("status version", status={"const": "ok"}, version=TEXT)
STATES: Schema = {"type": "object", "additionalProperties": TEXT}
READY = record(
    "status", status={"enum": ["ready", "degraded", "unavailable"]}, store=TEXT, backends=STATES, collections=STATES
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
    "Chat": CHAT,
    "ChatAnswer": CHAT_ANSWER,
    "Completion": COMPLETION,
    "CompletionAnswer": COMPLETION_ANSWER,
    "Embedding": EMBEDDING,
    "EmbeddingAnswer": EMBEDDING_ANSWER,
    "Error": ERROR,
    "Health": HEALTH,
    "Key": KEY,
    "KeyChange": KEY_CHANGE,
    "KeyCreation": KEY_CREATION,
    "KeyRemoved": KEY_REMOVED,
    "Keys": KEYS,
    "Model": MODEL,
    "Models": MODELS,
    "Ready": READY,
}

# --- The operations -------------------------------------------------------------------------------------------------

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
    keyed: bool = True


GENERATES = KEYED + BODIED + ENGINES
ADMINISTERS = KEYED + STORED

OPERATIONS: dict[tuple[str, str], Words] = {
    ("post", "/v1/chat/completions"): Words("ChatAnswer", GENERATES, "Chat", streams=True),
    ("post", "/v1/completions"): Words("CompletionAnswer", GENERATES, "Completion", streams=True),
    ("post", "/v1/embeddings"): Words("EmbeddingAnswer", GENERATES, "Embedding"),
    ("get", "/v1/models"): Words("Models", KEYED),
    ("get", "/v1/models/{model_id}"): Words("Model", KEYED),
    ("get", "/admin/keys"): Words("Keys", ADMINISTERS),
    ("post", "/admin/keys"): Words("Key", ADMINISTERS + BODIED, "KeyCreation"),
    ("get", "/admin/keys/{key_id}"): Words("Key", ADMINISTERS),
    ("patch", "/admin/keys/{key_id}"): Words("Key", ADMINISTERS + BODIED, "KeyChange"),
    ("delete", "/admin/keys/{key_id}"): Words("KeyRemoved", ADMINISTERS),
    ("post", "/admin/keys/{key_id}/rotate"): Words("Key", ADMINISTERS),
    ("get", "/health"): Words("Health", (), keyed=False),
    ("head", "/health"): Words(None, (), keyed=False),
    ("get", "/health/ready"): Words("Ready", STORED, keyed=False),
    ("head", "/health/ready"): Words(None, STORED, keyed=False),
    ("get", "/metrics"): Words(None, (), keyed=False),
}

PARAMETERS = {
    "model_id": "A name of `GET /v1/models`; slashes in it are taken as they are.",
    "key_id": "The key's `id`, which is not the key.",
    "limit": "Keys of one page.",
    "after": "The last `id` of the page before.",
}

SECURITY: Schema = {"key": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer sk-…`"}}


def complete(document: OpenAPI) -> None:
    """Fills in what `OPERATIONS` knows; an operation that it does not name stays as it was generated."""
    components: Any = document.components
    components.schemas = {**(components.schemas or {}), **COMPONENTS}
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
        filled.request_body = {"required": True, "content": {JSON: {"schema": named(words.body)}}}
    for parameter in filled.parameters or ():
        parameter.description = PARAMETERS.get(parameter.name)
    success = {status: answer for status, answer in filled.responses.items() if int(status) < 300}
    if words.answer is not None:
        for answer in success.values():
            answer.content = dict(_contents(words.answer, streams=words.streams))
    filled.responses = success | {
        str(status): _failure(status, head=head) for status in sorted({*ANYWHERE, *words.errors})
    }


def _contents(name: str, *, streams: bool) -> Iterator[tuple[str, Schema]]:
    yield JSON, {"schema": named(name)}
    if streams:
        yield "text/event-stream", {"schema": EVENT}  # in OpenAPI 3.1 this is the schema of each event


def _failure(status: int, *, head: bool) -> Schema:
    words = HTTPStatus(status).phrase
    return {"description": words} if head else {"description": words, "content": {JSON: {"schema": named("Error")}}}
