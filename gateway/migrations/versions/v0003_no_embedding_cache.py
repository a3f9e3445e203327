"""Cached vectors live in a database file of their own, and make their tables themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.drop_table("embedding_cache")


def downgrade() -> None:
    op.create_table(
        "embedding_cache",
        sa.Column("key", sa.LargeBinary(), primary_key=True),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.Column("checksum", sa.LargeBinary(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_embedding_cache_used_at", "embedding_cache", ["used_at"])
