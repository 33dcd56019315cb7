"""What the last plan of each user was made from, and items as plans saw them.

The previous release goes on working on it: it reads and writes none of this, and every new column has a default.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _counts() -> sa.Column[dict[str, int]]:
    return sa.Column("skipped", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False)


def upgrade() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("plan_numbers")))
    op.create_table(
        "planned_items",
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("changed_in", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("item_id", name=op.f("pk_planned_items")),
    )
    op.add_column(
        "planned_users", sa.Column("plan_number", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column(
        "planned_users",
        sa.Column("logical_date", sa.Date(), server_default=sa.text("'infinity'::date"), nullable=False),
    )
    op.add_column("planned_users", sa.Column("run_id", sa.Text(), nullable=True))
    op.add_column(
        "planned_users",
        sa.Column("items", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'::text[]"), nullable=False),
    )
    op.add_column("planned_users", sa.Column("targets", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("planned_users", _counts())
    op.create_index(
        "ix_planned_users_run_id_user_id",
        "planned_users",
        ["run_id", "user_id"],
        unique=False,
        postgresql_where=sa.text("run_id IS NOT NULL"),
    )
    op.add_column("night_runs", _counts())


def downgrade() -> None:
    op.drop_column("night_runs", "skipped")
    op.drop_index("ix_planned_users_run_id_user_id", table_name="planned_users")
    for column in ("skipped", "targets", "items", "run_id", "logical_date", "plan_number"):
        op.drop_column("planned_users", column)
    op.drop_table("planned_items")
    op.execute(sa.schema.DropSequence(sa.Sequence("plan_numbers")))
    # Rows without what this release knows of them mean nothing to another one.
    op.execute("DELETE FROM planned_users")
