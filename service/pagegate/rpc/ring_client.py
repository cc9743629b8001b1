"""The client's side of shared memory: fetching it, and one transfer as a call."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

import enclave_bridge as eb
from pagegate.errors import ConfigError, PagegateError, TransferError
from pagegate.handshake.model import Established
from pagegate.rpc import errors
from pagegate.rpc.codec import Batch
from pagegate.rpc.ring import METADATA, READY, REFUSED, REQUEST, RESPONSE, RingLink, encode_metadata
from pagegate.rpc.ring_file import open_file
from pagegate.telemetry import Tracing
from pagegate.transfer import macs
from pagegate.transfer.faults import transfer_faults
from pagegate.v1 import transfer_pb2 as pb

_log = logging.getLogger(__name__)
_CONNECT_S = 5.0
_OFFER_S = 10.0


OpenRing: TypeAlias = "grpc.UnaryUnaryMultiCallable[Any, pb.OpenRingResponse]"
"""The call of that name."""


class ClientRing:
    """The shared memory of a client's session, if the server offers it and is on this host. It is asked once a session."""

    def __init__(self, wanted: bool | Path, bridge: eb.Bridge, telemetry: Tracing) -> None:
        """`wanted`: a path is where the server's socket, or the file that both map, is seen from here."""
        self._wanted = wanted
        self._bridge = bridge
        self._telemetry = telemetry
        self._asked = not wanted
        self._link: ClientLink | None = None

    @property
    def in_use(self) -> bool:
        """True when there is one."""
        return self._link is not None

    def of(self, established: Established, open_ring: OpenRing) -> ClientLink | None:
        """The session's ring; None when pages go by gRPC. Raises TransferError when the offer was changed on the way."""
        if not self._asked:
            self._asked = True
            self._link = self._ask(established, open_ring)
        return self._link

    def _ask(self, established: Established, open_ring: OpenRing) -> ClientLink | None:
        session = established.session
        nonce = self._bridge.random(macs.NONCE_SIZE)
        with transfer_faults():
            request = pb.OpenRingRequest(
                session_id=established.session_id, nonce=nonce, mac=session.mac(eb.MacPurpose.CONTROL, macs.ring(nonce))
            )
        try:
            offer = open_ring(request, metadata=self._telemetry.metadata(), timeout=_OFFER_S)
        except grpc.RpcError as error:
            # An older server, no room, or an ended session, which the transfer itself will meet.
            _log.info("no shared memory: %s", errors.from_rpc_error(error))
            return None
        with transfer_faults():
            session.check_mac(
                eb.MacPurpose.CONTROL, macs.ring_offer(nonce, offer.token, offer.capacity, offer.socket), offer.mac
            )
        if not offer.capacity:
            return None
        if not offer.socket:
            return _in_file(self._wanted, offer.capacity)
        return fetch(self._wanted if isinstance(self._wanted, Path) else Path(offer.socket), offer, session)

    def drop(self, *, ask_again: bool) -> None:
        """Ends it. `ask_again`: the next transfer asks the server for another."""
        link, self._link = self._link, None
        self._asked = not (self._wanted and ask_again)
        if link is not None:
            link.close()


class ClientLink(RingLink):
    """A ring, called as gRPC's TransferPages is."""

    def pages(
        self,
        requests: Iterator[pb.TransferPagesRequest | Batch],
        *,
        metadata: tuple[tuple[str, str | bytes], ...],
    ) -> RingCall:
        """One transfer."""
        return RingCall(self, requests, metadata)


def _in_file(wanted: bool | Path, capacity: int) -> ClientLink | None:
    """The ring in the file or device that this side's operator named."""
    if not isinstance(wanted, Path):
        _log.info("the server offers a ring in a file that both machines map; say which one it is here")
        return None
    fd = open_file(wanted)
    try:
        return ClientLink(eb.Channel(fd, capacity, role=eb.Role.CLIENT, named=True), None)
    except eb.BridgeStatusError as error:
        raise ConfigError("RING_FILE", f"{wanted} is not the memory that the server uses: {error}") from error
    finally:
        os.close(fd)


def fetch(path: Path, offer: pb.OpenRingResponse, session: eb.Session | None = None) -> ClientLink | None:
    """The shared memory that a server offered; None where it cannot be had from here (another host or namespace).

    The bridge of `session` works in it.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_S)
        connection.connect(str(path))
        connection.sendall(offer.token)
        greeting, fds, _, _ = socket.recv_fds(connection, 1, 1)
        try:
            if greeting != READY or len(fds) != 1:
                raise ConnectionError("the server handed nothing over")
            # What came is believed only if it is memory that nobody can cut, of the size that was offered.
            channel = eb.Channel(fds[0], offer.capacity, role=eb.Role.CLIENT, session=session)
        finally:
            for fd in fds:
                os.close(fd)
    except (OSError, eb.BridgeStatusError) as error:
        connection.close()
        _log.info("no shared memory from %s (%s); pages go by gRPC", path, error)
        return None
    return ClientLink(channel, connection)


class RingCall:
    """One transfer: requests go out from a thread of their own, responses come by iteration."""

    def __init__(
        self,
        link: RingLink,
        requests: Iterator[pb.TransferPagesRequest | Batch],
        metadata: tuple[tuple[str, str | bytes], ...],
    ) -> None:
        self._link = link
        self._complete = False
        self._broken = threading.Event()
        self._writer = threading.Thread(target=self._write, args=(requests, metadata), daemon=True)

    def _write(
        self, requests: Iterator[pb.TransferPagesRequest | Batch], metadata: tuple[tuple[str, str | bytes], ...]
    ) -> None:
        try:
            if metadata:
                self._link.put(METADATA, encode_metadata(metadata))
            for request in requests:
                assert not isinstance(request, Batch)  # batches are sealed straight into the ring
                self._link.put(REQUEST, request.SerializeToString())
        except PagegateError as error:
            _log.debug("writing to the ring ended: %s", error)
            self._broken.set()

    def __iter__(self) -> Iterator[pb.TransferPagesResponse]:
        """Begins to send. Raises TransferError: the server's refusal, or RING_CLOSED and the like."""
        self._writer.start()
        while True:
            try:
                message = self._link.next(0.25)
            except TransferError as error:
                # A transfer takes what it takes; what ends a wait is the writer's failure or the peer's end.
                if error.reason == "RING_TIMEOUT" and not self._broken.is_set():
                    continue
                raise
            content = self._link.take()
            try:
                if message.kind == REFUSED:
                    raise errors.from_status(Status.FromString(content))
                if message.kind != RESPONSE:
                    raise TransferError("MALFORMED_MESSAGE", f"a message of kind {message.kind} is not a response")
                response = pb.TransferPagesResponse.FromString(content)
            except DecodeError as error:
                raise TransferError("MALFORMED_MESSAGE", f"not a response: {error}") from error
            self._complete = response.WhichOneof("step") == "committed"
            yield response

    def cancel(self) -> None:
        """Ends the transfer, and with it the ring, unless it is complete."""
        if threading.current_thread() is self._writer:
            self._broken.set()  # the reader may still find the server's reason in the ring
            return
        if self._complete:
            self._writer.join(1)
        if not self._complete or self._writer.is_alive():
            self._link.close()
