"""What the pages share: settings, the reader, Postgres, S3, and the consumers' functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from sqlalchemy import Engine

from generator.storage.objects import Store
from generator.storage.postgres import connect
from generator.web.access import Access
from generator.web.outside import EventSender, Outside
from generator.web.reading import Reader
from generator.web.signed_urls import ImageAddresses
from generator.web.signing import Signer
from schemas.errors import InputError
from schemas.settings import Settings

STATEMENT_SECONDS = 10.0
"""Seconds that a page's statement may take."""


@dataclass(frozen=True)
class WebContext:
    """One server's parts."""

    settings: Settings
    outside: Outside
    signer: Signer
    access: Access
    reader: Reader
    addresses: ImageAddresses
    sender: EventSender
    engine: Engine
    store: Store

    @classmethod
    def of(cls, settings: Settings, outside: Outside) -> Self:
        """The parts that the settings name; none is contacted yet.

        Raises:
            InputError: there is no signing key, or nobody could ask.
        """
        web = settings.web
        if web.signing_key is None:
            raise InputError("web.signing_key (PIGEON_WEB__SIGNING_KEY) is not set: `pigeon serve --new-key` draws one")
        keys = [key for key in (web.signing_key, web.previous_signing_key) if key]
        signer = Signer(*keys)
        # A page is looked at by a person: it does not wait for as long as a night may.
        impatient = settings.database.model_copy(
            update={"statement_timeout_seconds": min(STATEMENT_SECONDS, settings.database.statement_timeout_seconds)}
        )
        store = Store(settings.s3)
        return cls(
            settings,
            outside,
            signer,
            Access(web, signer),
            Reader(settings),
            ImageAddresses(web, settings.s3, store.s3),
            outside.open_sender(settings.kafka, web.feedback_in_flight),
            connect(impatient),
            store,
        )

    def close(self) -> None:
        """End the reader's thread and the connections; feedback that was handed over is waited for."""
        self.reader.posters.close()
        self.sender.close()
        self.engine.dispose()
        self.store.s3.close()
