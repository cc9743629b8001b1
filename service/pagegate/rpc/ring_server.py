"""Shared memory for peers on this host: offers, the Unix socket that hands it over, one thread a ring."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import stat
import struct
import threading
import time
from pathlib import Path

import enclave_bridge as eb
from pagegate.errors import ConfigError, PagegateError, TransferError
from pagegate.rpc.ring import PATIENCE_S, READY, TOKEN_SIZE, RingLink, RingOffer
from pagegate.rpc.ring_transfers import RingTransfers
from pagegate.transfer.faults import transfer_faults

_log = logging.getLogger(__name__)

MAX_RINGS = 16
_ROOMY_PAGES = 1024
_OFFER_S = 10.0
_MAX_OFFERS = 64
_GREETING_S = 5.0
_MAX_PATH = 107


class RingServer:
    """Hands shared memory to attested peers on this host and runs their transfers out of it."""

    def __init__(
        self,
        path: Path,
        transfers: RingTransfers,
        *,
        batch_pages: int,
        max_rings: int = MAX_RINGS,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Raises ConfigError RING_SOCKET when the socket cannot be made, or BATCH_TOO_LARGE."""
        self._path = path.absolute()
        self._transfers = transfers
        self._patience_s = patience_s
        self._slots = threading.Semaphore(max_rings)
        self._offers: dict[bytes, tuple[bytes, float]] = {}
        self._links: set[RingLink] = set()
        self._lock = threading.Lock()
        self._closed = False
        try:
            # With little room the two sides take turns, and each turn may wait for a core.
            self.capacity = max(
                eb.channel_capacity(batch_pages), eb.channel_capacity(min(4 * batch_pages, _ROOMY_PAGES))
            )
        except eb.BridgeStatusError:
            raise ConfigError("BATCH_TOO_LARGE", f"a batch of {batch_pages} pages does not fit a ring") from None
        self._listener = _listen(self._path)
        self._thread = threading.Thread(target=self._accept, name="pagegate-ring", daemon=True)

    def start(self) -> None:
        """Begins to accept."""
        self._thread.start()

    def offer(self, session_id: bytes) -> RingOffer:
        """A token for one connection within 10 s. Raises TransferError RING_LIMIT."""
        now = time.monotonic()
        with self._lock:
            self._offers = {token: offer for token, offer in self._offers.items() if offer[1] > now}
            if len(self._offers) >= _MAX_OFFERS or self._closed:
                raise TransferError("RING_LIMIT", "too many rings are being set up; use gRPC", retry_after=1.0)
            token = secrets.token_bytes(TOKEN_SIZE)
            self._offers[token] = (session_id, now + _OFFER_S)
        return RingOffer(str(self._path), token, self.capacity)

    def _redeem(self, token: bytes) -> bytes | None:
        with self._lock:
            session_id, until = self._offers.pop(token, (b"", 0.0))
        return session_id if until > time.monotonic() else None

    # ---- connections -----------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            if not self._slots.acquire(blocking=False):
                _log.warning("a ring was refused: as many as are allowed are in use")
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="pagegate-ring", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        link: RingLink | None = None
        try:
            with connection:
                handed = self._hand_over(connection)
                if handed is None:
                    return
                link, session_id, peer = handed
                with self._lock:
                    if self._closed:
                        return
                    self._links.add(link)
                self._transfers.run(link, session_id, peer)
        except (PagegateError, OSError) as error:
            _log.info("a ring ended: %s", error)
        except Exception:
            _log.exception("a ring ended by a fault of this server")
        finally:
            if link is not None:
                link.close()
                with self._lock:
                    self._links.discard(link)
            self._slots.release()

    def _hand_over(self, connection: socket.socket) -> tuple[RingLink, bytes, str] | None:
        connection.settimeout(_GREETING_S)
        token = b""
        while len(token) < TOKEN_SIZE:
            more = connection.recv(TOKEN_SIZE - len(token))
            if not more:
                return None
            token += more
        session_id = self._redeem(token)
        if session_id is None:
            _log.warning("a ring was refused: its token is unknown, used or older than %g s", _OFFER_S)
            return None
        fd = eb.create_channel(self.capacity)
        try:
            session = self._transfers.session(session_id)
            with transfer_faults():
                channel = eb.Channel(fd, self.capacity, role=eb.Role.SERVER, session=session)
            socket.send_fds(connection, [READY], [fd])
        finally:
            os.close(fd)
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return RingLink(channel, connection, patience_s=self._patience_s), session_id, f"ring:pid-{pid}"

    def close(self) -> None:
        """Ends every ring; running transfers can be resumed elsewhere."""
        with self._lock:
            self._closed = True
            links = list(self._links)
        for link in links:
            link.close()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._thread.ident is not None:
            self._thread.join(2)
        self._path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _MAX_PATH:
        raise ConfigError("RING_SOCKET", f"{path} is longer than {_MAX_PATH} bytes; choose a shorter path")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        # The token is what admits; the group lets an operator share the socket.
        path.chmod(0o660)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise ConfigError("RING_SOCKET", f"cannot listen on {path}: {error.strerror}") from error
    return listener


def _remove_stale(path: Path) -> None:
    """Removes the socket of a server that is gone. Raises OSError when one still listens, or it is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(17, "it exists and is not a socket", str(path))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise OSError(98, "another server listens there", str(path))
