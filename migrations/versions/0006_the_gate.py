"""Users of snapshots, numbers of model events, overrides of the gate.

The previous release goes on working on it: it writes events without figures, and snapshots without users, whose users are
read from the bucket when somebody is to be erased.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "preference_snapshot_users",
        sa.Column("snapshot_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["snapshot_id"],
            ["preference_snapshots.snapshot_id"],
            name=op.f("fk_preference_snapshot_users_snapshot_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("snapshot_id", "user_id", name=op.f("pk_preference_snapshot_users")),
    )
    op.create_index("ix_preference_snapshot_users_user_id", "preference_snapshot_users", ["user_id"], unique=False)
    op.create_table(
        "model_overrides",
        sa.Column("override_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["version"], ["model_versions.version"], name=op.f("fk_model_overrides_version")),
        sa.PrimaryKeyConstraint("override_id", name=op.f("pk_model_overrides")),
    )
    op.create_index("ix_model_overrides_version", "model_overrides", ["version"], unique=False)
    op.add_column(
        "model_events",
        sa.Column("figures", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("model_events", "figures")
    op.drop_index("ix_model_overrides_version", table_name="model_overrides")
    op.drop_table("model_overrides")
    op.drop_index("ix_preference_snapshot_users_user_id", table_name="preference_snapshot_users")
    op.drop_table("preference_snapshot_users")
