"""The bodies of the vector-store API, checked as OpenAI documents them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from backends.errors import InvalidRequest

MAX_PAIRS = 16
MAX_BATCH = 2000
MIN_CHUNK, MAX_CHUNK = 100, 4096

Text512 = Annotated[str, msgspec.Meta(max_length=512)]
Days = Annotated[int, msgspec.Meta(ge=1, le=365)]


class ExpiresAfter(msgspec.Struct, forbid_unknown_fields=True):
    anchor: Literal["last_active_at"]
    days: Days


class Static(msgspec.Struct, forbid_unknown_fields=True):
    max_chunk_size_tokens: Annotated[int, msgspec.Meta(ge=MIN_CHUNK, le=MAX_CHUNK)]
    chunk_overlap_tokens: Annotated[int, msgspec.Meta(ge=0)]


class Strategy(msgspec.Struct, forbid_unknown_fields=True):
    type: Literal["auto", "static"]
    static: Static | None = None


class StoreFields(msgspec.Struct, forbid_unknown_fields=True):
    """A store to be made."""

    name: Text512 | None = None
    description: Text512 | None = None
    file_ids: list[str] = []
    chunking_strategy: Strategy | None = None
    expires_after: ExpiresAfter | None = None
    metadata: dict[str, Any] | None = None


class StoreChange(msgspec.Struct, forbid_unknown_fields=True):
    name: Text512 | msgspec.UnsetType | None = msgspec.UNSET
    description: Text512 | msgspec.UnsetType | None = msgspec.UNSET
    expires_after: ExpiresAfter | msgspec.UnsetType | None = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET


class MemberFields(msgspec.Struct, forbid_unknown_fields=True):
    file_id: str
    attributes: dict[str, Any] | None = None
    chunking_strategy: Strategy | None = None


class AttributeFields(msgspec.Struct, forbid_unknown_fields=True):
    attributes: dict[str, Any] | None


class BatchFields(msgspec.Struct, forbid_unknown_fields=True):
    file_ids: list[str] | None = None
    files: list[MemberFields] | None = None
    attributes: dict[str, Any] | None = None
    chunking_strategy: Strategy | None = None


class HybridWeights(msgspec.Struct, forbid_unknown_fields=True):
    embedding_weight: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    text_weight: Annotated[float, msgspec.Meta(ge=0)] = 1.0


class RankingOptions(msgspec.Struct, forbid_unknown_fields=True):
    ranker: str | None = None
    score_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    hybrid_search: HybridWeights | None = None


class SearchFields(msgspec.Struct, forbid_unknown_fields=True):
    query: str | list[str]
    filters: dict[str, Any] | None = None
    max_num_results: Annotated[int, msgspec.Meta(ge=1, le=50)] = 10
    ranking_options: RankingOptions | None = None
    rewrite_query: bool | None = None
    retrieval: dict[str, Any] | None = None


def chunking_of(strategy: Strategy | None) -> dict[str, Any]:
    """As it is stored.

    Raises:
        InvalidRequest
    """
    if strategy is None or strategy.type == "auto":
        if strategy is not None and strategy.static is not None:
            raise InvalidRequest("a strategy of type 'auto' has no 'static'.", param="chunking_strategy.static")
        return {"type": "auto"}
    if strategy.static is None:
        raise InvalidRequest("a strategy of type 'static' needs 'static'.", param="chunking_strategy.static")
    if strategy.static.chunk_overlap_tokens > strategy.static.max_chunk_size_tokens // 2:
        raise InvalidRequest(
            "'chunk_overlap_tokens' is at most half of 'max_chunk_size_tokens'.",
            param="chunking_strategy.static.chunk_overlap_tokens",
        )
    return {"type": "static", "static": msgspec.to_builtins(strategy.static)}


def attributes_of(given: Mapping[str, Any] | None, *, param: str = "attributes") -> dict[str, Any]:
    """
    Raises:
        InvalidRequest: too many, too long, or of another type than a string, a number or a boolean.
    """
    checked = _pairs(given, param)
    for name, value in checked.items():
        if not isinstance(value, str | int | float | bool) or (isinstance(value, str) and len(value) > 512):
            raise InvalidRequest(
                f"'{param}.{name[:64]}' must be a string of at most 512 characters, a number or a boolean.", param=param
            )
    return checked


def metadata_of(given: Mapping[str, Any] | None) -> dict[str, str]:
    """
    Raises:
        InvalidRequest
    """
    checked = _pairs(given, "metadata")
    for name, value in checked.items():
        if not isinstance(value, str) or len(value) > 512:
            raise InvalidRequest(
                f"'metadata.{name[:64]}' must be a string of at most 512 characters.", param="metadata"
            )
    return checked


def _pairs(given: Mapping[str, Any] | None, param: str) -> dict[str, Any]:
    given = given or {}
    if len(given) > MAX_PAIRS:
        raise InvalidRequest(f"'{param}' has {len(given)} pairs; {MAX_PAIRS} at most.", param=param)
    for name in given:
        if not 1 <= len(name) <= 64:
            raise InvalidRequest(f"a key of '{param}' has 1 to 64 characters.", param=param)
    return {_plain(name): _plain(value) if isinstance(value, str) else value for name, value in given.items()}


def _plain(text: str) -> str:
    """What a database has no place for is left out."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def members_of(fields: BatchFields) -> Sequence[MemberFields]:
    """
    Raises:
        InvalidRequest
    """
    if (fields.file_ids is None) == (fields.files is None):
        raise InvalidRequest("give either 'file_ids' or 'files'.", param="file_ids")
    if fields.files is not None:
        if fields.attributes is not None or fields.chunking_strategy is not None:
            raise InvalidRequest(
                "with 'files', attributes and chunking strategy belong to each of them.", param="files"
            )
        members = fields.files
    else:
        members = [MemberFields(id_, fields.attributes, fields.chunking_strategy) for id_ in fields.file_ids or []]
    if not 1 <= len(members) <= MAX_BATCH:
        raise InvalidRequest(f"a batch has 1 to {MAX_BATCH} files, this one has {len(members)}.", param="file_ids")
    return members
