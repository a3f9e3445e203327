"""The tables of collections. The database is the truth: indexes are made from it and can be thrown away at any time.

    collections ── members ── documents ── chunks          files ── file_pieces
                                                           file_batches

A member is a file, path or page in a collection. A document is one version of what it says; `members.document_id` names the
one that counts, and only its chunks are ever found. A new version is built beside it and takes its place in one transaction,
which drops the old one. Ids are never given twice: an index or a search in flight may still know one.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, LargeBinary, Table
from sqlmodel import Field, SQLModel

ChunkId = int
DocumentId = int


class CollectionRow(SQLModel, table=True):
    __tablename__ = "collections"

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    public_id: str = Field(unique=True)
    name: str
    owner: str
    """The role that it belongs to; empty for those of the configuration."""
    description: str = ""
    embed: str
    """The backend that makes its vectors."""
    notes: dict[str, Any] = Field(default_factory=dict, sa_column=Column("metadata", JSON, nullable=False))
    expires_days: int | None = None
    created_at: int = Field(sa_type=BigInteger)
    last_active_at: int = Field(sa_type=BigInteger)
    generation: int = Field(default=0, sa_type=BigInteger)
    """Moves with every change of what can be found in it."""
    claimed_by: str = ""
    claimed_until: int = Field(default=0, sa_type=BigInteger)
    """Milliseconds of Unix time."""


class MemberRow(SQLModel, table=True):
    __tablename__ = "members"

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    collection_id: int = Field(foreign_key="collections.id", index=True, sa_type=BigInteger)
    public_id: str
    """The file's id; of a path or page, an id made of it."""
    kind: str
    """file, path or url."""
    name: str
    """For people: the file's name, the path as the configuration would write it, the address."""
    attributes: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    chunking: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """As it was asked for."""
    status: str
    """in_progress, completed, failed or cancelled."""
    error_code: str = ""
    error_message: str = ""
    usage_bytes: int = Field(default=0, sa_type=BigInteger)
    created_at: int = Field(sa_type=BigInteger)
    batch_id: str = ""
    print: str = ""
    """Changes when the source might have: a file's size and time, a page's digest."""
    document_id: int | None = Field(default=None, sa_type=BigInteger)
    version: int = 0
    """Moves whenever it has to be built anew, so that a build that was overtaken finds out."""
    attempts: int = 0
    claimed_by: str = ""
    claimed_until: int = Field(default=0, sa_type=BigInteger)


class DocumentRow(SQLModel, table=True):
    __tablename__ = "documents"

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    member_id: int = Field(foreign_key="members.id", index=True, sa_type=BigInteger)
    collection_id: int = Field(foreign_key="collections.id", index=True, sa_type=BigInteger)
    fingerprint: str
    """Changes with the content and with everything else that would change its chunks or their vectors."""
    embedding: str
    """Identity of the model that made its vectors; vectors of different models are never compared."""
    title: str = ""
    created_at: int = Field(sa_type=BigInteger)


class ChunkRow(SQLModel, table=True):
    __tablename__ = "chunks"

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    document_id: int = Field(foreign_key="documents.id", index=True, sa_type=BigInteger)
    ordinal: int
    heading: str = ""
    page: int | None = None
    text: str
    tokens: int
    parts: int = 1
    """Vectors it has: one for each window of the embedding model that its text fills."""
    vector: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """float32 little-endian [parts, dim], each of unit length."""


class FileRow(SQLModel, table=True):
    __tablename__ = "files"

    id: str = Field(primary_key=True)
    owner: str
    """The role that it belongs to."""
    key: str
    """That uploaded it."""
    filename: str
    purpose: str
    bytes: int = Field(sa_type=BigInteger)
    digest: str
    """sha256; empty as long as not all of it is there."""
    created_at: int = Field(sa_type=BigInteger)
    expires_at: int | None = Field(default=None, sa_type=BigInteger)


class FilePieceRow(SQLModel, table=True):
    __tablename__ = "file_pieces"

    file_id: str = Field(foreign_key="files.id", primary_key=True)
    ordinal: int = Field(primary_key=True)
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class BatchRow(SQLModel, table=True):
    __tablename__ = "file_batches"

    id: str = Field(primary_key=True)
    collection_id: int = Field(foreign_key="collections.id", index=True, sa_type=BigInteger)
    created_at: int = Field(sa_type=BigInteger)
    cancelled: bool = False


class RetrievalRow(SQLModel, table=True):
    __tablename__ = "retrievals"

    id: str = Field(primary_key=True)
    owner: str
    """The role of the key that asked."""
    key: str
    conversation: str = Field(index=True)
    """Of the messages up to the question: the next turn brings them back."""
    created_at: int = Field(index=True, sa_type=BigInteger)
    record: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


collections: Table = CollectionRow.__table__  # type: ignore[attr-defined]
members: Table = MemberRow.__table__  # type: ignore[attr-defined]
documents: Table = DocumentRow.__table__  # type: ignore[attr-defined]
chunks: Table = ChunkRow.__table__  # type: ignore[attr-defined]
files: Table = FileRow.__table__  # type: ignore[attr-defined]
file_pieces: Table = FilePieceRow.__table__  # type: ignore[attr-defined]
file_batches: Table = BatchRow.__table__  # type: ignore[attr-defined]
retrievals: Table = RetrievalRow.__table__  # type: ignore[attr-defined]
