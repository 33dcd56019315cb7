"""`pigeon dataset build`: from a source to a folder, in parts of which each is done once.

A build that was killed goes on with the part that it was in; the pictures that it has are not fetched again. The folder appears
when it is complete.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from generator.training.catalog.dataset import files, pictures, shards, windows
from generator.training.catalog.dataset.card import write_card, write_sheet
from generator.training.catalog.dataset.manifest import (
    MANIFEST,
    SPLITS,
    DatasetManifest,
    Redrawn,
    Split,
    entries,
    read_manifest,
)
from generator.training.catalog.dataset.pictures import Progress
from generator.training.catalog.dataset.scratch import Click, GivenWindow, ItemRow, Scratch, clear_disk_errors
from schemas.errors import InputError, Refused
from schemas.fetch import Fetcher

Redraw = Callable[[Path], Redrawn]
"""Function that redraws pictures of the data set in a folder, and puts a sheet of them there."""


@dataclass(frozen=True)
class BuildConfig:
    """What a data set is to be."""

    preset: str
    tokenizer: str
    image_size: int
    history: int
    split_by: Literal["both", "users"] = "both"
    min_windows: int = 100
    """Training windows below which nothing is built."""


class Source(Protocol):
    """Where catalogue and clicks come from."""

    @property
    def key(self) -> str:
        """Text that changes when another source, or other content, is read."""

    def read_at(self) -> datetime:
        """Moment from which on an erasure is later than what is read."""

    def items(self, counts: Counter[str]) -> Iterator[ItemRow]: ...
    def clicks(self, counts: Counter[str]) -> Iterator[Click]: ...
    def windows(self, counts: Counter[str]) -> Iterator[GivenWindow] | None:
        """Windows as they are to be learned; None where they slide over the clicks."""

    def erased_since(self, since: datetime) -> list[str]:
        """Users who must not be in the data set although they may have been read."""


@dataclass(frozen=True)
class FileSource:
    """Files; `given` in the place of clicks is a file of windows."""

    catalog: Path
    clicked: Path | None
    given: Path | None
    positive_kinds: tuple[str, ...]
    history: int
    erased: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return " ".join(_stamp(path) for path in (self.catalog, self.clicked, self.given) if path) + repr(self.erased)

    def read_at(self) -> datetime:
        return datetime.now(UTC)

    def items(self, counts: Counter[str]) -> Iterator[ItemRow]:
        return files.items(self.catalog, counts)

    def clicks(self, counts: Counter[str]) -> Iterator[Click]:
        return files.clicks(self.clicked, self.positive_kinds, counts) if self.clicked else iter(())

    def windows(self, counts: Counter[str]) -> Iterator[GivenWindow] | None:
        return files.windows(self.given, self.history, counts) if self.given else None

    def erased_since(self, since: datetime) -> list[str]:
        return list(self.erased)


def _stamp(path: Path) -> str:
    try:
        about = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    return f"{path.resolve()}:{about.st_size}:{about.st_mtime_ns}"


@dataclass(frozen=True)
class Build:
    """One build: where from, what, where to."""

    source: Source
    config: BuildConfig
    fetcher: Fetcher
    work: Path
    """Folder of scratch files."""
    progress: Progress
    redraw: Redraw | None = None
    fresh: bool = False

    def run(self, out: Path) -> DatasetManifest:
        """Build into the folder `out`, which must not hold another data set.

        Raises:
            InputError: a file is wrong, no picture is usable, `out` is taken, or the disk is full.
            Refused: too few windows; the message says of how many users and clicks.
            ServerUnavailable: Postgres or a host of pictures is away; run again, it goes on.
        """
        if out.exists() and not (out / MANIFEST).is_file():
            raise InputError(f"{out}: is there and no data set; give another folder")
        request = hashlib.sha256(f"{self.source.key} {self.config}".encode()).hexdigest()[:16]
        path = self.work / f"{request}.sqlite"
        with clear_disk_errors(out):
            if self.fresh:
                path.unlink(missing_ok=True)
            scratch = Scratch(path, request)
            try:
                self._read(scratch)
                scratch.erase(self.source.erased_since(_moment(scratch)))
                pictures.fetch_pictures(scratch, self.fetcher, self.config.image_size, self.progress)
                # Once more: fetching pictures takes long, and what was read before an erasure must not come out after it.
                scratch.erase(self.source.erased_since(_moment(scratch)))
                manifest = self._write(scratch, out)
            finally:
                scratch.close()
            scratch.delete()
        return manifest

    def _read(self, scratch: Scratch) -> None:
        with scratch.part("moment") as counts:
            if counts is not None:
                scratch.set_fact("read_at", self.source.read_at().isoformat())
        with scratch.part("items") as counts:
            if counts is not None:
                self.progress("Read items", 0, 1)
                counts["items"] = scratch.add_items(self.source.items(counts))
        with scratch.part("clicks") as counts:
            if counts is not None:
                self.progress("Read clicks", 0, 1)
                given = self.source.windows(counts)
                counts["given"] = scratch.add_given(given) if given is not None else 0
                counts["clicks"] = scratch.add_clicks(self.source.clicks(counts))

    def _write(self, scratch: Scratch, out: Path) -> DatasetManifest:
        partial = out.with_name(f"{out.name}.building")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        left_out = _left_out(scratch, self.config.history)
        rows, counts = self._windows(scratch, partial, left_out)
        rows |= _write_items(scratch, partial)
        counts |= {"items": rows["items.parquet"], "images": sum(n for p, n in rows.items() if p.startswith("images/"))}
        manifest = DatasetManifest(
            preset=self.config.preset,
            tokenizer=self.config.tokenizer,
            image_size=self.config.image_size,
            history=self.config.history,
            split_by=self.config.split_by,
            counts=counts,
            left_out={reason: count for reason, count in sorted(left_out.items()) if count},
            files=entries(partial, rows),
            read_at=_moment(scratch),
        )
        return finish(partial, out, manifest, self.redraw)

    def _windows(self, scratch: Scratch, folder: Path, left_out: Counter[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Write the windows; returns the rows of each file, and what was counted."""
        history = self.config.history
        splitter = windows.Splitter.of(scratch, history, self.config.split_by)
        is_given = bool(scratch.one("SELECT count(*) FROM given"))
        found = windows.given(scratch, left_out) if is_given else windows.sliding(scratch, history)
        writer, users, last = shards.WindowWriter(folder), Counter[Split](), ("", "")
        for number, window in enumerate(found):
            split = splitter.split(window)
            if split is None:
                left_out[windows.BETWEEN] += 1
                continue
            writer.add(split, window)
            if (window.user_id, split) != last:
                users[split] += 1
                last = (window.user_id, split)
            if number % 10_000 == 0:
                self.progress("Write windows", number, number)
        rows = writer.close()
        counts = {
            f"{split}_windows": sum(n for p, n in rows.items() if p.startswith(f"windows/{split}-")) for split in SPLITS
        }
        counts |= {f"{split}_users": users[split] for split in SPLITS} if not is_given else {}
        self._check(counts, scratch)
        return rows, counts

    def _check(self, counts: dict[str, int], scratch: Scratch) -> None:
        pictured = scratch.one("SELECT count(*) FROM items WHERE image IS NOT NULL")
        if not pictured:
            why = scratch.db.execute("SELECT problem FROM items WHERE problem IS NOT NULL LIMIT 1").fetchone()
            raise InputError(
                "no pictures: no clicked item has one that can be read"
                + (f" ({why[0]})" if why else "; does image_uri lead to them?")
            )
        train, others = counts["train_windows"], [counts[f"{split}_windows"] for split in ("validation", "test")]
        if train < self.config.min_windows or not all(others):
            users = scratch.one("SELECT count(DISTINCT user_id) FROM clicks")
            advice = ", or --split users, which leaves no window out" if self.config.split_by == "both" else ""
            raise Refused(
                f"too few windows of {users} users and {pictured} items with pictures: {train} to train on (--min-windows "
                f"{self.config.min_windows}), {others[0]} to validate, {others[1]} to test; more clicks are needed{advice}"
            )


