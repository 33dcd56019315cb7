"""`python -m generator.serving.engine FOLDER --socket PATH`: LLaMA on vLLM, for Triton."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
import threading
from pathlib import Path

from generator.serving.engine.answers import AnswerRows
from generator.serving.engine.runner import EngineOptions, open_vllm
from generator.serving.engine.server import EngineServer, SocketTaken
from generator.serving.engine.service import EngineService
from generator.serving.engine.weights import EngineWeights, WrongWeights

log = logging.getLogger("pigeon.engine")


def main() -> int:
    """Serve until SIGTERM or SIGINT; 0 then, 1 where weights or socket are not what they should be."""
    given = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        weights = EngineWeights.read(given.folder)
        rows = AnswerRows(weights.rule())
        options = EngineOptions(given.dtype, given.cache_gib, given.gpu_memory_share, given.most_requests)
        with tempfile.TemporaryDirectory(prefix="pigeon-engine-") as adapters:
            core = open_vllm(weights, rows, options)
            service = EngineService(weights, core, rows, Path(adapters))
            # Only now, so that a socket that is there is an engine that answers.
            with EngineServer(given.socket, service) as server:
                server.serve_in_background()
                log.info("ready: %s, weights %s, at %s", core.name, weights.base, given.socket)
                try:
                    service.run(stop)
                finally:
                    server.shutdown()
                    given.socket.unlink(missing_ok=True)
    except (WrongWeights, SocketTaken) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    options = EngineOptions()
    parser = argparse.ArgumentParser(prog="python -m generator.serving.engine", description=__doc__)
    parser.add_argument("folder", type=Path, help="personalizer/engine of a model repository built with --engine vllm")
    parser.add_argument("--socket", type=Path, required=True, help="the repository's triton.engine_socket")
    parser.add_argument(
        "--dtype", default=options.dtype, choices=("float32", "float16", "bfloat16"), help="default: %(default)s"
    )
    parser.add_argument(
        "--cache-gib", type=float, default=options.cache_gib, help="GiB for keys and values on a CPU; %(default)s"
    )
    parser.add_argument(
        "--gpu-memory-share", type=float, default=options.gpu_memory_share, help="of a GPU's memory; %(default)s"
    )
    parser.add_argument(
        "--most-requests", type=int, default=options.most_requests, help="answers in one batch; %(default)s"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
