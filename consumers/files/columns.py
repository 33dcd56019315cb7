"""Which column of a file is which field of an event, and cells as the event takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from consumers.files.layout import Layout, ReadOptions
from consumers.files.rows import BadRow, Row
from schemas.errors import InputError
from schemas.event_forms import iso_time
from schemas.events import CONSUMED

LISTS = ("genres", "item_ids")
OBJECTS = ("attributes", "context")
TIMES = ("occurred_at",)
GIVEN = ("event_id", "schema_version")
"""Fields that a file need not have: an id is made of the row's content."""
NOTHING = frozenset({"nan", "null", "none", "n/a", "na", "nil", "undefined"})
USUAL = {
    "user_id": ("user", "userid", "uid", "visitorid", "visitor", "customerid", "sessionid", "session"),
    "item_id": ("item", "itemid", "iid", "movieid", "movie", "productid", "product", "sku", "asin", "id"),
    "occurred_at": ("timestamp", "time", "date", "datetime", "ts", "eventtime", "createdat"),
    "kind": ("event", "type", "action", "eventtype", "behaviortype"),
    "title": ("name", "movietitle", "itemname"),
    "genres": ("genre", "categories", "category"),
    "image_uri": ("image", "imageurl", "img", "poster", "posterurl", "picture", "photo"),
    "item_ids": ("items", "itemids", "ranking"),
}
"""Names that other people give to a field, in small letters without separators: told, never taken by themselves."""
_CONDITION = re.compile(r"\s*(.+?)\s*(>=|<=|!=|=|>|<)\s*(.*?)\s*")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    "!=": lambda a, b: a != b,
    "=": lambda a, b: a == b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


@dataclass
class Cells:
    """A row's fields, and what is odd about them."""

    fields: Row
    odd: list[str] = field(default_factory=list)


class Columns:
    """How one file's rows become one topic's events."""

    def __init__(self, topic: str, layout: Layout, options: ReadOptions) -> None:
        """Look at the names before the first row.

        Raises:
            InputError: a field is missing, a column that is used has its name twice, an option names what is not there.
        """
        self._fields = CONSUMED[topic].model_fields
        self._layout = layout
        self._options = options
        self._zone = _zone(options.time_zone)
        self._keep = _condition(options.keep)
        self._check_options()
        self.taken = {name: options.names.get(name, name) for name in layout.columns if self._is_field(name)}
        if layout.columns:
            self._check_names()

    def describe(self) -> str:
        """Which column is which field, in a line; empty where rows name their own fields."""
        if not self._layout.columns:
            return ""
        taken = [field if name == field else f"{field} from {name}" for name, field in self.taken.items()]
        taken += [f"{field} is {text!r}" for field, text in self._options.constants.items()]
        unused = [name for name in self._layout.columns if name not in self.taken]
        return ", ".join(taken) + (f"; not used: {', '.join(unused)}" if unused else "")

    def counts(self, row: Row) -> bool:
        """Whether a row is to be taken at all."""
        if self._keep is None:
            return True
        name, compare, wanted = self._keep
        try:
            return compare(*_comparable(row.get(name), wanted))
        except TypeError:
            return False

    def cells(self, row: Row) -> Cells:
        """The event's fields of a row.

        Raises:
            BadRow: a value cannot be read as its field; the text names the field and the fix.
        """
        out = Cells({})
        for name, value in row.items():
            if self._layout.columns and name not in self.taken:
                continue
            self._take(out, self._options.names.get(name, name), value)
        for field_name, template in self._options.constants.items():
            self._take(out, field_name, _filled(template, row))
        return out

    def _take(self, out: Cells, name: str, value: Any) -> None:
        if value is None or value == "":
            return  # an empty cell says nothing: the field's default holds
        if isinstance(value, str) and not value.isascii() and any("\udc80" <= one <= "\udcff" for one in value):
            raise BadRow(f"{name}: has bytes that are not {self._layout.encoding}; say --encoding, such as latin-1")
        if name in ("title", "description") and isinstance(value, str) and value.lower() in NOTHING:
            out.odd.append(f"{name} {value!r} looks like a word for nothing")
        if name in LISTS and isinstance(value, str):
            value = _list(name, value, out.odd)
        elif name in OBJECTS and isinstance(value, str):
            value = _object(name, value)
        elif name in TIMES:
            value = self._time(name, value)
        elif name.endswith("_id") and isinstance(value, float):
            value = _whole(name, value)
        elif name.endswith("_id") and isinstance(value, str) and re.fullmatch(r"\d+\.0", value):
            out.odd.append(f"{name} {value!r} looks like a number that a spreadsheet wrote")
        out.fields[name] = value

    def _time(self, name: str, value: Any) -> Any:
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=self._zone or _no_zone(name))).isoformat()
        if isinstance(value, str) and re.fullmatch(r"\d{9,16}(\.\d+)?", value):
            value = float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _epoch(name, value)
        iso = iso_time(str(value))
        if iso is None:
            return value  # said by the event's own check
        try:
            moment = datetime.fromisoformat(iso)
        except ValueError as error:
            raise BadRow(f"{name}: {value} is no time: {error}") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=self._zone or _no_zone(name))).isoformat()

    def _is_field(self, name: str) -> bool:
        return self._options.names.get(name, name) in self._fields

    def _check_options(self) -> None:
        for option, names in (("--map", self._options.names.values()), ("--set", self._options.constants)):
            for name in names:
                if name not in self._fields:
                    raise InputError(f"{option}: there is no field {name}; there are {', '.join(self._fields)}")
        known = self._layout.columns
        for name in self._options.names:
            if known and name not in known:
                raise InputError(f"--map {name}=...: {self._layout.path} has no such column, but {', '.join(known)}")
        if known and self._keep and self._keep[0] not in known:
            raise InputError(f"--keep {self._options.keep}: no column {self._keep[0]}, but {', '.join(known)}")

    def _check_names(self) -> None:
        for name in self.taken:
            if self._layout.columns.count(name) > 1:
                raise InputError(f"{self._layout.path}: two columns are called {name}; rename one of them")
        fields = list(self.taken.values())
        twice = next((name for name in fields if fields.count(name) > 1), None)
        if twice:
            raise InputError(f"{self._layout.path}: two columns give {twice}; leave one of them out of --map")
        have = set(fields) | set(self._options.constants) | set(GIVEN)
        missing = [name for name, field in self._fields.items() if field.is_required() and name not in have]
        if missing:
            raise InputError(self._without(missing))

    def _without(self, missing: Sequence[str]) -> str:
        layout = self._layout
        text = f"{layout.path}: no column for {', '.join(missing)}; taken for {layout.describe()}. "
        if layout.header and all(re.fullmatch(r"[\d.\s:+-]*", name) for name in layout.columns):
            return (
                text + "The first line looks like data: add --no-header, and say which column is which, --map 1=user_id"
            )
        hints = [f"--map '{_usual(name, layout.columns)}={name}'" for name in missing if _usual(name, layout.columns)]
        hints += [
            f"--set '{name}=...'" if name == "kind" else f"--map 'COLUMN={name}'"
            for name in missing
            if not _usual(name, layout.columns)
        ]
        return text + f"Say which is which: {' '.join(hints)}" + ("" if len(layout.columns) > 1 else ", or --delimiter")


