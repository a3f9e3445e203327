"""Collections with members and versions, uploaded files, retrievals. What was indexed before is read anew from its files."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TABLES = ("retrievals", "file_batches", "file_pieces", "files", "chunks", "documents", "members", "collections")


def upgrade() -> None:
    _drop_what_was_before()
    claim = (
        lambda: sa.Column("claimed_by", sa.String(), nullable=False),
        lambda: sa.Column("claimed_until", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "collections",
        sa.Column("id", BIG, primary_key=True),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("name", "owner", "description", "embed")),
        sa.Column("public_id", sa.String(), nullable=False, unique=True),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("expires_days", sa.Integer()),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("created_at", "last_active_at", "generation")),
        *(column() for column in claim),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "members",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("collection_id", BIG, sa.ForeignKey("collections.id"), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("public_id", "kind", "name", "status")),
        *(sa.Column(name, sa.JSON(), nullable=False) for name in ("attributes", "chunking")),
        *(
            sa.Column(name, sa.String(), nullable=False)
            for name in ("error_code", "error_message", "batch_id", "print")
        ),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("usage_bytes", "created_at")),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("version", "attempts")),
        sa.Column("document_id", BIG),
        *(column() for column in claim),
        sa.UniqueConstraint("collection_id", "public_id", name="uq_members_collection_id_public_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_members_collection_id", "members", ["collection_id"])
    op.create_index("ix_members_status", "members", ["status"])
    op.create_index("ix_members_public_id", "members", ["public_id"])
    op.create_index("ix_members_batch_id", "members", ["batch_id"])
    op.create_table(
        "documents",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("member_id", BIG, sa.ForeignKey("members.id"), nullable=False),
        sa.Column("collection_id", BIG, sa.ForeignKey("collections.id"), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("fingerprint", "embedding", "title")),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_documents_member_id", "documents", ["member_id"])
    op.create_index("ix_documents_collection_id", "documents", ["collection_id"])
    op.create_table(
        "chunks",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("document_id", BIG, sa.ForeignKey("documents.id"), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("heading", sa.String(), nullable=False),
        sa.Column("page", sa.Integer()),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("parts", sa.Integer(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_chunks_document_id", "chunks", ["document_id", "ordinal"], unique=True)
    _files()


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(), primary_key=True),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("owner", "key", "filename", "purpose", "digest")),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("bytes", "created_at")),
        sa.Column("expires_at", sa.BigInteger()),
    )
    op.create_index("ix_files_owner", "files", ["owner", "created_at"])
    op.create_table(
        "file_pieces",
        sa.Column("file_id", sa.String(), sa.ForeignKey("files.id"), primary_key=True),
        sa.Column("ordinal", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "file_batches",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("collection_id", BIG, sa.ForeignKey("collections.id"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("cancelled", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_file_batches_collection_id", "file_batches", ["collection_id"])
    op.create_table(
        "retrievals",
        sa.Column("id", sa.String(), primary_key=True),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("owner", "key", "conversation")),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
    )
    op.create_index("ix_retrievals_conversation", "retrievals", ["conversation"])
    op.create_index("ix_retrievals_created_at", "retrievals", ["created_at"])


def _drop_what_was_before() -> None:
    if op.get_bind().dialect.name != "postgresql":
        for trigger in ("chunks_text_insert", "chunks_text_delete"):
            op.execute(f"DROP TRIGGER {trigger}")
    for table in ("chunks_text", "chunks", "documents"):
        op.drop_table(table)


def downgrade() -> None:
    raise NotImplementedError("collections cannot be taken back; restore the database from before")
