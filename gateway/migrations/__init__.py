"""Alembic's scripts. `env.py` runs on the connection that `gateway.database` hands over."""
