"""Every Postgres table; Alembic's migrations (migrations/) are checked for drift against these.

    base      the declarative base, and the types of columns
    data_in   what the consumers fill from Kafka
    drawing   what is drawn, whoever it is drawn for
    night     runs, tasks, posters, what was taken back, who leads
    planned   what the last plan saw of users and items
    loop      snapshots of pairs, click models, model versions
    audit     what people changed at the console

`interactions` is partitioned by month of `occurred_at`; its partitions are made by migrations and upkeep, not here.
Import tables from this package, never from its modules.
"""

from schemas.tables.audit import AuditEntry
from schemas.tables.base import Base
from schemas.tables.data_in import (
    ConsumerOffset,
    DeadLetterAction,
    DeadLetterMark,
    Erasure,
    IndexedDeadLetter,
    Interaction,
    Item,
    PosterFeedback,
    Recommendation,
    UserHistory,
)
from schemas.tables.drawing import AnswerSet, CatalogImage, Composition, ImageFeature, Picture
from schemas.tables.loop import (
    ClickModel,
    ModelEvent,
    ModelOverride,
    ModelVersion,
    PreferenceSnapshot,
    PreferenceSnapshotUser,
)
from schemas.tables.night import (
    CurrentPosters,
    Lease,
    NightRun,
    NightSkip,
    NightTask,
    Poster,
    ScheduleMoment,
    UpkeepProgress,
    UserObjection,
    Withdrawal,
)
from schemas.tables.planned import PLAN_NUMBERS, PlannedItem, PlannedUser

__all__ = [
    "PLAN_NUMBERS",
    "AnswerSet",
    "AuditEntry",
    "Base",
    "CatalogImage",
    "ClickModel",
    "Composition",
    "ConsumerOffset",
    "CurrentPosters",
    "DeadLetterAction",
    "DeadLetterMark",
    "Erasure",
    "ImageFeature",
    "IndexedDeadLetter",
    "Interaction",
    "Item",
    "Lease",
    "ModelEvent",
    "ModelOverride",
    "ModelVersion",
    "NightRun",
    "NightSkip",
    "NightTask",
    "Picture",
    "PlannedItem",
    "PlannedUser",
    "Poster",
    "PosterFeedback",
    "PreferenceSnapshot",
    "PreferenceSnapshotUser",
    "Recommendation",
    "ScheduleMoment",
    "UpkeepProgress",
    "UserHistory",
    "UserObjection",
    "Withdrawal",
]
