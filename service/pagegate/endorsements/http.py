"""GET over HTTP with every dimension bounded: time, size, redirects. No retries here."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, SSLError
from urllib3.util import parse_url

from pagegate.endorsements.settings import Timeouts
from pagegate.errors import ConfigError

MAX_REDIRECTS = 3
_CHUNK = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

T = TypeVar("T")


class TransportError(Exception):
    """No usable answer: name resolution, connection, TLS, time, size or redirect. The text says which."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Fetches small files. Safe for use by several threads."""

    def __init__(self, timeouts: Timeouts, *, proxy: str | None = None, ca_file: Path | None = None) -> None:
        self._timeouts = timeouts
        self._proxy = proxy
        try:
            self._tls = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError("ENDORSEMENT_SETTING_INVALID", f"ca_file {ca_file}: {error}") from error
        self._pools: dict[str | None, urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def get(self, url: str, *, limit: int, seconds: float | None = None) -> Answer:
        """GETs `url`; at most `limit` body bytes; done or given up after `seconds` (at most timeouts.attempt).

        Redirects are followed within the same scheme, host and port only. Raises TransportError.
        """
        bound = min(self._timeouts.attempt, seconds if seconds is not None else self._timeouts.attempt)
        return _within(bound, lambda: self._follow(url, limit, bound))

    def close(self) -> None:
        """Closes idle connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()

    def _follow(self, url: str, limit: int, seconds: float) -> Answer:
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._get_once(url, limit, seconds)
            target = answer.headers.get("location")
            if answer.status not in _REDIRECTS or target is None:
                return answer
            target = urljoin(url, target)
            if _origin(target) != _origin(url):
                raise TransportError(f"a redirect to another host ({_origin(target)}); refused")
            url = target
        raise TransportError(f"more than {MAX_REDIRECTS} redirects")

    def _get_once(self, url: str, limit: int, seconds: float) -> Answer:
        try:
            response = self._pool(url).request(
                "GET",
                url,
                headers={"User-Agent": "pagegate", "Accept-Encoding": "identity"},
                timeout=urllib3.Timeout(
                    connect=min(self._timeouts.connect, seconds), read=min(self._timeouts.read, seconds)
                ),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except SSLError as error:
            raise TransportError(f"TLS: {error}; is the CA of the mirror or proxy given by ca_file?") from error
        except (HTTPError, LocationParseError, OSError) as error:
            raise TransportError(f"{type(error).__name__}: {error}") from error
        whole = False
        try:
            body = bytearray()
            while chunk := response.read1(_CHUNK):
                body += chunk
                if len(body) > limit:
                    raise TransportError(f"more than {limit} bytes, the limit for this kind of file")
            whole = True
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, headers, bytes(body))
        except (HTTPError, OSError) as error:
            raise TransportError(f"{type(error).__name__} in the body: {error}") from error
        finally:
            if whole:
                response.release_conn()
            else:
                response.close()

    def _pool(self, url: str) -> urllib3.PoolManager:
        proxy = self._proxy_for(url)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = self._make_pool(proxy)
            return self._pools[proxy]

    def _proxy_for(self, url: str) -> str | None:
        if self._proxy is not None:
            return self._proxy or None
        parts = urlsplit(url)
        if parts.hostname and proxy_bypass(parts.hostname):
            return None
        return getproxies_environment().get(parts.scheme)

    def _make_pool(self, proxy: str | None) -> urllib3.PoolManager:
        if proxy is None:
            return urllib3.PoolManager(ssl_context=self._tls)
        login = parse_url(proxy).auth
        headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
        return urllib3.ProxyManager(proxy, ssl_context=self._tls, proxy_ssl_context=self._tls, proxy_headers=headers)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Bounds what socket timeouts cannot: name resolution, and a peer that drips a byte at a time.

    The abandoned thread ends when its socket times out.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # handed to the caller
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="pagegate-http", daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except FutureTimeoutError:
        raise TransportError(f"no complete answer within {seconds:g} s") from None
