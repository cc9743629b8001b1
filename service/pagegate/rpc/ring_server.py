"""The server's side of shared memory: offers, the Unix socket, and one thread a ring that runs transfers."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
from google.protobuf.message import DecodeError

import enclave_bridge as eb
from pagegate.errors import ConfigError, PagegateError, TransferError
from pagegate.rpc import errors
from pagegate.rpc.admission import Gate
from pagegate.rpc.codec import Batch, RingBatch
from pagegate.rpc.ring import (
    METADATA,
    PATIENCE_S,
    READY,
    REFUSED,
    REQUEST,
    RESPONSE,
    TOKEN_SIZE,
    RingLink,
    decode_metadata,
)
from pagegate.transfer.session import SessionTable
from pagegate.v1 import transfer_pb2 as pb

_log = logging.getLogger(__name__)
_Requests = Iterator["pb.TransferPagesRequest | Batch | RingBatch"]
Converse = Callable[[_Requests, grpc.ServicerContext], Iterator[pb.TransferPagesResponse]]
"""What runs one transfer: PageTransferServicer.transfer_pages."""

_METHOD = "/pagegate.v1.PageTransfer/TransferPages"
MAX_RINGS = 16
_OFFER_S = 10.0
_MAX_OFFERS = 64
_GREETING_S = 5.0
_MAX_PATH = 107
_STATUS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class RingOffer:
    """Where a session may fetch its shared memory, and what to say there."""

    socket: str
    token: bytes
    capacity: int


class RingServer:
    """Hands shared memory to attested peers on this host and runs their transfers out of it."""

    def __init__(
        self,
        path: Path,
        converse: Converse,
        sessions: SessionTable,
        gate: Gate,
        *,
        batch_pages: int,
        max_rings: int = MAX_RINGS,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Raises ConfigError RING_SOCKET when the socket cannot be made, or BATCH_TOO_LARGE."""
        self._path = path.absolute()
        self._converse = converse
        self._sessions = sessions
        self._gate = gate
        self._patience_s = patience_s
        self._slots = threading.Semaphore(max_rings)
        self._offers: dict[bytes, tuple[bytes, float]] = {}
        self._links: set[RingLink] = set()
        self._lock = threading.Lock()
        self._closed = False
        try:
            self.capacity = eb.channel_capacity(batch_pages)
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
                self._run(link, session_id, peer)
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
            channel = eb.Channel(fd, self.capacity, role=eb.Role.SERVER)
            socket.send_fds(connection, [READY], [fd])
        finally:
            os.close(fd)
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return RingLink(channel, connection, patience_s=self._patience_s), session_id, f"ring:pid-{pid}"

    # ---- transfers ---------------------------------------------------------------------

    def _run(self, link: RingLink, session_id: bytes, peer: str) -> None:
        """One transfer after another, until the peer ends, errs, or its session is over."""
        while True:
            metadata, begin = self._first(link, session_id)
            # The servicer needs of a gRPC context only what _RingContext has.
            context = cast(grpc.ServicerContext, _RingContext(peer, metadata))
            try:
                with self._admitted(context):
                    if begin.begin.session_id != session_id:
                        errors.abort(context, TransferError("WRONG_SESSION", "this ring belongs to another session"))
                    self._answer(link, begin, context)
            except _RefusedError as refused:
                link.put(REFUSED, refused.status)
                return

    @contextlib.contextmanager
    def _admitted(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Counts the transfer as gRPC's are counted, so that a drain waits for it."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._gate.admitted(_METHOD))
            except TransferError as error:
                errors.abort(context, error)
            yield

    def _answer(self, link: RingLink, begin: pb.TransferPagesRequest, context: grpc.ServicerContext) -> None:
        requests = itertools.chain([begin], self._requests(link))
        with contextlib.closing(cast(Any, self._converse(requests, context))) as responses:
            for response in responses:
                link.put(RESPONSE, response.SerializeToString())

    def _first(
        self, link: RingLink, session_id: bytes
    ) -> tuple[tuple[tuple[str, str | bytes], ...], pb.TransferPagesRequest]:
        """Waits for the next Begin, for as long as the session lives."""
        metadata: tuple[tuple[str, str | bytes], ...] = ()
        while True:
            try:
                message = link.next(1.0)
            except TransferError as error:
                if error.reason != "RING_TIMEOUT":
                    raise
                self._sessions.get(session_id)
                continue
            if message.kind == METADATA:
                metadata = decode_metadata(link.take())
            elif message.kind == REQUEST:
                return metadata, _request(link)
            else:
                raise TransferError("OUT_OF_ORDER", "a transfer starts with begin")

    def _requests(self, link: RingLink) -> _Requests:
        while True:
            message = link.next()
            if message.kind == eb.RECORDS_KIND:
                self._gate.check_finish()
                yield RingBatch(link.records(message), message.number)
            elif message.kind == REQUEST:
                yield _request(link)
            else:
                raise TransferError("MALFORMED_MESSAGE", f"a message of kind {message.kind} is not a request")

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


def _request(link: RingLink) -> pb.TransferPagesRequest:
    try:
        return pb.TransferPagesRequest.FromString(link.take())
    except DecodeError as error:
        raise TransferError("MALFORMED_MESSAGE", f"not a TransferPagesRequest: {error}") from error


class _RefusedError(Exception):
    """A transfer was refused with this google.rpc.Status, serialized."""

    def __init__(self, status: bytes) -> None:
        super().__init__()
        self.status = status


class _RingContext:
    """The part of a gRPC context that the servicer uses."""

    def __init__(self, peer: str, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self._peer = peer
        self._metadata = metadata

    def peer(self) -> str:
        """As gRPC's."""
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """As gRPC's."""
        return self._metadata

    def abort_with_status(self, status: Any) -> NoReturn:
        """As gRPC's."""
        raise _RefusedError(dict(status.trailing_metadata)[_STATUS_KEY])


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
