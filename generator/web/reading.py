"""The manifest's reader as the web has it: a server starts without S3, and says so."""

from __future__ import annotations

import functools
from collections.abc import Callable

import structlog

from schemas.connections import s3_client, s3_options
from schemas.errors import ServerUnavailable
from schemas.manifest import Alarm, PosterManifest
from schemas.settings import Settings

log = structlog.get_logger("pigeon.web")


class Reader:
    """Answers from the newest set; knows what went wrong last."""

    def __init__(self, settings: Settings, posters: PosterManifest | None = None) -> None:
        """`posters`: a reader that tells `on_alarm`; by default one on the settings' bucket."""
        self.problem: str | None = None
        self._run_id: str | None = None
        self.posters = posters or self._open(settings)
        self.rotation = settings.reader.rotation

    def start_quietly(self, tell: Callable[[str], None]) -> None:
        """Read the newest set; what goes wrong is told and is no error."""
        self.posters.refresh()
        try:
            self.require()
        except ServerUnavailable as error:
            tell(f"warning: {error}; looked for again every web.refresh_seconds")

    def require(self) -> None:
        """Check that there is a set or that nothing is published; counts a new set.

        Raises:
            ServerUnavailable: nothing was ever read, because S3 is away or has no whole set.
        """
        current = self.posters.current
        if current is not None:
            if current.run_id != self._run_id:
                self._run_id, self.problem = current.run_id, None
            return
        if self.problem:
            raise ServerUnavailable(f"no manifest could be read yet: {self.problem}")

    def _open(self, settings: Settings) -> PosterManifest:
        connect = functools.partial(s3_client, **s3_options(settings.s3))
        return PosterManifest(
            connect(),
            settings.s3.bucket,
            refresh_seconds=settings.web.refresh_seconds,
            on_alarm=self._on_alarm,
            cache_dir=settings.state_dir / "cache" / "manifest",
            rotation=settings.reader.rotation,
            control_share=settings.reader.control_share,
            reconnect=connect,  # the client is the reader's, to be closed with it
        )

    def _on_alarm(self, alarm: Alarm, detail: str) -> None:
        self.problem = None if alarm == "nothing_published" else f"{alarm}: {detail}"
        log.warning("manifest", alarm=alarm, detail=detail)
