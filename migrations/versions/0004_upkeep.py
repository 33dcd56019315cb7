"""Erasure and retention by index, how far upkeep is, reasons of objections.

Additive: the previous release goes on working on it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "upkeep_progress",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("place", sa.Text(), nullable=True),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("kind", name=op.f("pk_upkeep_progress")),
    )
    op.add_column("night_runs", sa.Column("retired_at", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column("posters", sa.Column("shown_again_at", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column("user_objections", sa.Column("reason", sa.Text(), nullable=True))
    op.create_index(
        "ix_posters_renditions",
        "posters",
        ["renditions"],
        unique=False,
        postgresql_using="gin",
        postgresql_ops={"renditions": "jsonb_path_ops"},
    )
    op.create_index(
        "ix_erasures_open",
        "erasures",
        ["user_id"],
        unique=False,
        postgresql_where=sa.text("completed_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_erasures_open", table_name="erasures", postgresql_where=sa.text("completed_at IS NULL"))
    op.drop_index("ix_posters_renditions", table_name="posters", postgresql_using="gin")
    op.drop_column("user_objections", "reason")
    op.drop_column("posters", "shown_again_at")
    op.drop_column("night_runs", "retired_at")
    op.drop_table("upkeep_progress")
