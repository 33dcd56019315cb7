"""HTTP/1.1 by httptools, without upgrades: Java's client offers HTTP/2 with each first request.

httptools takes what follows such an offer for another protocol, so that the request's body, and all later requests of the
connection, are lost (uvicorn 0.54, httptools 0.9). Who answers in HTTP/1.1 may ignore the offer: we do, by not reading it.
"""

from __future__ import annotations

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER = re.compile(rb"\r\n(?:upgrade|http2-settings):[^\r\n]*", re.IGNORECASE)


class WithoutUpgrade(HttpToolsProtocol):
    """Requests whose offers of other protocols are left out."""

    def data_received(self, data: bytes) -> None:
        """Parse what came, less the offers in a head that came in one piece."""
        if b"h2c" in data:
            head, mark, body = data.partition(b"\r\n\r\n")
            data = _OFFER.sub(b"", head) + mark + body
        super().data_received(data)
