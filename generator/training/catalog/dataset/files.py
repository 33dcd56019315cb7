"""Catalogue, clicks and windows from files: CSV, JSON lines or Parquet, the first two gzipped as well.

Columns bear the names of the events' fields; others are ignored. `pigeon clicks check` and `import` take any names.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import ConfigDict, Field, ValidationError

from generator.training.catalog.dataset.manifest import Split
from generator.training.catalog.dataset.scratch import Click, GivenWindow, ItemRow
from schemas import event_forms
from schemas.errors import InputError
from schemas.events import CatalogItem, Event, EventTime, Id, Interaction

Row = dict[str, Any]
NO_ID = str(UUID(int=0))
"""Event id of clicks from a file, which are known by user, item and time."""
PARQUET_ROWS = 4_096


class Window(Event):
    """A row of a file of windows; `history` as a list, or in CSV as ids with blanks between."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    user_id: Id
    occurred_at: EventTime
    history: list[Id] = Field(min_length=1)
    reference: Id
    target_codes: list[int] | None = None
    target_image: str | None = None
    split: Split | None = None


def items(path: Path, counts: Counter[str]) -> Iterator[ItemRow]:
    """Items of a catalogue file; an image_uri that is no address is a path from the file's folder.

    Raises:
        InputError: the file cannot be read, or no row of it is good.
    """
    base = path.resolve().parent
    for event in _events(path, CatalogItem, "catalogue", counts):
        yield ItemRow(event.item_id, event.title, event.description, _address(event.image_uri, base))


def clicks(path: Path, positive: Iterable[str], counts: Counter[str]) -> Iterator[Click]:
    """Clicks of a file whose kind enters histories; without a column `kind` all do.

    Raises:
        InputError: the file cannot be read, or no row of it is good.
    """
    kinds = {kind.lower() for kind in positive}
    some = next(iter(kinds))
    for event in _events(path, Interaction, "clicks", counts, {"event_id": NO_ID, "kind": some}):
        if event.kind.lower() in kinds:
            yield Click(event.user_id, event.item_id, microseconds(event.occurred_at))
        else:
            counts[f"clicks: kind {event.kind!r} enters no history (consumer.positive_kinds)"] += 1


def windows(path: Path, history: int, counts: Counter[str]) -> Iterator[GivenWindow]:
    """Windows of a file, with what is to be learned from them where it is not the reference.

    Raises:
        InputError: the file cannot be read, no row is good, or a history has another length.
    """
    base = path.resolve().parent
    for event in _events(path, Window, "windows", counts):
        if len(event.history) != history:
            raise InputError(f"{path}: a history of {len(event.history)} items; the checkpoint takes {history}")
        yield GivenWindow(
            event.user_id,
            microseconds(event.occurred_at),
            tuple(event.history),
            event.reference,
            None if event.target_codes is None else tuple(event.target_codes),
            _address(event.target_image, base),
            event.split,
        )


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970, UTC, exactly."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _address(uri: str | None, base: Path) -> str | None:
    if not uri:
        return None
    return uri if urlsplit(uri).scheme else str(base / uri)


def _events(
    path: Path, model: type[Event], what: str, counts: Counter[str], defaults: Row | None = None
) -> Iterator[Any]:
    """Checked rows; a bad one is counted by its field.

    Raises:
        InputError: none is good; the message names the first one's line, field and fix.
    """
    good, first = 0, ""
    for line, row in _rows(path):
        fields = {**(defaults or {}), **{name: value for name, value in row.items() if value not in (None, "")}}
        if isinstance(fields.get("history"), str):
            fields["history"] = fields["history"].split()
        try:
            event = event_forms.read(model, json.dumps(fields, default=_plain))
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)[0]
            name = str(found["loc"][0]) if found["loc"] else "row"
            counts[f"{what}: bad {name}"] += 1
            first = first or f"line {line}: {name}: {found['msg'].removeprefix('Value error, ')}"
            continue
        good += 1
        yield event
    if not good:
        raise InputError(f"{path}: no good row among those of this {what} file" + (f"; {first}" if first else ""))


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    kind = path.suffix if path.suffix != ".gz" else Path(path.stem).suffix
    readers = {".csv": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
    if kind not in readers:
        raise InputError(
            f"{path}: {kind or 'no suffix'} is not read here; give .csv, .jsonl (both also .gz) or .parquet"
        )
    try:
        yield from readers[kind](path)
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read on: {error}") from error


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    with _opened(path) as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            row.pop(None, None)
            yield reader.line_num, row


def _json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}: line {number} is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}: line {number} is not a JSON object")
            yield number, row


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException as error:
        raise InputError(f"{path}: damaged Parquet after row {number}: {error}") from error


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
