"""Files of events to their topics: rows checked one by one, pictures uploaded.

A bad row is named by line, field and fix.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from pydantic import ValidationError

from consumers.files import images
from consumers.files.columns import Columns
from consumers.files.layout import Layout, ReadOptions, detect
from consumers.files.produce import Producer
from consumers.files.rows import BadRow, rows
from consumers.kafka import rights
from schemas import event_forms
from schemas.errors import InputError
from schemas.events import CATALOG, CONSUMED, FEEDBACK, INTERACTIONS, CatalogItem, Event, Interaction
from schemas.images import ImageProblem
from schemas.settings import Settings
from schemas.typefaces import Typefaces, default_font, problem

WINDOW_ROWS = 256
"""Rows whose pictures are read and uploaded at a time."""
SAMPLES = 10
"""Bad rows that are shown, and odd ones."""
HOPELESS_ROWS = 1_000
"""So many first rows refused for one reason, and no good one: the file is not what it was taken for."""


@dataclass
class Report:
    """What became of a file's rows."""

    sent: int = 0
    uploaded: int = 0
    left_out: int = 0  # by --keep
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    first: list[tuple[int, str]] = field(default_factory=list)  # the first of them: line, what is wrong
    warned: Counter[str] = field(default_factory=Counter)  # reason -> rows that were sent all the same
    warnings: list[tuple[int, str]] = field(default_factory=list)  # the first of them: line, what is odd

    @property
    def bad(self) -> int:
        """Rows that were not sent because something is wrong with them."""
        return sum(self.skipped.values())

    @property
    def bad_share(self) -> float:
        """Share of `bad` among all rows that count."""
        return self.bad / max(1, self.bad + self.sent)

    def skip(self, line: int, reason: str, detail: str) -> None:
        """Count a row that was not sent.

        Raises:
            InputError: there is no good row among the first thousand, and all are refused for one reason.
        """
        self.skipped[reason] += 1
        if len(self.first) < SAMPLES:
            self.first.append((line, detail))
        if not self.sent and self.skipped[reason] == HOPELESS_ROWS:
            raise InputError(f"the first {HOPELESS_ROWS} rows are all refused, line {line} and before: {detail}")

    def warn(self, line: int, reason: str, detail: str) -> None:
        """Count a row that is sent, but may not be what was meant."""
        self.warned[reason] += 1
        if self.warned[reason] == 1 or len(self.warnings) < SAMPLES:
            self.warnings.append((line, detail))

    def line(self) -> str:
        """One line for people."""
        text = f"{self.sent} rows"
        if self.uploaded:
            text += f", {self.uploaded} pictures uploaded"
        if self.left_out:
            text += f", {self.left_out} left out by --keep"
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.skipped.items()))
        text += f"; {self.bad} skipped ({reasons})" if reasons else "; 0 skipped"
        odd = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.warned.items()))
        return text + (f"; to look at: {odd}" if odd else "")


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


@dataclass(frozen=True)
class Looked:
    """A file that was looked at."""

    layout: Layout
    columns: Columns

    def describe(self) -> str:
        """What it was taken for, in a line or two."""
        taken = self.columns.describe()
        return self.layout.describe() + (f"\n{taken}" if taken else "")


