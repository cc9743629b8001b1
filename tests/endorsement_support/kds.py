"""A KDS on a real local port, with its manners and its faults, and a proxy in front of it."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from pagegate.endorsements.content import parse_leaf
from pagegate.endorsements.part import Part
from pagegate.endorsements.request import part_url

CONTENT_TYPES = {"cert_chain": "application/x-pem-file", "crl": "application/pkix-crl"}


@dataclass(frozen=True)
class Reply:
    """One answer. `then` does what a well-behaved server would not, on the open connection."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    then: Callable[[Handler], None] | None = None


class Handler(BaseHTTPRequestHandler):
    """Answers from the server's tables."""

    protocol_version = "HTTP/1.1"
    server: FakeKds

    def do_GET(self) -> None:
        reply = self.server.answer(self.path)
        if reply.then is not None:
            self.close_connection = True
            reply.then(self)
            return
        self.send_reply(reply)

    def send_reply(self, reply: Reply) -> None:
        """Sends `reply` as it should be."""
        self.send_response(reply.status)
        for header, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are part of the tests

    def __enter__(self) -> Any:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class FakeKds(_Server):
    """Serves `files` by path and query; `faults` of a path come first, one a request."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: defaultdict[str, deque[Reply]] = defaultdict(deque)
        self.always: Reply | None = None
        self.requests: list[str] = []
        self.delay = 0.0
        self.ration: float | None = None
        """Seconds between two leaves of real time; a sooner request gets 429 with Retry-After."""
        self._last_leaf = 0.0
        self._lock = threading.Lock()
        self.scheme = "https" if tls else "http"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def add(self, part: Part, body: bytes) -> str:
        """Serves `body` as `part`; returns its path."""
        path = part_url(part, "")
        self.files[path] = body
        return path

    def add_leaf(self, body: bytes) -> str:
        """Serves a leaf where its own extensions say."""
        return self.add(parse_leaf(body).part, body)

    def fail(self, part: Part, *replies: Reply) -> None:
        """The next requests for `part` get these answers."""
        self.faults[part_url(part, "")].extend(replies)

    def count(self, part: Part) -> int:
        """Requests for `part` so far."""
        return self.requests.count(part_url(part, ""))

    def answer(self, path: str) -> Reply:
        with self._lock:
            self.requests.append(path)
            if self.faults[path]:
                return self.faults[path].popleft()
            if self.always is not None:
                return self.always
            if self.ration is not None and "SPL=" in path:
                wait = self._last_leaf + self.ration - time.monotonic()
                if wait > 0:
                    return Reply(429, b"Too Many Requests", {"Retry-After": "1"})
                self._last_leaf = time.monotonic()
        time.sleep(self.delay)
        body = self.files.get(path)
        if body is None:
            return Reply(404, b'{"error":"not found"}')
        return Reply(200, body, {"Content-Type": CONTENT_TYPES.get(path.rsplit("/", 1)[-1], "application/pkix-cert")})


def truncated(body: bytes) -> Reply:
    """Announces all of `body`, sends half and hangs up."""

    def send(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])

    return Reply(then=send)


def endless() -> Reply:
    """A body without a length that never stops."""

    def send(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"\x30" * 65536)

    return Reply(then=send)


def dripping(seconds: float) -> Reply:
    """A body of which a byte comes every `seconds`."""

    def send(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while True:
            handler.wfile.write(b"\x30")
            time.sleep(seconds)

    return Reply(then=send)


def silent(seconds: float) -> Reply:
    """No answer for `seconds`, then hangs up."""
    return Reply(then=lambda handler: time.sleep(seconds))


def reset() -> Reply:
    """The connection is reset before an answer."""

    def send(handler: Handler) -> None:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    return Reply(then=send)


class ProxyHandlerOfTests(BaseHTTPRequestHandler):
    """Forwards GET with a full URL, and CONNECT tunnels."""

    protocol_version = "HTTP/1.1"
    server: FakeProxy

    def do_GET(self) -> None:
        self.server.seen.append(("GET", self.path, self.headers.get("Proxy-Authorization")))
        with build_opener(ProxyHandler({})).open(self.path, timeout=5) as answer:
            body = answer.read()
            self.send_response(answer.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        self.server.seen.append(("CONNECT", self.path, self.headers.get("Proxy-Authorization")))
        target = urlsplit(f"//{self.path}")
        with socket.create_connection((target.hostname, target.port), timeout=5) as upstream:
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            back = threading.Thread(target=_pump, args=(upstream, self.connection), daemon=True)
            back.start()
            _pump(self.connection, upstream)
            back.join()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class FakeProxy(_Server):
    """An HTTP proxy; `seen` lists what went through it: method, target, credentials."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandlerOfTests)
        self.seen: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass
