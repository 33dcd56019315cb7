"""Questions over a Unix socket: a thread per connection, which notices who has gone."""

from __future__ import annotations

import logging
import os
import select
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any

from generator.serving.backends.engine_protocol import Closed, ProtocolError, receive, taker
from generator.serving.engine.service import EngineService, Question

log = logging.getLogger("pigeon.engine")

LONGEST_PATH = 107
"""Bytes of a Unix socket's path, by the kernel's structure."""


class SocketTaken(Exception):
    """Another process answers at this socket, or the path cannot be one."""


class EngineServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens as soon as it is made, for this user alone.

    Whoever reaches the socket can ask and bring adapters.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, service: EngineService) -> None:
        """Take over a socket that nobody answers at any more.

        Raises:
            SocketTaken: an engine answers there, or the path is too long.
        """
        self.service = service
        if len(os.fsencode(path)) > LONGEST_PATH:
            raise SocketTaken(f"--socket {path}: longer than the {LONGEST_PATH} bytes that a socket's path may have")
        _take_over(path)
        before = os.umask(0o177)
        try:
            super().__init__(str(path), _Connection)
        finally:
            os.umask(before)

    def serve_in_background(self) -> threading.Thread:
        """Answer connections in threads of their own until `shutdown`."""
        thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="engine socket", daemon=True)
        thread.start()
        return thread


class _Connection(socketserver.BaseRequestHandler):
    request: socket.socket

    def handle(self) -> None:
        server: Any = self.server
        service: EngineService = server.service
        take = taker(self.request)
        try:
            while True:
                question = service.put(receive(take))
                reply = _waited_for(question, self.request, service.stopped)
                if reply is None:
                    return
                self.request.sendall(reply)
        except (Closed, OSError):
            return
        except ProtocolError as error:
            log.warning("a connection was closed: %s", error)


def _waited_for(question: Question, connection: socket.socket, stopped: threading.Event) -> bytes | None:
    """The reply as bytes; None when the asker has closed the connection meanwhile, or nobody will answer."""
    while not question.done.wait(0.05):
        if stopped.is_set():
            return None
        if select.select([connection], [], [], 0)[0] and not connection.recv(1, socket.MSG_PEEK):
            question.given_up = True
            return None
    return question.reply.to_bytes() if question.reply is not None else None


def _take_over(path: Path) -> None:
    if path.exists() and not path.is_socket():
        raise SocketTaken(f"--socket {path}: is a file, not a socket; give another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            return
        except ConnectionRefusedError:
            path.unlink()
            return
    raise SocketTaken(f"--socket {path}: another engine answers there; stop it, or give another path")