class _Reader:
    """The events of one file."""

    def __init__(self, settings: Settings, topic: str, looked: Looked, report: Report) -> None:
        self._model = CONSUMED[topic]
        self._needs_id = topic in (INTERACTIONS, FEEDBACK)
        self._layout, self._columns, self._report = looked.layout, looked.columns, report
        self._positive = frozenset(kind.lower() for kind in settings.consumer.positive_kinds)
        self._items: set[str] = set()
        night = settings.night
        # Without any font there is nothing to check by; the night's machine has one.
        has_font = topic == CATALOG and (night.font or default_font())
        self._typefaces = Typefaces(night.font, night.fonts) if has_font else None

    def events(self) -> Iterator[tuple[int, Event]]:
        for line, row in rows(self._layout):
            if isinstance(row, BadRow):
                self._report.skip(line, "unreadable row", str(row))
            elif not self._columns.counts(row):
                self._report.left_out += 1
            else:
                event = self._event(line, row)
                if event is not None:
                    self._look(line, event)
                    yield line, event

    def _event(self, line: int, row: dict[str, Any]) -> Event | None:
        try:
            cells = self._columns.cells(row)
            # Through JSON, so that a file and a Kafka record are held to the same rules.
            text = json.dumps(_with_event_id(cells.fields) if self._needs_id else cells.fields, default=str)
            event = event_forms.read(self._model, text)
        except BadRow as error:
            self._report.skip(line, f"bad {str(error).partition(':')[0]}", str(error))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]["loc"]
            self._report.skip(line, f"bad {first[0] if first else 'row'}", _explain(error))
        except (ValueError, RecursionError) as error:
            self._report.skip(line, "unreadable row", str(error))
        else:
            for odd in cells.odd:
                self._report.warn(line, odd.partition(" ")[0] + " to look at", odd)
            return event
        return None

    def _look(self, line: int, event: Event) -> None:
        if isinstance(event, Interaction) and event.kind.lower() not in self._positive:
            counted = ", ".join(sorted(self._positive))
            text = f"kind {event.kind!r} enters no history; consumer.positive_kinds has {counted}"
            self._report.warn(line, f"kind {event.kind!r} enters no history", text)
        elif isinstance(event, CatalogItem):
            if event.item_id in self._items:
                self._report.warn(line, "item_id again", f"item_id {event.item_id!r} again: the later row holds")
            self._items.add(event.item_id)
            why = problem(event.title, self._typefaces) if self._typefaces else None
            if why:
                self._report.warn(
                    line, "title not drawable", f"title {event.title!r}: no poster of it can be made: {why}"
                )


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
    events: Iterable[tuple[int, Event]],
    base: Path,
    uploader: images.Uploader | None,
    report: Report,
    max_image_bytes: int,
) -> Iterator[tuple[int, Event]]:
    """Catalogue rows with their local pictures in S3; without an uploader the pictures are only checked."""

    def resolve(event: Event) -> tuple[Event | ImageProblem, bool]:
        """The event, or what is wrong with its picture; and whether the picture is blank."""
        uri: str | None = getattr(event, "image_uri", None)
        if not uri:
            return ImageProblem("image_uri: is missing: an item without a picture cannot be drawn from; add it"), False
        try:
            path = images.local_path(uri, base)
            if path is None:
                return event, False
            checked = images.check(path, max_image_bytes)
        except ImageProblem as problem:
            return problem, False
        stored = uploader.upload(checked.content, checked.kind) if uploader else uri
        return event.model_copy(update={"image_uri": stored}), checked.blank

    with ThreadPoolExecutor(8, thread_name_prefix="pigeon-images") as pool:
        for window in _windows(events, WINDOW_ROWS):
            outcomes = pool.map(resolve, [event for _, event in window])
            for (line, event), (resolved, blank) in zip(window, outcomes, strict=True):
                if isinstance(resolved, ImageProblem):
                    missing = str(resolved).startswith("image_uri: is missing")
                    report.skip(line, "no picture" if missing else "unreadable picture", str(resolved))
                    continue
                if blank:
                    report.warn(line, "blank picture", f"image {getattr(event, 'image_uri', '')}: has one colour only")
                yield line, resolved


def look(topic: str, path: Path, options: ReadOptions = ReadOptions()) -> Looked:  # noqa: B008 - frozen
    """Find out what a file is, before any row is read.

    Raises:
        InputError: it cannot be read as `topic`'s events; the message names the option that mends it.
    """
    layout = detect(path, options)
    return Looked(layout, Columns(topic, layout, options))


def run(
    settings: Settings,
    topic: str,
    looked: Looked,
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
        run(settings, topic, looked, dry_run=True, strict=True)
    report = Report()
    if dry_run:
        for _, _event in _source(settings, topic, looked, None, report):
            report.sent += 1
            progress(report.sent)
    else:
        rights.require(settings.kafka, rights.to_produce([settings.kafka.topic_prefix + topic]))
        uploader = images.Uploader(settings.s3) if topic == CATALOG else None
        try:
            with Producer(settings.kafka) as producer:
                for _, event in _source(settings, topic, looked, uploader, report):
                    producer.send(event)
                    report.sent += 1
                    progress(report.sent)
        finally:
            if uploader:
                report.uploaded = uploader.uploaded
                uploader.close()
    if strict and report.skipped:
        line, problem = min(report.first)
        raise InputError(
            f"{looked.layout.path}: {report.bad} bad rows, nothing was sent (--strict); line {line}: {problem}"
        )
    return report


def _source(
    settings: Settings, topic: str, looked: Looked, uploader: images.Uploader | None, report: Report
) -> Iterator[tuple[int, Event]]:
    events = _Reader(settings, topic, looked, report).events()
    if topic != CATALOG:
        return events
    base = looked.layout.path.resolve().parent
    return _with_images(events, base, uploader, report, settings.night.max_image_bytes)
