"""Which safety model judged a picture, so that another one judges it again.

The previous release goes on working on it: it leaves the column empty.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("pictures", sa.Column("safety_model", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("pictures", "safety_model")
