"""The reader of the S3 manifest: a recommender's whole integration.

    from schemas.manifest import PosterManifest

    posters = PosterManifest.open(bucket="pigeon", endpoint_url="https://s3.example.org")
    for item_id, choice in posters.posters_for("u42", page).items():
        show(item_id, choice.image_key or choice.image_uri)
        remember(choice.poster_id, choice.propensity)   # send both back with the feedback

What is where in the bucket: schemas/manifest_files.py, whose names are given again here.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from schemas.connections import s3_client
from schemas.control import CONTROL_SHARE, control_poster_id, in_control_group
from schemas.errors import InputError, ServerUnavailable
from schemas.manifest_cache import FileCache, default_folder
from schemas.manifest_choice import PosterChoice, Source, choose, places_of, without
from schemas.manifest_files import (
    ITEM_SCHEMA,
    MANIFEST_VERSION,
    POINTER_KEY,
    POSTER_SCHEMA,
    WITHDRAWN_KEY,
    ManifestRef,
    Pointer,
    ShardRef,
    art_key,
    from_parquet,
    items_key,
    manifest_key,
    poster_key,
    report_key,
    to_parquet,
)
from schemas.manifest_refresh import Refresher
from schemas.manifest_source import ManifestSet, ManifestSource, ObjectCorrupt, ObjectDenied, ObjectMissing
from schemas.manifest_withdrawn import Withdrawn
from schemas.s3_prefix import as_folder

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

__all__ = [
    "ITEM_SCHEMA",
    "MANIFEST_VERSION",
    "POINTER_KEY",
    "POSTER_SCHEMA",
    "WITHDRAWN_KEY",
    "Alarm",
    "ManifestRef",
    "Pointer",
    "PosterChoice",
    "PosterManifest",
    "Rotation",
    "ShardRef",
    "Source",
    "Withdrawn",
    "art_key",
    "from_parquet",
    "items_key",
    "manifest_key",
    "poster_key",
    "report_key",
    "to_parquet",
]

Rotation = Literal["day", "session", "request"]
Alarm = Literal[
    "pointer_unreadable",
    "manifest_missing",
    "manifest_corrupt",
    "items_missing",
    "items_corrupt",
    "withdrawn_unreadable",
    "refresh_failed",
    "nothing_published",
    "access_denied",
]
READINGS = 3
"""Times that the pointer is read when what it leads to has gone meanwhile."""


class PosterManifest:
    """The recommender's reader of the newest set; safe to use from several threads and after a fork.

    Light: of libraries it imports pyarrow, numpy and boto3 only.


    Shards are downloaded into a cache folder that the processes of a machine share, and memory-mapped. A thread of its own
    looks for a new night every `refresh_seconds`, by the pointer's ETag; no caller waits for it. It begins with a process's first
    question. Whatever goes wrong after the first reading, answers come from the last whole set that was read; `alarms` counts
    what went wrong, and `on_alarm` is told, in that thread.
    """

    def __init__(
        self,
        s3: S3Client,
        bucket: str,
        *,
        refresh_seconds: float = 60.0,
        on_alarm: Callable[[Alarm, str], None] | None = None,
        cache_dir: Path | str | None = None,
        rotation: Rotation = "day",
        control_share: float = CONTROL_SHARE,
        reconnect: Callable[[], S3Client] | None = None,
        prefix: str = "",
    ) -> None:
        """Prepare a reader; `open` reads the newest set, too.

        `reconnect` makes a forked process' own client; without, only its connections are its own. `prefix` is what the client
        puts before all keys.
        """
        place = hashlib.sha256(f"{s3.meta.endpoint_url}{as_folder(prefix)}".encode()).hexdigest()[:8]
        folder = Path(cache_dir) if cache_dir else default_folder()
        self._source = ManifestSource(s3, bucket, FileCache(folder / f"{bucket}-{place}"), reconnect)
        self._on_alarm = on_alarm
        self._rotation = rotation
        self._control_share = control_share
        self._loaded: ManifestSet | None = None
        self._withdrawn = Withdrawn()
        self._withdrawn_etag: str | None = None
        self._lock = threading.Lock()
        self._refresher = Refresher(self, refresh_seconds)
        self.alarms: Counter[Alarm] = Counter()

    @classmethod
    def open(
        cls,
        *,
        bucket: str,
        endpoint_url: str | None = None,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        prefix: str = "",
        addressing_style: Literal["auto", "path", "virtual"] = "auto",
        client: S3Client | None = None,
        refresh_seconds: float = 60.0,
        on_alarm: Callable[[Alarm, str], None] | None = None,
        cache_dir: Path | str | None = None,
        rotation: Rotation = "day",
        control_share: float = CONTROL_SHARE,
    ) -> PosterManifest:
        """Connect and read the newest set.

        Keys that are not given come from where boto3 looks (environment, profile, role). They need s3:GetObject; without
        s3:ListBucket the store answers 403 for what is not there yet, which is an alarm until the first night. `prefix` is the
        installation's s3.prefix, which the keys of pictures do not have; a `client` of your own puts it before keys itself
        (`schemas.connections.s3_client`).

        `refresh_seconds` of infinity looks only when `refresh` is called. `cache_dir` needs room for two sets; without, it is
        in the user's cache folder. `rotation` says for how long a user sees one variant of an item: a day, or as long as the
        `key` given to `posters_for` stays the same (a session's id, or a request's). `control_share` is the share of users, by a
        stable hash, who are shown the items' own pictures instead of drawn posters; all readers should have the same.

        Raises:
            InputError: the bucket does not exist or the keys are refused.
            ServerUnavailable: the store cannot be reached.
            OSError: the cache folder cannot be written.
        """
        connect = None
        if client is None:
            connect = functools.partial(
                s3_client,
                endpoint_url=endpoint_url,
                region=region or "us-east-1",
                access_key_id=access_key_id,
                secret_access_key=secret_access_key,
                session_token=session_token,
                addressing_style=addressing_style,
                prefixed=(bucket, as_folder(prefix)),
                max_attempts=4,
            )
            client = connect()
        reader = cls(
            client,
            bucket,
            refresh_seconds=refresh_seconds,
            on_alarm=on_alarm,
            cache_dir=cache_dir,
            rotation=rotation,
            control_share=control_share,
            reconnect=connect,
            prefix=prefix,
        )
        reader._load()
        return reader

    @property
    def current(self) -> ManifestRef | None:
        """The set that answers now; None while nothing has been published."""
        return self._loaded.ref if self._loaded else None

    @property
    def withdrawn(self) -> Withdrawn:
        """What is taken back, as of the last reading."""
        return self._withdrawn

    def refresh(self) -> bool:
        """Look for a newer set now, in this thread; True when there was one.

        Never raises: what goes wrong is an alarm.
        """
        with self._lock:
            self._refresher.release()
            before = self._loaded
            try:
                self._load()
            except (InputError, ServerUnavailable, OSError) as error:
                self._alarm("refresh_failed", str(error))
            return self._loaded is not before

    def close(self) -> None:
        """Stop looking for new sets. What was read last goes on to be answered from."""
        self._refresher.stop()
        with self._lock:
            self._source.close()

    def posters_for(
        self, user_id: str, item_ids: Iterable[str], *, on: date | None = None, key: str | None = None
    ) -> dict[str, PosterChoice]:
        """What to show this user for these items, in their order; unknown items are left out.

        Variants are drawn with their propensities by a stable hash of user, item and the date, which is the night's unless `on`
        is given; of `key`, the session's or request's id, instead of the date where `rotation` is not "day". Never waits, and
        never raises for what is in S3.

        Raises:
            ValueError: the rotation needs a `key`.
        """
        self._refresher.start()
        item_ids = tuple(item_ids)
        loaded, withdrawn = self._loaded, self._withdrawn
        turn = self._turn(loaded, on, key)
        if loaded is None:
            return {}
        chosen = {} if user_id in withdrawn.user else choose(loaded, withdrawn, user_id, item_ids, turn)
        is_control = in_control_group(user_id, self._control_share)
        found = {}
        for item_id in item_ids:
            choice = chosen.get(item_id)
            if choice is None or is_control:
                choice = self._own_poster(loaded, item_id, is_control=choice is not None) or choice
            if choice is not None:
                found[item_id] = choice
        return found

    def poster_for(
        self, user_id: str, item_id: str, *, on: date | None = None, key: str | None = None
    ) -> PosterChoice | None:
        """As `posters_for`, of one item; None when not even the item is known."""
        return self.posters_for(user_id, (item_id,), on=on, key=key).get(item_id)

    def variants_for(self, user_id: str, item_id: str) -> list[dict[str, Any]]:
        """All rows of the manifest for this user and item, in the order of their variant numbers."""
        loaded, withdrawn = self._loaded, self._withdrawn
        if loaded is None or user_id in withdrawn.user:
            return []
        shard, start, end = loaded.posters_of(user_id)
        places = places_of(shard, start, end, {item_id}, withdrawn).get(item_id, [])
        mine = shard.rows.select(POSTER_SCHEMA.names).take(pa.array(places, pa.int64()))
        found: list[dict[str, Any]] = mine.to_pylist()
        return found

    def rows(self) -> pa.Table:
        """The whole set less what is withdrawn, as POSTER_SCHEMA, by the users' hashes; for tools."""
        if self._loaded is None:
            return POSTER_SCHEMA.empty_table()
        batches = [shard.rows.select(POSTER_SCHEMA.names) for shard in self._loaded.shards.values()]
        table = pa.Table.from_batches(batches).replace_schema_metadata(POSTER_SCHEMA.metadata)
        return without(table, self._withdrawn) if self._withdrawn else table

    def _own_poster(self, loaded: ManifestSet, item_id: str, *, is_control: bool) -> PosterChoice | None:
        """The item's own picture, for the control group with an id and a propensity."""
        image_uri = loaded.image_uri(item_id)
        if image_uri is None:
            return None
        if not is_control:
            return PosterChoice(source="item", image_uri=image_uri)
        poster_id = control_poster_id(item_id)
        return PosterChoice("control", poster_id, image_uri=image_uri, propensity=self._control_share)

    def _turn(self, loaded: ManifestSet | None, on: date | None, key: str | None) -> str:
        """What decides, with user and item, which variant it is."""
        if self._rotation != "day":
            if key is None:
                raise ValueError(f"rotation {self._rotation!r} needs the {self._rotation}'s id as `key`")
            return f"{self._rotation}\x1f{key}"
        if on is not None:
            return on.isoformat()
        return loaded.ref.logical_date if loaded else ""

    def _load(self) -> None:
        """Read what is withdrawn, then the pointer and, when it has changed, its set or the one before."""
        self._load_withdrawn()
        for reading in range(READINGS):
            answer = self._read_pointer(self._loaded.etag if self._loaded else None)
            if answer is None:
                if self._loaded is None:
                    self._alarm("nothing_published", POINTER_KEY)
                return
            body, etag = answer
            if not body:  # not modified, or not ours to read
                return
            try:
                pointer = Pointer.parse(body)
            except ValueError as error:
                self._alarm("pointer_unreadable", str(error))
                return
            problems: list[tuple[Alarm, str]] = []
            if self._load_set(pointer, etag, problems):
                break
            # What was replaced while we read it (an erasure did) is no problem: the pointer leads elsewhere by now.
            again = self._read_pointer(etag)
            if reading + 1 == READINGS or again is None or not again[0]:
                break
        for alarm, detail in problems:
            self._alarm(alarm, detail)

    def _read_pointer(self, etag: str | None) -> tuple[bytes, str] | None:
        """As `ManifestSource.get`; an alarm, and no news, where these keys may not read it."""
        try:
            return self._source.get(POINTER_KEY, none_match=etag)
        except ObjectDenied as error:
            self._alarm("access_denied", str(error))
            return b"", etag or ""

    def _load_set(self, pointer: Pointer, etag: str, problems: list[tuple[Alarm, str]]) -> bool:
        """Take over the pointer's set, or the one before it; False when it is not the pointer's whole set."""
        for ref, is_previous in ((pointer.current, False), (pointer.previous, True)):
            if ref is None:
                continue
            try:
                # A set read instead of a missing one is looked at again next time: its tag is not the pointer's.
                loaded = self._source.open_set(
                    ref, is_previous=is_previous, etag="" if is_previous else etag, known=self._loaded
                )
            except ObjectMissing as error:
                problems.append(("manifest_missing", str(error)))
                continue
            except ObjectCorrupt as error:
                problems.append(("manifest_corrupt", str(error)))
                continue
            try:
                loaded.items = self._source.open_items(ref, self._loaded)
            except ObjectMissing as error:
                problems.append(("items_missing", str(error)))
            except ObjectCorrupt as error:
                problems.append(("items_corrupt", str(error)))
            before, self._loaded = self._loaded, loaded
            self._refresher.retire(before, loaded)
            self._source.cache.clean(loaded.files)
            return not problems
        return False

    def _load_withdrawn(self) -> None:
        try:
            answer = self._source.get(WITHDRAWN_KEY, none_match=self._withdrawn_etag)
        except ObjectDenied as error:  # mostly, nothing was ever withdrawn; what is known stays hidden
            if self._loaded is None:
                self._alarm("access_denied", str(error))
            return
        if answer is None:
            self._withdrawn, self._withdrawn_etag = Withdrawn(), None
        elif answer[0]:
            try:
                self._withdrawn, self._withdrawn_etag = Withdrawn.parse(answer[0]), answer[1]
            except ValueError as error:
                self._alarm("withdrawn_unreadable", str(error))

    def _alarm(self, alarm: Alarm, detail: str) -> None:
        self.alarms[alarm] += 1
        if self._on_alarm:
            self._on_alarm(alarm, detail)

    def _after_fork(self) -> None:
        """Begin again in a forked process, which has neither the thread nor the lock's holder."""
        self._lock = threading.Lock()
        self._source.after_fork()
