"""Alembic's environment: one connection with timeouts, one transaction per revision.

The caller (migrations/database.py) passes the connection in `config.attributes`; there is no other way in.
"""

from __future__ import annotations

from alembic import context

from migrations.database import is_ours
from schemas.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    include_name=is_ours,
    transaction_per_migration=True,
    compare_server_default=False,  # Postgres prints defaults in its own words; the names and types are what must agree
)
with context.begin_transaction():
    context.run_migrations()
