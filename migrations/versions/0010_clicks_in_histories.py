"""An index that plans find a user's clicks on posters by, without what the user was only shown.

The previous release goes on working on it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_poster_feedback_reactions",
        "poster_feedback",
        ["user_id", "occurred_at"],
        postgresql_where=sa.text("action <> 'impression'"),
    )


def downgrade() -> None:
    op.drop_index("ix_poster_feedback_reactions", table_name="poster_feedback")
