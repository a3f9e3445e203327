"""Keys, generations, documents with chunks and their full text, cached vectors."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0001"
down_revision = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""64 bits on either: the end of the year 9999 does not fit 32."""

TRIGGERS = (
    "CREATE TRIGGER chunks_text_insert AFTER INSERT ON chunks BEGIN "
    "INSERT INTO chunks_text (rowid, heading, text) VALUES (new.id, new.heading, new.text); END",
    "CREATE TRIGGER chunks_text_delete AFTER DELETE ON chunks BEGIN "
    "INSERT INTO chunks_text (chunks_text, rowid, heading, text) VALUES ('delete', old.id, old.heading, old.text); END",
)

STEMS = (
    # The stemmer that SQLite has, too, and no list of words to ignore: ranking by rarity makes one needless.
    "CREATE TEXT SEARCH DICTIONARY chasqui_stem (TEMPLATE = snowball, Language = porter)",
    "CREATE TEXT SEARCH CONFIGURATION chasqui (PARSER = default)",
    "ALTER TEXT SEARCH CONFIGURATION chasqui ADD MAPPING FOR "
    "asciiword, word, numword, int, uint, float, sfloat, version WITH chasqui_stem",
)


def upgrade() -> None:
    op.create_table(
        "generations",
        sa.Column("kind", sa.String(), primary_key=True),
        sa.Column("number", BIG, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False, unique=True),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("expires_at", BIG),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.Column("narrowed", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
    )
    op.create_index("ix_keys_name", "keys", ["name"])
    op.create_table(
        "documents",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("collection", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("embedding", sa.String(), nullable=False),
        sa.UniqueConstraint("collection", "path", name="uq_documents_collection_path"),
        sqlite_autoincrement=True,  # an index or a search in flight may still know an id: it is never given again
    )
    op.create_index("ix_documents_collection", "documents", ["collection"])
    op.create_table(
        "chunks",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("document_id", BIG, sa.ForeignKey("documents.id"), nullable=False),
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
        sa.Column("used_at", BIG, nullable=False),
    )
    op.create_index("ix_embedding_cache_used_at", "embedding_cache", ["used_at"])
    if op.get_bind().dialect.name == "postgresql":
        _full_text_of_postgresql()
    else:
        _full_text_of_sqlite()


def _full_text_of_sqlite() -> None:
    op.execute(
        "CREATE VIRTUAL TABLE chunks_text USING fts5 (heading, text, content='chunks', content_rowid='id', tokenize='porter unicode61')"
    )
    for trigger in TRIGGERS:
        op.execute(trigger)


def _full_text_of_postgresql() -> None:
    """Filled by `retrieval/lexical_postgresql.py`, emptied by its foreign key."""
    for statement in STEMS:
        op.execute(statement)
    op.create_table(
        "chunks_text",
        sa.Column("chunk_id", BIG, sa.ForeignKey("chunks.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("words", TSVECTOR(), nullable=False),
    )
    op.create_index("ix_chunks_text_words", "chunks_text", ["words"], postgresql_using="gin")


def downgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    for trigger in () if postgresql else ("chunks_text_insert", "chunks_text_delete"):
        op.execute(f"DROP TRIGGER {trigger}")
    for table in ("chunks_text", "embedding_cache", "chunks", "documents", "keys", "generations"):
        op.drop_table(table)
    if postgresql:
        op.execute("DROP TEXT SEARCH CONFIGURATION chasqui")
        op.execute("DROP TEXT SEARCH DICTIONARY chasqui_stem")
