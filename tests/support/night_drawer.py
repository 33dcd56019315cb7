"""A process that draws a planned night under its leader's lease, as one of several.

python -m tests.support.night_drawer TOKEN HOLDER [POINT]   # with POINT it kills itself when it reaches it

Prints the pictures that it drew, by their keys, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from generator.nightly.generate import Generator
from generator.nightly.images import CatalogImages
from generator.nightly.ledger import Ledger, run_id_of
from generator.nightly.pictures import picture_key
from generator.serving.api import PictureRequest
from generator.storage.lease import Lease
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas import faultpoints
from schemas.settings import load_settings
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT


def main() -> None:
    """Draw; see the module's docstring."""
    token, holder, *point = sys.argv[1:]
    settings = load_settings()
    settings = settings.model_copy(update={"night": settings.night.model_copy(update={"claim_seconds": 3.0})})
    engine = connect(settings.database)
    ledger = Ledger(engine, Lease("night", int(token), holder))
    model = FakePigeon()

    def slow(request: PictureRequest, attempt: int) -> None:
        time.sleep(0.05)  # so that they overlap

    def die(reached: str) -> None:
        if reached in point:
            os.kill(os.getpid(), signal.SIGKILL)

    model.picture_fault = slow
    faultpoints.handler = die
    print("ready", flush=True)  # noqa: T201 - the test waits for it
    sys.stdin.readline()
    images = CatalogImages(engine, settings)
    generator = Generator(settings, ledger, Store(settings.s3), images, model, run_id_of(NIGHT))
    generator.run(lambda tally: None)
    images.close()
    engine.dispose()
    print(json.dumps([picture_key(model.drawing_version, request.tokens) for request in model.drawn]))  # noqa: T201


if __name__ == "__main__":
    main()
