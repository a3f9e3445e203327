"""Keys, generations, documents with chunks and their full text, cached vectors."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TRIGGERS = (
    "CREATE TRIGGER chunks_text_insert AFTER INSERT ON chunks BEGIN "
    "INSERT INTO chunks_text (rowid, heading, text) VALUES (new.id, new.heading, new.text); END",
    "CREATE TRIGGER chunks_text_delete AFTER DELETE ON chunks BEGIN "
    "INSERT INTO chunks_text (chunks_text, rowid, heading, text) VALUES ('delete', old.id, old.heading, old.text); END",
)


def upgrade() -> None:
    op.create_table(
        "generations",
        sa.Column("kind", sa.String(), primary_key=True),
        sa.Column("number", sa.Integer(), nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False, unique=True),
        sa.Column("created_at", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Integer()),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.Column("narrowed", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
    )
    op.create_index("ix_keys_name", "keys", ["name"])
    op.create_table(
        "documents",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("collection", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("created_at", sa.Integer(), nullable=False),
        sa.Column("embedding", sa.String(), nullable=False),
        sa.UniqueConstraint("collection", "path", name="uq_documents_collection_path"),
        sqlite_autoincrement=True,  # an index or a search in flight may still know an id: it is never given again
    )
    op.create_index("ix_documents_collection", "documents", ["collection"])
    op.create_table(
        "chunks",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("document_id", sa.Integer(), sa.ForeignKey("documents.id"), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("heading", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_chunks_document_id", "chunks", ["document_id"])
    op.create_table(
        "embedding_cache",
        sa.Column("key", sa.LargeBinary(), primary_key=True),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.Column("checksum", sa.LargeBinary(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("used_at", sa.Integer(), nullable=False),
    )
    op.create_index("ix_embedding_cache_used_at", "embedding_cache", ["used_at"])
    op.execute(
        "CREATE VIRTUAL TABLE chunks_text USING fts5 (heading, text, content='chunks', content_rowid='id', tokenize='porter unicode61')"
    )
    for trigger in TRIGGERS:
        op.execute(trigger)


def downgrade() -> None:
    for trigger in ("chunks_text_insert", "chunks_text_delete"):
        op.execute(f"DROP TRIGGER {trigger}")
    for table in ("chunks_text", "embedding_cache", "chunks", "documents", "keys", "generations"):
        op.drop_table(table)