def _usual(name: str, columns: Sequence[str]) -> str:
    return next((c for c in columns if re.sub(r"[^a-z]", "", c.lower()) in USUAL.get(name, ())), "")


def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name) if name else None
    except (KeyError, ValueError, OSError):
        raise InputError(f"--time-zone {name}: no such time zone; use a name such as UTC or Europe/Berlin") from None


def _no_zone(name: str) -> ZoneInfo:
    raise BadRow(f"{name}: has no time zone; add --time-zone, such as --time-zone UTC")


def _epoch(name: str, value: float) -> str:
    """ISO 8601 of seconds, milliseconds or microseconds since 1970, told by their size."""
    try:
        seconds = value / (1 if value < 1e11 else 1_000 if value < 1e14 else 1_000_000)
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        raise BadRow(
            f"{name}: {str(value)[:30]} is no time in seconds, milliseconds or microseconds since 1970"
        ) from None


def _condition(text: str) -> tuple[str, Callable[[Any, Any], bool], str] | None:
    if not text:
        return None
    match = _CONDITION.fullmatch(text)
    if not match:
        raise InputError(f"--keep {text}: must be COLUMN, one of >= <= != = > <, and a value, such as 'rating>=4'")
    return match[1], _COMPARE[match[2]], match[3]


def _comparable(value: Any, wanted: str) -> tuple[Any, Any]:
    try:
        return float(value), float(wanted)
    except (TypeError, ValueError):
        return (None if value is None else str(value)), wanted


def _filled(template: str, row: Row) -> str:
    def cell(match: re.Match[str]) -> str:
        if row.get(match[1]) in (None, ""):
            raise BadRow(f"--set {template}: the row has no {match[1]}")
        return str(row[match[1]])

    return re.sub(r"\{([^{}]+)\}", cell, template)


def _list(name: str, text: str, odd: list[str]) -> list[Any]:
    if text[:1] == "[":
        try:
            said = json.loads(text)
        except ValueError:
            raise BadRow(f"{name}: must be a JSON array, or parts with | between them") from None
        odd.append(f"{name} written as JSON")
        return list(said)
    separator = "|" if "|" in text or "," not in text else ","
    if separator == ",":
        odd.append(f"{name} with commas between its parts")
    return [part.strip() for part in text.split(separator) if part.strip()]


def _object(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{name}: must be a JSON object: {error}") from None


def _whole(name: str, value: float) -> str:
    if not value.is_integer():
        raise BadRow(f"{name}: {value} is no id")
    return str(int(value))
