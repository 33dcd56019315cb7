"""Catalogue pictures for the night.

Asked for only when they may have changed, known by the hash of their bytes.

What is known of an address is in `catalog_images`, bytes are in a folder (image_cache.py), who is away in image_hosts.py;
fetching and decoding are schemas/fetch.py and schemas/images.py, the same as for imports.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqlalchemy import Engine, case, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from generator.nightly.image_cache import ImageCache
from generator.nightly.image_hosts import AddressInTrouble, HostOutage, ImageHosts, Outage
from generator.storage.postgres import plain_errors
from schemas.deadline_http import one_line
from schemas.fetch import Fetcher
from schemas.fetched import Fetched, HostUnavailable, Known, NotModified
from schemas.image_files import LOCAL_FILES
from schemas.images import ImageProblem, decode, read
from schemas.settings import Settings
from schemas.tables import CatalogImage, Item

if TYPE_CHECKING:
    from schemas.images import Pixels

__all__ = ["CatalogImages", "ImageAway", "Probe", "UnreadableImage", "decode"]

log = logging.getLogger(__name__)

UnreadableImage = ImageProblem
PAGE = 500
"""Addresses that are asked about before what was learned is stored."""


class ImageAway(ImageProblem):
    """The host of a picture whose bytes are needed does not give them; the text names it.

    Nothing is known against the picture.
    """


@dataclass(frozen=True)
class Probe:
    """Outcome of looking at a picture: its hash, or why there is none tonight."""

    sha256: str | None
    problem: str | None
    away: bool = False
    """The host is away and the picture was never seen: no property of the picture."""


@dataclass(frozen=True)
class _Row:
    """What is known of an address."""

    sha256: str | None
    etag: str | None
    last_modified: str | None
    problem: str | None
    age_seconds: float


@dataclass(frozen=True)
class _Seen:
    """What an answer told of an address."""

    sha256: str | None
    etag: str | None = None
    last_modified: str | None = None
    problem: str | None = None


class CatalogImages:
    """Looks at catalogue pictures and gives their pixels.

    Safe to use from several threads, and from several processes.

    `stopping` ends every wait for a host that is away.
    """

    def __init__(self, engine: Engine, settings: Settings, *, stopping: threading.Event | None = None) -> None:
        self._engine = engine
        self._settings = settings.images
        self._fetcher = Fetcher(settings)
        self._cache = ImageCache(settings.state_dir / "cache" / "pictures", settings.images.cache_mib * 2**20)
        self._hosts = ImageHosts(settings.night.outage_seconds, stopping or threading.Event())
        self._pixels = functools.lru_cache(maxsize=8)(self._decoded)
        self._lock = threading.Lock()
        self._looked_at = 0
        self.asked = 0
        """Addresses that somebody was asked about."""
        self.blank: set[str] = set()
        """Addresses whose pictures were found to have one colour only."""

    def probe_all(self, uris: Iterable[str], *, threads: int = 8) -> dict[str, Probe]:
        """Look at each address once.

        And wait for hosts of pictures that were never seen, as long as night.outage_seconds.

        A picture that was seen before is taken as it was seen last while its host is away.

        Raises:
            ServerUnavailable: Postgres is away.
        """
        unique = sorted(set(uris))
        found: dict[str, Probe] = {}
        with ThreadPoolExecutor(threads, thread_name_prefix="fetch") as pool:
            for start in range(0, len(unique), PAGE):
                found.update(self._probe_page(unique[start : start + PAGE], pool))
        with self._lock:
            self._looked_at += len(unique)
        return found

    def probe(self, uri: str) -> Probe:
        """Look at one picture.

        Raises:
            ServerUnavailable: Postgres is away.
        """
        return self.probe_all([uri], threads=1)[uri]

    def pixels(self, uri: str, sha256: str) -> Pixels:
        """(H, W, 3) RGB of the picture that the plan saw; waits for its host when the bytes are not at hand.

        Raises:
            ImageProblem: it is gone, or its bytes have changed since the plan.
            ImageAway: its host has been away for night.outage_seconds, or fails for this picture again and again.
        """
        return self._pixels(uri, sha256)

    def cached(self, sha256: str) -> bytes | None:
        """The bytes of a picture where they are on this machine's disk; nobody is asked."""
        return self._cache.get(sha256)

    def changed_since(self, moment: datetime) -> Iterator[str]:
        """Addresses whose pictures became others, or were first seen, after `moment`.

        Raises:
            ServerUnavailable: Postgres is away.
        """
        query = select(CatalogImage.uri).where(CatalogImage.changed_at > moment).order_by(CatalogImage.uri)
        with plain_errors(self._engine), Session(self._engine) as session:
            yield from session.scalars(query.execution_options(yield_per=5000))

    def stop_waiting_on(self, stopping: threading.Event) -> None:
        """Let this event end the waits from now on."""
        self._hosts.stopping = stopping

    def outages(self) -> list[Outage]:
        """Hosts that were away since this object was made, with the addresses that it concerned."""
        return self._hosts.outages()

    def check_outages(self) -> None:
        """Refuse to go on without too many pictures; one address alone is never too many.

        Raises:
            HostOutage: more than images.away_share of the addresses were never seen, and their hosts are away.
        """
        outages = [outage for outage in self.outages() if outage.unseen]
        unseen = sum(outage.unseen for outage in outages)
        if unseen > max(1, self._settings.away_share * self._looked_at):
            hosts = "; ".join(f"{outage.host}: {outage.unseen} pictures ({outage.reason})" for outage in outages[:5])
            raise HostOutage(
                f"{unseen} of {self._looked_at} pictures were never seen and their hosts are away: {hosts} "
                "(settings night.outage_seconds, images.away_share)"
            )

    def drop_unlisted(self, older_than_seconds: float) -> int:
        """Forget addresses that no item has and that nobody looked at for so long; returns how many.

        Raises:
            ServerUnavailable: Postgres is away.
        """
        query = delete(CatalogImage).where(
            CatalogImage.checked_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, older_than_seconds),
            ~exists().where(Item.image_uri == CatalogImage.uri),
        )
        with plain_errors(self._engine), Session(self._engine) as session, session.begin():
            return len(session.scalars(query.returning(CatalogImage.uri)).all())

    def close(self) -> None:
        """Close the connections to picture hosts."""
        self._fetcher.close()

    # --- looking ---

    def _probe_page(self, uris: Sequence[str], pool: ThreadPoolExecutor) -> dict[str, Probe]:
        rows = self._rows(uris)
        found: dict[str, Probe] = {}
        seen: dict[str, _Seen] = {}
        ask: list[str] = []
        for uri in uris:
            row = rows.get(uri)
            problem = self._refused(uri)
            if problem is not None and row is not None:
                seen[uri] = _Seen(None, problem=problem)
            elif problem is not None:  # nothing to remember: a setting or the text itself decides each time
                found[uri] = Probe(None, problem)
            elif row is not None and self._is_fresh(uri, row):
                found[uri] = Probe(row.sha256, None)
            else:
                ask.append(uri)
        waiting: list[str] = []
        for uri, outcome in self._ask_all(ask, rows, pool, patient=False):
            if isinstance(outcome, _Seen):
                seen[uri] = outcome
            elif uri in rows:
                self._hosts.count(self._fetcher.host(uri), uri, known=True)
                found[uri] = Probe(rows[uri].sha256, rows[uri].problem)
            else:
                waiting.append(uri)
        self._store(seen)
        late: dict[str, _Seen] = {}
        for uri, outcome in self._ask_all(waiting, rows, pool, patient=True):
            if isinstance(outcome, _Seen):
                late[uri] = outcome
            else:
                found[uri] = self._missed(uri, outcome)
        self._store(late)
        found.update({uri: Probe(one.sha256, one.problem) for uri, one in (seen | late).items()})
        return found

    def _ask_all(
        self, uris: Sequence[str], rows: dict[str, _Row], pool: ThreadPoolExecutor, *, patient: bool
    ) -> Iterator[tuple[str, _Seen | HostUnavailable]]:
        def ask(uri: str) -> _Seen | HostUnavailable:
            host = self._fetcher.host(uri)
            try:
                if patient:
                    return self._hosts.ask_patiently(host, lambda: self._look(uri, rows.get(uri)))
                return self._hosts.ask(host, lambda: self._look(uri, rows.get(uri)))
            except ImageProblem as problem:
                return _Seen(None, problem=str(problem))
            except HostUnavailable as error:
                return error

        in_turn = self._in_turn(uris)
        return zip(in_turn, pool.map(ask, in_turn), strict=True)

    def _in_turn(self, uris: Sequence[str]) -> list[str]:
        """Addresses with their hosts taking turns, so that a slow one does not hold all threads."""
        by_host: dict[str, list[str]] = {}
        for uri in uris:
            by_host.setdefault(self._fetcher.host(uri), []).append(uri)
        return [uri for turn in zip_longest(*by_host.values()) for uri in turn if uri is not None]

    def _look(self, uri: str, row: _Row | None) -> _Seen:
        """Ask for one picture and decode it when its bytes are new."""
        with self._lock:
            self.asked += 1
        known = Known(row.etag, row.last_modified) if row and row.sha256 else None
        answer = self._fetcher.fetch(uri, known)
        if isinstance(answer, NotModified):
            assert row is not None  # noqa: S101 - nothing was asked about without one
            return _Seen(row.sha256, row.etag, row.last_modified)
        sha256 = hashlib.sha256(answer.body).hexdigest()
        if row is None or row.sha256 != sha256:
            self._decode(uri, answer)
        self._cache.put(sha256, answer.body)
        return _Seen(sha256, answer.etag, answer.last_modified)

    def _decode(self, uri: str, answer: Fetched) -> Pixels:
        decoded = read(answer.body)
        if decoded.blank:
            with self._lock:
                new = uri not in self.blank
                self.blank.add(uri)
            if new:
                log.warning("blank picture: %s", uri)
        return decoded.pixels

    def _refused(self, uri: str) -> str | None:
        try:
            self._fetcher.check(uri)
        except ImageProblem as problem:
            return str(problem)
        return None

    def _is_fresh(self, uri: str, row: _Row) -> bool:
        """Whether nobody need be asked. Problems are always asked about again: somebody may have mended them."""
        if row.sha256 is None or self._fetcher.host(uri) == LOCAL_FILES:  # looking at a file costs less than a row
            return False
        named_by_content = urlsplit(uri).path.rpartition("/")[2].partition(".")[0] == row.sha256
        return named_by_content or row.age_seconds < self._settings.fresh_seconds

    def _missed(self, uri: str, error: HostUnavailable) -> Probe:
        if isinstance(error, AddressInTrouble):  # not remembered: tomorrow it may be there
            return Probe(None, f"the host fails for this picture: {error}")
        self._hosts.count(self._fetcher.host(uri), uri, known=False)
        return Probe(None, f"picture host is away: {error}", away=True)

    # --- drawing ---

    def _decoded(self, uri: str, sha256: str) -> Pixels:
        data = self._cache.get(sha256)
        if data is None:
            data = self._fetched(uri)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ImageProblem(f"{uri} has changed since the night was planned")
            self._cache.put(sha256, data)
        return decode(data)

    def _fetched(self, uri: str) -> bytes:
        try:
            answer = self._hosts.ask_patiently(self._fetcher.host(uri), lambda: self._fetcher.fetch(uri))
        except HostUnavailable as error:
            words = "the host fails for this picture" if isinstance(error, AddressInTrouble) else "picture host is away"
            raise ImageAway(f"{words}: {error}") from error
        assert isinstance(answer, Fetched)  # noqa: S101 - asked without a condition
        return answer.body

    # --- what is known ---

    def _rows(self, uris: Sequence[str]) -> dict[str, _Row]:
        age = func.extract("epoch", func.clock_timestamp() - CatalogImage.checked_at)
        query = select(
            CatalogImage.uri,
            CatalogImage.sha256,
            CatalogImage.etag,
            CatalogImage.last_modified,
            CatalogImage.problem,
            age,
        ).where(CatalogImage.uri.in_(uris))
        with plain_errors(self._engine), Session(self._engine) as session:
            return {
                uri: _Row(sha256, etag, last_modified, problem, float(seconds))
                for uri, sha256, etag, last_modified, problem, seconds in session.execute(query)
            }

    def _store(self, seen: dict[str, _Seen]) -> None:
        if not seen:
            return
        now = func.clock_timestamp()
        rows: list[dict[str, Any]] = [
            {
                "uri": uri,
                "sha256": one.sha256,
                "etag": one.etag,
                "last_modified": one.last_modified,
                "problem": one_line(one.problem) if one.problem else None,
                "checked_at": now,
                "changed_at": now,
            }
            for uri, one in sorted(
                seen.items()
            )  # one order, so that two processes do not wait for each other in a circle
        ]
        query = insert(CatalogImage).values(rows)
        new = query.excluded
        query = query.on_conflict_do_update(
            index_elements=[CatalogImage.uri],
            set_={
                "sha256": new.sha256,
                "etag": new.etag,
                "last_modified": new.last_modified,
                "problem": new.problem,
                "checked_at": new.checked_at,
                "changed_at": case(
                    (CatalogImage.sha256.is_distinct_from(new.sha256), new.changed_at), else_=CatalogImage.changed_at
                ),
            },
        )
        with plain_errors(self._engine), Session(self._engine) as session, session.begin():
            session.execute(query)
