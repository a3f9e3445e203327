"""Run by alembic. Importing the packages registers their tables."""

from alembic import context
from sqlmodel import SQLModel

import retrieval.tables  # noqa: F401

context.configure(
    connection=context.config.attributes["connection"], target_metadata=SQLModel.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
