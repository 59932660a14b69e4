"""What the stand-ins of clouds have in common: a server on loopback, requests with JSON, faults."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass
class StandIn:
    """What every stand-in has.

    Attributes
    ----------
    calls
        Every request.
    faults
        What is to go wrong so many times: ``stockout``, ``quota``, ``rate``, ``error``, ``raise`` (done, then 500),
        ``exhausted:ZONE`` and ``exhausted:ZONE/SIZE`` (as long as it is there).
    operation_s
        How long an operation takes.
    late_s
        How long a machine is missing in listings.
    callers
        Whose calls they were: how many by a user, and how many by a machine's own rights.
    born
        Machine's name -> how many lived at the same time, at most.
    bodies
        Makes real machines for those that are here on paper (see bodies.py); None: nothing stands behind them.
    noticed
        Machine's name -> when (seconds since 1970) it is to be taken back; it is told so, and :meth:`lose` takes it.
    """

    url: str = ""
    calls: list[Any] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    operation_s: float = 0.0
    late_s: float = 0.0
    callers: Counter[str] = field(default_factory=Counter)
    born: Counter[str] = field(default_factory=Counter)
    bodies: Any = None
    noticed: dict[str, float] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)

    def take(self, fault: str) -> bool:
        """Whether something is to go wrong now; it is counted down."""
        with self.lock:
            if self.faults[fault] <= 0:
                return False
            self.faults[fault] -= 1
            return True

    def is_out(self, zone: str, size: str) -> bool:
        """Whether a zone has no machines of a size."""
        return self.faults[f"exhausted:{zone}"] > 0 or self.faults[f"exhausted:{zone}/{size}"] > 0

    def preempt(self, name: str, left_s: float = 30) -> None:
        """Tell a machine that it is taken back soon."""
        self.noticed[name] = time.time() + left_s

    def gone(self, name: str) -> None:
        """End what stands behind a machine that is not there any more."""
        self.noticed.pop(name, None)  # the next one of this name stays
        if self.bodies:
            self.bodies.end(name)

    def is_noticed(self, address: str) -> bool:
        """Whether the machine at a private address is to be taken back."""
        return self.bodies is not None and self.bodies.who(address) in self.noticed


@dataclass
class Asked:
    """A request."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Message
    raw: bytes
    client: str = ""  # whose address it comes from

    @property
    def body(self) -> dict[str, Any]:
        return dict(json.loads(self.raw)) if self.raw else {}


@dataclass
class Told:
    """An answer; its content is JSON, or text, or nothing."""

    content: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, told: Told) -> None:
        super().__init__(str(told.content))
        self.told = told


@contextmanager
def running(server: BaseServer) -> Iterator[str]:
    """Have a server answer until the end of the block; gives its URL."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{server.server_address[0]}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *about: Any) -> None:
        """Say nothing of clients that were killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*about)


@contextmanager
def answering(answer: Callable[[Asked], Told], host: str = "127.0.0.1") -> Iterator[str]:
    """Have a server of a function until the end of the block; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            where = urlsplit(self.path)
            try:
                told = answer(
                    Asked(
                        self.command,
                        where.path,
                        dict(parse_qsl(where.query)),
                        self.headers,
                        raw,
                        self.client_address[0],
                    )
                )
            except RefusedError as error:
                told = error.told
            is_text = isinstance(told.content, str)
            content = b"" if told.content is None else (told.content if is_text else _json(told.content)).encode()
            about = {"Content-Type": "text/plain" if is_text else "application/json", "Content-Length": len(content)}
            self.send_response(told.status)
            for name, value in {**about, **told.headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve  # noqa: N815 - the names that http.server looks for

    server = _Server((host, 0), Handler)
    with running(server) as url:
        yield url


def _json(content: Any) -> str:
    return json.dumps(content, default=str)
