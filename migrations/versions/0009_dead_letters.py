"""An index of dead letters, and how far each topic was read into it.

The previous release goes on working on it: it reads the topics, and its `dead_letter_actions` stay what decides.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("topic_id", sa.Text(), nullable=False),
        sa.Column("partition", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("source_timestamp", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("user_ids", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("written_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("closed_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("topic", "topic_id", "partition", "offset", name=op.f("pk_dead_letters")),
    )
    op.create_index("ix_dead_letters_source_source_timestamp", "dead_letters", ["source", "source_timestamp"])
    op.create_index("ix_dead_letters_user_ids", "dead_letters", ["user_ids"], postgresql_using="gin")
    op.create_index(
        "ix_dead_letters_written_at",
        "dead_letters",
        ["written_at", "topic", "partition", "offset"],
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_table(
        "dead_letter_marks",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("topic_id", sa.Text(), nullable=False),
        sa.Column("partition", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.Column("checked_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("topic", "topic_id", "partition", name=op.f("pk_dead_letter_marks")),
    )


def downgrade() -> None:
    op.drop_table("dead_letter_marks")
    op.drop_table("dead_letters")
