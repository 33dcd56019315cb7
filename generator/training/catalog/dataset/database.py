"""Catalogue and clicks from Postgres, streamed; users who asked to be erased are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from generator.storage.postgres import plain_errors
from generator.training.catalog.dataset.scratch import Click, GivenWindow, ItemRow

FETCHED = 5_000
"""Rows that are held at a time."""

_ITEMS = text("SELECT item_id, title, description, image_uri FROM items WHERE deleted_at IS NULL")
_CLICKS = text(
    "SELECT user_id, item_id, (extract(epoch FROM occurred_at) * 1000000)::bigint FROM interactions i "
    "WHERE lower(kind) = ANY(:kinds) AND NOT EXISTS (SELECT FROM erasures e WHERE e.user_id = i.user_id "
    "AND (e.completed_at IS NULL OR e.requested_at >= i.ingested_at))"
).bindparams(bindparam("kinds", type_=ARRAY(TEXT)))
_ERASED = text("SELECT user_id FROM erasures WHERE completed_at IS NULL OR completed_at >= :since ORDER BY user_id")
_OTHERS = text("SELECT kind, count(*) FROM interactions WHERE NOT lower(kind) = ANY(:kinds) GROUP BY kind").bindparams(
    bindparam("kinds", type_=ARRAY(TEXT))
)


def read_at(engine: Engine) -> datetime:
    """The database's time."""
    with plain_errors(engine), engine.connect() as connection:
        moment: datetime = connection.execute(text("SELECT now()")).scalar_one()
        return moment


def items(engine: Engine) -> Iterator[ItemRow]:
    """Items that are not deleted.

    Raises:
        ServerUnavailable, InputError: as `plain_errors` says.
    """
    with plain_errors(engine), engine.connect() as connection:
        for row in _streamed(connection).execute(_ITEMS):
            yield ItemRow(*row)


def clicks(engine: Engine, positive: Sequence[str], counts: Counter[str]) -> Iterator[Click]:
    """Interactions whose kind enters histories.

    Raises:
        ServerUnavailable, InputError: as `plain_errors` says.
    """
    kinds = {"kinds": sorted({kind.lower() for kind in positive})}
    with plain_errors(engine), engine.connect() as connection:
        for kind, count in connection.execute(_OTHERS, kinds):
            counts[f"clicks: kind {kind!r} enters no history (consumer.positive_kinds)"] += count
        for row in _streamed(connection).execute(_CLICKS, kinds):
            yield Click(*row)


def erased_since(engine: Engine, since: datetime) -> list[str]:
    """Users who are to be erased, or were after a moment: what was read before may still have them."""
    with plain_errors(engine), engine.connect() as connection:
        return list(connection.execute(_ERASED, {"since": since}).scalars())


def _streamed(connection: Connection) -> Connection:
    return connection.execution_options(yield_per=FETCHED)


@dataclass(frozen=True)
class DatabaseSource:
    """Postgres as a build's source."""

    engine: Engine
    positive_kinds: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.engine.url.render_as_string(hide_password=True)} {self.positive_kinds}"

    def read_at(self) -> datetime:
        return read_at(self.engine)

    def items(self, counts: Counter[str]) -> Iterator[ItemRow]:
        return items(self.engine)

    def clicks(self, counts: Counter[str]) -> Iterator[Click]:
        return clicks(self.engine, self.positive_kinds, counts)

    def windows(self, counts: Counter[str]) -> Iterator[GivenWindow] | None:
        return None

    def erased_since(self, since: datetime) -> list[str]:
        return erased_since(self.engine, since)
