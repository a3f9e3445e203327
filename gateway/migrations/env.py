"""Run by alembic. Importing the packages registers their tables."""

from alembic import context
from sqlmodel import SQLModel

import policies.generations
import policies.keys
import policies.ledger  # noqa: F401
import retrieval.catalog
import retrieval.embedding_cache  # noqa: F401

context.configure(
    connection=context.config.attributes["connection"], target_metadata=SQLModel.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
