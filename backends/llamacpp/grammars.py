"""What an answer has to be: JSON, JSON of a schema, or words of a grammar -> a grammar in llguidance's own form.

Made by `grammar_child.py`, in a process of its own; here is what goes there and what comes back.
"""

from typing import Any, Literal, NamedTuple

import msgspec

from backends.errors import InvalidRequest
from backends.wire import Body

MAX_BYTES = 128 * 1024
MAX_DEPTH = 64
MAX_REFERENCES = 500

WHITESPACE = r"[ \n\t]{0,20}"
"""Between the parts of JSON: as people like to see it, and never without end, which small models fall for."""

JSON_OBJECT = {"type": "object"}


class Source(NamedTuple):
    """As the client wrote it."""

    kind: Literal["schema", "gbnf", "lark"]
    text: str
    param: str
    """Of the body, for errors."""


def schema_source(schema: Any, param: str) -> Source:
    """
    Raises:
        InvalidRequest: too large, too deep, too many references.
    """
    if not isinstance(schema, dict):
        raise InvalidRequest(f"'{param}' must be a JSON schema, which is an object.", param=param)
    check_schema(schema, param)
    return Source("schema", msgspec.json.encode(schema).decode(), param)


def check_schema(schema: Any, param: str) -> None:
    """
    Raises:
        InvalidRequest
    """
    if (size := len(msgspec.json.encode(schema))) > MAX_BYTES:
        raise InvalidRequest(f"'{param}' has {size} bytes; {MAX_BYTES} at most.", param=param)
    references = 0
    level = [schema]
    for _ in range(MAX_DEPTH):
        references += sum("$ref" in one for one in level if isinstance(one, dict))
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            break
    if level:
        raise InvalidRequest(f"'{param}' is nested more than {MAX_DEPTH} levels deep.", param=param)
    if references > MAX_REFERENCES:
        raise InvalidRequest(f"'{param}' has {references} references; {MAX_REFERENCES} at most.", param=param)


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


class JsonSchema(msgspec.Struct):
    name: str
    schema: Any = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: JsonSchema | None = None


def read_format(body: Body) -> Source | None:
    """`response_format`, or llama.cpp's `grammar`.

    Raises:
        InvalidRequest
    """
    text = body.read("grammar", str, "")
    wanted = body.read("response_format", ResponseFormat)
    if wanted is None or wanted.type == "text":
        return _grammar_source(text) if text else None
    if text:
        raise InvalidRequest("'grammar' and 'response_format' exclude each other.", param="grammar")
    if wanted.type == "json_object":
        _check_json_is_named(body)
        return schema_source(JSON_OBJECT, "response_format")
    if wanted.type != "json_schema":
        raise InvalidRequest(
            "'response_format.type' is text, json_object or json_schema.", param="response_format.type"
        )
    if wanted.json_schema is None:
        where = "response_format.json_schema"
        raise InvalidRequest(f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter")
    schema = JSON_OBJECT if wanted.json_schema.schema is None else wanted.json_schema.schema
    return schema_source(schema, "response_format.json_schema.schema")


def _grammar_source(text: str) -> Source:
    if len(text.encode()) > MAX_BYTES:
        raise InvalidRequest(f"'grammar' may have {MAX_BYTES} bytes.", param="grammar")
    return Source("gbnf", text, "grammar")


def _check_json_is_named(body: Body) -> None:
    """As OpenAI does: a model that is not told of JSON and may say nothing else has nothing good to say."""
    if "messages" in body and b"json" not in msgspec.json.encode(body.read("messages", Any)).lower():
        words = "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."
        raise InvalidRequest(words, param="messages")
