"""Collections, their files and batches, uploads and what is found, as OpenAI's API shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from retrieval.building import chunk_settings
from retrieval.catalog import Member, Stored
from retrieval.documents import Chunk
from retrieval.files import Uploaded
from retrieval.search import Found


def store_object(stored: Stored, counts: Mapping[str, int], usage_bytes: int) -> dict[str, Any]:
    after = None if stored.expires_days is None else {"anchor": "last_active_at", "days": stored.expires_days}
    return {
        "id": stored.public_id,
        "object": "vector_store",
        "created_at": stored.created_at,
        "name": stored.name,
        "description": stored.description or None,
        "usage_bytes": usage_bytes,
        "file_counts": counts_object(counts),
        "status": "in_progress" if counts["in_progress"] else "completed",
        "expires_after": after,
        "expires_at": stored.expires_at,
        "last_active_at": stored.last_active_at,
        "metadata": dict(stored.metadata),
        "declared": stored.declared,
        "embed": stored.embed,
    }


def counts_object(counts: Mapping[str, int]) -> dict[str, int]:
    return {**counts, "total": sum(counts.values())}


def member_object(member: Member, stored: Stored) -> dict[str, Any]:
    error = {"code": member.error_code, "message": member.error_message} if member.error_code else None
    return {
        "id": member.public_id,
        "object": "vector_store.file",
        "created_at": member.created_at,
        "vector_store_id": stored.public_id,
        "usage_bytes": member.usage_bytes,
        "status": member.status,
        "last_error": error,
        "attributes": dict(member.attributes),
        "chunking_strategy": strategy_object(member.chunking),
        "filename": member.name,
    }


def strategy_object(chunking: Mapping[str, Any]) -> dict[str, Any]:
    """As it was asked for; of `auto`, what it came to."""
    settings = chunk_settings(chunking)
    static = {"max_chunk_size_tokens": settings.max_tokens, "chunk_overlap_tokens": settings.overlap_tokens}
    return {"type": "static", "static": static}


def batch_object(
    id_: str, created_at: int, cancelled: bool, counts: Mapping[str, int], stored: Stored
) -> dict[str, Any]:
    status = "in_progress" if counts["in_progress"] else "cancelled" if cancelled else "completed"
    if status == "completed" and counts["failed"] and not counts["completed"]:
        status = "failed"
    return {
        "id": id_,
        "object": "vector_store.files_batch",
        "created_at": created_at,
        "vector_store_id": stored.public_id,
        "status": status,
        "file_counts": counts_object(counts),
    }


def file_object(uploaded: Uploaded) -> dict[str, Any]:
    return {
        "id": uploaded.id,
        "object": "file",
        "bytes": uploaded.bytes,
        "created_at": uploaded.created_at,
        "expires_at": uploaded.expires_at,
        "filename": uploaded.filename,
        "purpose": uploaded.purpose,
        "status": "processed",
        "status_details": None,
    }


def search_object(queries: Sequence[str], found: Sequence[Found], degraded: Sequence[str]) -> dict[str, Any]:
    return {
        "object": "vector_store.search_results.page",
        "search_query": list(queries),
        "data": [match_object(one) for one in found],
        "has_more": False,
        "next_page": None,
        "degraded": list(degraded),
    }


def match_object(one: Found) -> dict[str, Any]:
    return {
        "file_id": one.chunk.file_id,
        "filename": one.chunk.path,
        "score": round(one.score, 6),
        "attributes": dict(one.chunk.attributes),
        "content": [{"type": "text", "text": one.text}],
        "heading": one.chunk.heading,
        "page": one.chunk.page,
        "chunk_index": one.chunk.ordinal,
    }


def content_page(chunks: Sequence[Chunk]) -> dict[str, Any]:
    return {
        "object": "vector_store.file_content.page",
        "data": [
            {"type": "text", "text": chunk.text, "heading": chunk.heading, "page": chunk.page} for chunk in chunks
        ],
        "has_more": False,
        "next_page": None,
    }


def deleted(id_: str, kind: str) -> dict[str, Any]:
    return {"id": id_, "object": f"{kind}.deleted", "deleted": True}
