"""The status page's own web server: read-only, loopback by default, on its own port, nothing external.

Serves four files and one JSON document. GET and HEAD only; the Host header must be an address or a name of
this server, so a web site cannot reach it through a name that resolves to loopback (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from types import TracebackType
from typing import Any, Final

from pagegate.errors import ConfigError
from pagegate.status.model import StatusSource
from pagegate.status.view import status_json
from pagegate.telemetry.records import TraceSource

MAX_CONNECTIONS: Final = 32
"""Requests answered at the same time; more are turned away at once."""
SILENCE: Final = 10
"""Seconds without a byte after which a peer is cut off."""
FRESH_FOR: Final = 0.4
"""Seconds one snapshot serves everyone who asks."""

_log = logging.getLogger(__name__)

_FILES: Final[Mapping[str, tuple[str, str]]] = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    content_type: str
    body: bytes


class StatusPage:
    """A running status page; a context manager. Serves from its own threads until `close`."""

    def __init__(
        self,
        source: StatusSource,
        traces: TraceSource | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        allowed_hosts: tuple[str, ...] = (),
    ) -> None:
        """Port 0 takes a free one. `allowed_hosts` are further names (without port) to answer to: give
        the name under which a proxy or a pod is reached.

        Raises ConfigError STATUS_ADDRESS when the address cannot be had."""
        self._source = source
        self._traces = traces
        self._allowed = frozenset(name.lower() for name in ("localhost", host, *allowed_hosts))
        self._lock = threading.Lock()
        self._snapshot = b""
        self._made_at = float("-inf")
        self._files = {
            path: _Answer(HTTPStatus.OK, kind, resources.files(__package__).joinpath("page", name).read_bytes())
            for path, (name, kind) in _FILES.items()
        }
        try:
            self._server = _Server(host, port, self)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                "STATUS_ADDRESS", f"the status page cannot listen on {host}:{port}: {error}; choose another port"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="status-page", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """TCP port it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Where an operator finds it."""
        host = str(self._server.server_address[0])
        return f"http://[{host}]:{self.port}/" if ":" in host else f"http://{host}:{self.port}/"

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def __enter__(self) -> StatusPage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self, host: str | None, path: str) -> _Answer:
        """What to say to a GET or HEAD of `path` under the name `host`."""
        name = _host_name(host)
        if name is None or not (name in self._allowed or _is_address(name)):
            return _text(
                HTTPStatus.MISDIRECTED_REQUEST,
                "This page answers only to its own name. Open it by its address, or name the host when starting it.\n",
            )
        path = path.partition("?")[0]
        if path == "/api/status":
            return self._status()
        return self._files.get(path) or _text(HTTPStatus.NOT_FOUND, "There is /, and /api/status as JSON.\n")

    def _status(self) -> _Answer:
        with self._lock:
            if time.monotonic() - self._made_at > FRESH_FOR:
                try:
                    data = status_json(self._source.status(), self._traces.traces() if self._traces else ())
                except Exception:
                    _log.exception("status page: no snapshot")
                    return _text(HTTPStatus.INTERNAL_SERVER_ERROR, "No snapshot could be made; see the server's log.\n")
                self._snapshot = json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
                self._made_at = time.monotonic()
            return _Answer(HTTPStatus.OK, "application/json", self._snapshot)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, page: StatusPage) -> None:
        self.page = page
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that goes away is nobody's error."""
        _log.debug("status page: request from %s broke off", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "pagegate"
    sys_version = ""
    timeout = SILENCE

    def do_GET(self) -> None:
        self._send(self._answer())

    def do_HEAD(self) -> None:
        self._send(self._answer(), body=False)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses: malformed requests and other methods."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._send(_text(status, f"{status.phrase}. The page is read-only: GET and HEAD.\n"))

    def log_message(self, format: str, *args: object) -> None:
        _log.debug("status page: " + format, *args)

    def _answer(self) -> _Answer:
        hosts = self.headers.get_all("Host", [])
        return self.server.page.answer(hosts[0] if len(hosts) == 1 else None, self.path)

    def _send(self, answer: _Answer, *, body: bool = True) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Connection", "close")
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(answer.body)


def _text(status: HTTPStatus, text: str) -> _Answer:
    return _Answer(status, "text/plain; charset=utf-8", text.encode())


def _host_name(host: str | None) -> str | None:
    """The name in a Host header, without port and brackets, lower case; None when there is none."""
    if not host:
        return None
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    """True for an IP address: DNS rebinding needs a name, an address cannot be rebound."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
