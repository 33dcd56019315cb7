"""Answers, pictures and compositions apart from posters; nights by scope; what is current.

Also what is due, withdrawn, objected to.

The previous release goes on working on it: every new column has a default, and a run that it writes is one of scope "all".
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATUS = "status in ('planned', 'running', 'published', 'failed'{more})"


def upgrade() -> None:
    op.create_table(
        "answer_sets",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("answers_fingerprint", sa.Text(), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("answers", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "item_id", "answers_fingerprint", "weights", name=op.f("pk_answer_sets")),
    )
    op.create_index("ix_answer_sets_created_at", "answer_sets", ["created_at"], unique=False)
    op.create_table(
        "catalog_images",
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("etag", sa.Text(), nullable=True),
        sa.Column("last_modified", sa.Text(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("checked_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("changed_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("uri", name=op.f("pk_catalog_images")),
    )
    op.create_index("ix_catalog_images_changed_at", "catalog_images", ["changed_at"], unique=False)
    op.create_table(
        "compositions",
        sa.Column("composition_key", sa.Text(), nullable=False),
        sa.Column("picture_key", sa.Text(), nullable=False),
        sa.Column("image_key", sa.Text(), nullable=True),
        sa.Column("image_sha256", sa.Text(), nullable=True),
        sa.Column("width", sa.BigInteger(), nullable=False),
        sa.Column("height", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("composition_key", name=op.f("pk_compositions")),
    )
    op.create_index("ix_compositions_image_key", "compositions", ["image_key"], unique=False)
    op.create_index("ix_compositions_last_used_at", "compositions", ["last_used_at"], unique=False)
    op.create_index("ix_compositions_picture_key", "compositions", ["picture_key"], unique=False)
    op.create_table(
        "current_posters",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("input_fingerprint", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("logical_date", sa.Date(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "item_id", name=op.f("pk_current_posters")),
    )
    op.create_index("ix_current_posters_logical_date", "current_posters", ["logical_date"], unique=False)
    op.create_table(
        "pictures",
        sa.Column("picture_key", sa.Text(), nullable=False),
        sa.Column("drawing_version", sa.Text(), nullable=False),
        sa.Column("tokens", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("claim_owner", sa.Text(), nullable=True),
        sa.Column("claim_token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("claimed_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("art_key", sa.Text(), nullable=True),
        sa.Column("art_sha256", sa.Text(), nullable=True),
        sa.Column("look", sa.Text(), nullable=True),
        sa.Column("embedding", postgresql.ARRAY(sa.REAL()), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("safety", sa.Text(), server_default="unchecked", nullable=False),
        sa.Column("unsafe_score", sa.REAL(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status in ('claimed', 'drawn', 'refused')", name=op.f("ck_pictures_status")),
        sa.PrimaryKeyConstraint("picture_key", name=op.f("pk_pictures")),
    )
    op.create_index("ix_pictures_art_key", "pictures", ["art_key"], unique=False)
    op.create_index("ix_pictures_last_used_at", "pictures", ["last_used_at"], unique=False)
    op.create_table(
        "planned_users",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("history_fingerprint", sa.Text(), nullable=False),
        sa.Column("targets_fingerprint", sa.Text(), nullable=False),
        sa.Column("drawing_fingerprint", sa.Text(), nullable=False),
        sa.Column("planned_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_planned_users")),
    )
    op.create_table(
        "schedule_moments",
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("moment", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("next_try_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status in ('running', 'waiting', 'done', 'gave_up')", name=op.f("ck_schedule_moments_status")
        ),
        sa.PrimaryKeyConstraint("job", "moment", name=op.f("pk_schedule_moments")),
    )
    op.create_table(
        "user_objections",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("objects", sa.Boolean(), nullable=False),
        sa.Column("occurred_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_user_objections")),
    )
    op.create_table(
        "withdrawals",
        sa.Column("withdrawal_id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("lifted_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("kind in ('poster', 'picture', 'item', 'user', 'night')", name=op.f("ck_withdrawals_kind")),
        sa.PrimaryKeyConstraint("withdrawal_id", name=op.f("pk_withdrawals")),
    )
    op.create_index("ix_withdrawals_kind_subject", "withdrawals", ["kind", "subject"], unique=False)
    op.add_column("night_runs", sa.Column("scope", sa.Text(), server_default="all", nullable=False))
    op.drop_constraint(op.f("uq_night_runs_logical_date"), "night_runs", type_="unique")
    op.create_unique_constraint(op.f("uq_night_runs_logical_date_scope"), "night_runs", ["logical_date", "scope"])
    op.add_column("night_tasks", sa.Column("weights", sa.Text(), server_default="", nullable=False))
    op.add_column("night_tasks", sa.Column("answers_fingerprint", sa.Text(), server_default="", nullable=False))
    op.add_column("night_skips", sa.Column("weights", sa.Text(), nullable=True))
    op.add_column("posters", sa.Column("weights", sa.Text(), server_default="", nullable=False))
    op.add_column("posters", sa.Column("picture_key", sa.Text(), nullable=True))
    op.add_column("posters", sa.Column("explored", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("posters", sa.Column("choice_propensity", sa.REAL(), server_default=sa.text("1"), nullable=False))
    op.create_index("ix_posters_art_key", "posters", ["art_key"], unique=False)
    op.create_index("ix_posters_image_key", "posters", ["image_key"], unique=False)
    op.create_index("ix_posters_picture_key", "posters", ["picture_key"], unique=False)
    op.drop_constraint(op.f("ck_night_runs_status"), "night_runs", type_="check")
    op.create_check_constraint(
        op.f("ck_night_runs_status"), "night_runs", _STATUS.format(more=", 'cancelled', 'drawn'")
    )
    # What earlier nights published stays current.
    op.execute(
        """
        INSERT INTO current_posters (user_id, item_id, input_fingerprint, model_version, weights, run_id, logical_date)
        SELECT DISTINCT ON (t.user_id, t.item_id)
               t.user_id, t.item_id, t.input_fingerprint, t.model_version, t.weights, t.run_id, r.logical_date
        FROM night_tasks t JOIN night_runs r USING (run_id)
        WHERE t.status = 'done' AND r.status = 'published'
        ORDER BY t.user_id, t.item_id, r.logical_date DESC
        """
    )


def downgrade() -> None:
    # Runs that the previous release cannot tell from nights go, with their tasks and posters.
    op.execute("DELETE FROM night_runs WHERE scope <> 'all' OR status = 'cancelled'")
    op.drop_constraint(op.f("ck_night_runs_status"), "night_runs", type_="check")
    op.create_check_constraint(op.f("ck_night_runs_status"), "night_runs", _STATUS.format(more=""))
    op.drop_index("ix_posters_picture_key", table_name="posters")
    op.drop_index("ix_posters_image_key", table_name="posters")
    op.drop_index("ix_posters_art_key", table_name="posters")
    op.drop_column("posters", "choice_propensity")
    op.drop_column("posters", "explored")
    op.drop_column("posters", "picture_key")
    op.drop_column("posters", "weights")
    op.drop_column("night_skips", "weights")
    op.drop_column("night_tasks", "answers_fingerprint")
    op.drop_column("night_tasks", "weights")
    op.drop_constraint(op.f("uq_night_runs_logical_date_scope"), "night_runs", type_="unique")
    op.create_unique_constraint(
        op.f("uq_night_runs_logical_date"), "night_runs", ["logical_date"], postgresql_nulls_not_distinct=False
    )
    op.drop_column("night_runs", "scope")
    op.drop_index("ix_withdrawals_kind_subject", table_name="withdrawals")
    op.drop_table("withdrawals")
    op.drop_table("user_objections")
    op.drop_table("schedule_moments")
    op.drop_table("planned_users")
    op.drop_index("ix_pictures_last_used_at", table_name="pictures")
    op.drop_index("ix_pictures_art_key", table_name="pictures")
    op.drop_table("pictures")
    op.drop_index("ix_current_posters_logical_date", table_name="current_posters")
    op.drop_table("current_posters")
    op.drop_index("ix_compositions_picture_key", table_name="compositions")
    op.drop_index("ix_compositions_last_used_at", table_name="compositions")
    op.drop_index("ix_compositions_image_key", table_name="compositions")
    op.drop_table("compositions")
    op.drop_index("ix_catalog_images_changed_at", table_name="catalog_images")
    op.drop_table("catalog_images")
    op.drop_index("ix_answer_sets_created_at", table_name="answer_sets")
    op.drop_table("answer_sets")
