"""Files of events (CSV or JSON lines) to their topics, checked row by row.

A bad row is named by line, field and fix.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from pydantic import ValidationError

from consumers.files import images
from consumers.files.produce import Producer
from consumers.kafka import clients
from schemas.errors import InputError
from schemas.events import CATALOG, CONSUMED, FEEDBACK, INTERACTIONS, Event
from schemas.settings import Settings

# CSV columns with more than one value, and the separator of each.
LIST_COLUMNS = {"genres": "|", "item_ids": "|"}
JSON_COLUMNS = ("attributes", "context")
WINDOW_ROWS = 256
"""Rows whose pictures are read and uploaded at a time."""


@dataclass
class Report:
    """What became of a file's rows."""

    sent: int = 0
    uploaded: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    first: list[tuple[int, str]] = field(default_factory=list)  # the first of them: line, what is wrong

    def skip(self, line: int, reason: str, detail: str) -> None:
        """Count a row that was not sent."""
        self.skipped[reason] += 1
        if len(self.first) < 20:
            self.first.append((line, detail))

    def line(self) -> str:
        """One line for people."""
        text = f"{self.sent} rows"
        if self.uploaded:
            text += f", {self.uploaded} pictures uploaded"
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.skipped.items()))
        return text + (f"; {sum(self.skipped.values())} skipped ({reasons})" if reasons else "; 0 skipped")


class _BadRow(Exception):
    """A row that cannot be read."""


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | _BadRow]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        if not reader.fieldnames:
            raise InputError(f"{path}: empty; the first line must name the columns")
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, _BadRow(f"not valid CSV: {error}")
                continue
            if None in row:
                yield (
                    reader.line_num,
                    _BadRow(f"more values than the {len(reader.fieldnames)} columns of the first line"),
                )
                continue
            # An empty cell says nothing: the field's default holds.
            values: dict[str, Any] = {name: value for name, value in row.items() if value not in (None, "")}
            try:
                for name, separator in LIST_COLUMNS.items():
                    if name in values:
                        values[name] = [part.strip() for part in values[name].split(separator) if part.strip()]
                for name in JSON_COLUMNS:
                    if name in values:
                        values[name] = json.loads(values[name])
            except ValueError as error:
                yield reader.line_num, _BadRow(f"{name}: must be a JSON object: {error}")
                continue
            yield reader.line_num, values


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | _BadRow]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, _BadRow(f"not valid JSON: {error}")
                continue
            yield number, row if isinstance(row, dict) else _BadRow("must be a JSON object, one per line")


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | _BadRow]]:
    """(line number, row or what is wrong with it) of a .csv, .jsonl or .ndjson file.

    Raises:
        InputError: the file is missing, not UTF-8, or of another kind.
    """
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: must end in .csv, .jsonl or .ndjson")
    try:
        yield from readers[path.suffix.lower()](path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def _with_event_id(row: dict[str, Any]) -> dict[str, Any]:
    """Give a row without an event id one of its content: a file imported twice is stored once."""
    if row.get("event_id"):
        return row
    said = json.dumps(row, sort_keys=True, ensure_ascii=True, default=str)
    return {**row, "event_id": str(uuid5(NAMESPACE_URL, f"pigeon:import:{said}"))}


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(str(part) for part in first["loc"]) or "row"
    fix = "add it" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    return f"{name}: {'is missing: ' if first['type'] == 'missing' else ''}{fix}"


def _events(path: Path, topic: str, report: Report) -> Iterator[tuple[int, Event]]:
    model = CONSUMED[topic]
    needs_id = topic in (INTERACTIONS, FEEDBACK)
    for line, row in rows(path):
        if isinstance(row, _BadRow):
            report.skip(line, "unreadable row", str(row))
            continue
        try:
            # Through JSON, so that a file and a Kafka record are held to the same rules.
            text = json.dumps(_with_event_id(row) if needs_id else row)
            yield line, model.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]["loc"]
            report.skip(line, f"bad {first[0] if first else 'row'}", _explain(error))
        except (ValueError, RecursionError) as error:
            report.skip(line, "unreadable row", str(error))


def _windows(events: Iterable[tuple[int, Event]], size: int) -> Iterator[list[tuple[int, Event]]]:
    window: list[tuple[int, Event]] = []
    for entry in events:
        window.append(entry)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def _with_images(
    events: Iterable[tuple[int, Event]], base: Path, uploader: images.Uploader | None, report: Report
) -> Iterator[tuple[int, Event]]:
    """Catalogue rows with their local pictures in S3; without an uploader the pictures are only checked."""

    def resolve(event: Event) -> Event | images.UnreadableImage:
        uri: str | None = getattr(event, "image_uri", None)
        if not uri:
            return images.UnreadableImage(
                "image_uri: is missing: an item without a picture cannot be drawn from; add it"
            )
        try:
            path = images.local_path(uri, base)
            if path is None:
                return event
            content, kind = images.check(path)
        except images.UnreadableImage as error:
            return error
        stored = uploader.upload(content, kind) if uploader else uri
        return event.model_copy(update={"image_uri": stored})

    with ThreadPoolExecutor(8, thread_name_prefix="pigeon-images") as pool:
        for window in _windows(events, WINDOW_ROWS):
            for (line, _), resolved in zip(window, pool.map(resolve, [event for _, event in window]), strict=True):
                if isinstance(resolved, images.UnreadableImage):
                    missing = str(resolved).startswith("image_uri: is missing")
                    report.skip(line, "no picture" if missing else "unreadable picture", str(resolved))
                else:
                    yield line, resolved


def run(
    settings: Settings,
    topic: str,
    path: Path,
    *,
    dry_run: bool = False,
    strict: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> Report:
    """Send a file's rows to `topic` (name without prefix).

    Args:
        dry_run: check everything, upload and send nothing.
        strict: check the whole file first and send nothing if a row is bad.
        progress: called with the number of rows done so far.

    Raises:
        InputError: the file or, with `strict`, a row is bad; a topic or the bucket does not exist.
        ServerUnavailable: Kafka or S3 cannot be reached; sending the file again is safe.
    """
    if strict and not dry_run:
        run(settings, topic, path, dry_run=True, strict=True)
    report = Report()
    if dry_run:
        for _, _event in _source(settings, topic, path, None, report):
            report.sent += 1
            progress(report.sent)
    else:
        clients.require_topics(settings.kafka, [settings.kafka.topic_prefix + topic])
        uploader = images.Uploader(settings.s3) if topic == CATALOG else None
        try:
            with Producer(settings.kafka) as producer:
                for _, event in _source(settings, topic, path, uploader, report):
                    producer.send(event)
                    report.sent += 1
                    progress(report.sent)
        finally:
            if uploader:
                report.uploaded = uploader.uploaded
                uploader.close()
    if strict and report.skipped:
        raise InputError(
            f"{path}: {sum(report.skipped.values())} bad rows, nothing was sent (--strict); line {{}}: {{}}".format(
                *min(report.first)
            )
        )
    return report


def _source(
    settings: Settings, topic: str, path: Path, uploader: images.Uploader | None, report: Report
) -> Iterator[tuple[int, Event]]:
    events = _events(path, topic, report)
    return _with_images(events, path.resolve().parent, uploader, report) if topic == CATALOG else events
