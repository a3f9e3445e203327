"""What /schema says of files and vector stores: bodies from their own types, answers in OpenAPI's words."""

import msgspec

from gateway.collection_fields import (
    AttributeFields,
    BatchFields,
    MemberFields,
    SearchFields,
    StoreChange,
    StoreFields,
)
from gateway.openapi_schemas import BINARY, COUNT, FLAG, NULLABLE, TEXT, TIME, Schema, listed, paged, record

BODIES = (StoreFields, StoreChange, MemberFields, AttributeFields, BatchFields, SearchFields)

_SCHEMAS = msgspec.json.schema_components(BODIES, ref_template="#/components/schemas/{name}")[1]
_SCHEMAS["SearchFields"]["examples"] = [{"query": "How long is a quota's hold?"}]
_SCHEMAS["MemberFields"]["examples"] = [{"file_id": "file-0123456789abcdef01234567"}]

STATUS: Schema = {"enum": ["in_progress", "completed", "failed", "cancelled"]}
COUNTS = record(
    "in_progress completed failed cancelled total", in_progress=COUNT, completed=COUNT, failed=COUNT, cancelled=COUNT,
    total=COUNT,
)  # fmt: skip
PAIRS: Schema = {"type": "object", "additionalProperties": True}
EXPIRES: Schema = {"anyOf": [record("anchor days", anchor=TEXT, days=COUNT), {"type": "null"}]}
ERROR: Schema = {"anyOf": [record("code message", code=TEXT, message=TEXT), {"type": "null"}]}
SCORE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
PAGE_NUMBER: Schema = {"type": ["integer", "null"]}

FILE = record(
    "id object bytes created_at filename purpose", id=TEXT, object={"const": "file"}, bytes=COUNT, created_at=COUNT,
    expires_at=TIME, filename=TEXT, purpose=TEXT, status=TEXT,
)  # fmt: skip
STORE = record(
    "id object created_at name status file_counts usage_bytes metadata", id=TEXT, object={"const": "vector_store"},
    created_at=COUNT, name=TEXT, description=NULLABLE, status=TEXT, file_counts=COUNTS, usage_bytes=COUNT,
    expires_after=EXPIRES, expires_at=TIME, last_active_at=TIME, metadata=PAIRS, declared=FLAG, embed=TEXT,
)  # fmt: skip
MEMBER = record(
    "id object vector_store_id status last_error usage_bytes", id=TEXT, object={"const": "vector_store.file"},
    created_at=COUNT, vector_store_id=TEXT, status=STATUS, last_error=ERROR, usage_bytes=COUNT, attributes=PAIRS,
    chunking_strategy=PAIRS, filename=TEXT,
)  # fmt: skip
BATCH = record(
    "id object vector_store_id status file_counts", id=TEXT, object={"const": "vector_store.files_batch"},
    created_at=COUNT, vector_store_id=TEXT, status=STATUS, file_counts=COUNTS,
)  # fmt: skip
PART = record("type text", type={"const": "text"}, text=TEXT)
MATCH = record(
    "file_id filename score content", file_id=TEXT, filename=TEXT, score=SCORE, attributes=PAIRS, content=listed(PART),
    heading=TEXT, page=PAGE_NUMBER, chunk_index=COUNT,
)  # fmt: skip
FOUND = record(
    "number file_id filename score text", number=COUNT, collection=TEXT, vector_store_id=TEXT, file_id=TEXT,
    filename=TEXT, url=TEXT, title=TEXT, heading=TEXT, page=PAGE_NUMBER, score=SCORE, text=TEXT,
)  # fmt: skip

UPLOAD = record(
    "file purpose",
    file=BINARY,
    purpose={"enum": ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]},
) | {"description": "Beside these, `expires_after[anchor]` (created_at) and `expires_after[seconds]`."}

COMPONENTS: dict[str, Schema] = {
    **_SCHEMAS,
    "Batch": BATCH,
    "Deleted": record("id object deleted", id=TEXT, object=TEXT, deleted={"const": True}),
    "File": FILE,
    "Files": paged("File"),
    "FileUpload": UPLOAD,
    "Matches": record("object search_query data", object=TEXT, search_query=listed(TEXT), data=listed(MATCH)),
    "Retrieval": record("id object passages", id=TEXT, object={"const": "retrieval"}, passages=listed(FOUND)),
    "Store": STORE,
    "Stores": paged("Store"),
    "StoreContent": record("data", data=listed(PART)),
    "StoreFile": MEMBER,
    "StoreFiles": paged("StoreFile"),
}