def finish(partial: Path, out: Path, manifest: DatasetManifest, redraw: Redraw | None = None) -> DatasetManifest:
    """Put a complete folder in its place, with what is for people; the manifest is written last.

    Raises:
        InputError: `out` holds another data set.
    """
    manifest = manifest.named()
    if out.exists() and (there := read_manifest(out)).dataset_id not in (manifest.dataset_id, manifest.supersedes):
        shutil.rmtree(partial)
        raise InputError(
            f"{out}: holds another data set ({there.dataset_id[:12]}); data sets are not changed: give another folder"
        )
    (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if redraw is not None:
        manifest = manifest.model_copy(update={"redrawn": redraw(partial)})
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_sheet(partial)
    write_card(partial, manifest)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return manifest


def _moment(scratch: Scratch) -> datetime:
    return datetime.fromisoformat(scratch.fact("read_at") or "")


def _left_out(scratch: Scratch, history: int) -> Counter[str]:
    """Reason -> count of what the source has and no window can have."""
    read, left = scratch.counts("counts:clicks"), Counter[str]()
    for name in ("counts:items", "counts:clicks"):
        left.update({reason: n for reason, n in scratch.counts(name).items() if ":" in reason})
    left["clicks: repeated, of one user with one item"] = read["clicks"] - scratch.one("SELECT count(*) FROM clicks")
    left["clicks: item is not in the catalogue"] = scratch.one(
        "SELECT count(*) FROM clicks WHERE item_id NOT IN (SELECT item_id FROM items)"
    )
    left["items: without a picture"] = scratch.one("SELECT count(*) FROM clicked WHERE image_uri IS NULL")
    if read["clicks"]:
        left["items: never clicked"] = scratch.one(
            "SELECT (SELECT count(*) FROM items) - (SELECT count(*) FROM clicked)"
        )
    for problem, count in scratch.db.execute(
        "SELECT problem, count(*) FROM items WHERE problem IS NOT NULL GROUP BY 1"
    ):
        left[f"items: picture {problem}"] = count
    left["users: too few interactions for a window"] = windows.short_users(scratch, history)
    return left


def _write_items(scratch: Scratch, folder: Path) -> dict[str, int]:
    items = scratch.db.execute(
        "SELECT item_id, title, description, image FROM items WHERE image IS NOT NULL ORDER BY item_id"
    )
    rows = shards.write_all(
        folder,
        "items.parquet",
        shards.ITEMS,
        10**9,
        shards.BATCH["items"],
        (_named(shards.ITEMS, row) for row in items),
    )
    images = scratch.db.execute("SELECT sha256, png FROM images ORDER BY sha256")
    return rows | shards.write_all(
        folder,
        "images/{:05d}.parquet",
        shards.IMAGES,
        shards.IMAGE_ROWS,
        shards.BATCH["images"],
        (_named(shards.IMAGES, row) for row in images),
    )


def _named(schema: Any, row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(schema.names, row, strict=True))
