"""The ledger: requests, sums of usage, contents, feedback; alerts, an audit, and keys whose contents are kept."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = ("requests", "usage", "request_contents", "feedback", "alerts", "audit")


def upgrade() -> None:
    words = ("key", "role", "model", "entry", "backend", "operation", "outcome", "error", "cache", "user")
    counts = ("stream", "attempts", "admitted", "prompt_tokens", "completion_tokens", "cached_tokens", "queue_ms")
    op.create_table(
        "requests",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in words),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in (*counts, "total_ms", "status")),
        sa.Column("first_byte_ms", sa.Integer()),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("compute_ms", sa.BigInteger(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
    )
    op.create_index("ix_requests_at", "requests", ["at", "id"])
    op.create_index("ix_requests_key", "requests", ["key", "at"])
    sums = (
        "requests",
        "refused",
        "failed",
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
        "cost",
        "compute_ms",
    )
    op.create_table(
        "usage",
        sa.Column("grain_s", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("start", sa.BigInteger(), primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.String(), primary_key=True) for name in ("key", "role", "model", "backend")),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in sums),
    )
    op.create_index("ix_usage_key", "usage", ["key", "grain_s", "start"])
    op.create_index("ix_usage_role", "usage", ["role", "grain_s", "start"])
    op.create_table(
        "request_contents",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("request", sa.String(), nullable=False),
        sa.Column("answer", sa.String(), nullable=False),
    )
    op.create_table(
        "feedback",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("stars", sa.Integer(), nullable=False),
        sa.Column("words", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_feedback_key", "feedback", ["key"])
    op.create_index("ix_feedback_at", "feedback", ["at"])
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("event", sa.JSON(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.BigInteger()),
    )
    op.create_index("ix_alerts_sent_at", "alerts", ["sent_at"])
    op.create_table(
        "audit",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("object", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
    )
    op.create_index("ix_audit_at", "audit", ["at", "id"])
    with op.batch_alter_table("keys") as keys:
        keys.add_column(sa.Column("log_content", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    with op.batch_alter_table("keys") as keys:
        keys.drop_column("log_content")
    for table in reversed(TABLES):
        op.drop_table(table)
