"""Click models; the request that a showing belongs to.

The previous release goes on working on it: a new table, and a column that may be empty.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_NOW = sa.text("now()")
_EMPTY = sa.text("'{}'::jsonb")


def upgrade() -> None:
    op.add_column("poster_feedback", sa.Column("request_id", sa.Text(), nullable=True))
    time = postgresql.TIMESTAMP(timezone=True)
    op.create_table(
        "click_models",
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("base_weights", sa.Text(), nullable=False),
        sa.Column("artifact", sa.LargeBinary(), nullable=False),
        sa.Column("window_start", time, nullable=False),
        sa.Column("window_end", time, nullable=False),
        sa.Column("metrics", postgresql.JSONB(), server_default=_EMPTY, nullable=False),
        sa.Column("counts", postgresql.JSONB(), server_default=_EMPTY, nullable=False),
        sa.Column("created_at", time, server_default=_NOW, nullable=False),
        sa.Column("updated_at", time, server_default=_NOW, nullable=False),
        sa.CheckConstraint("state in ('refused', 'active', 'retired')", name=op.f("ck_click_models_state")),
        sa.PrimaryKeyConstraint("model_id", name=op.f("pk_click_models")),
        sa.UniqueConstraint("number", name=op.f("uq_click_models_number")),
    )
    op.create_index(
        "uq_click_models_one_active",
        "click_models",
        ["state"],
        unique=True,
        postgresql_where=sa.text("state = 'active'"),
    )


def downgrade() -> None:
    op.drop_table("click_models")
    op.drop_column("poster_feedback", "request_id")
