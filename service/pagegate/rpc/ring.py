"""TransferPages through shared memory: what both sides do (docs/protocol.md, shared memory).

The server hands a sealed memfd over a Unix socket. The socket then carries nothing: it ends when a side ends or is
killed, and so tells the other.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from typing_extensions import Buffer

import enclave_bridge as eb
from pagegate.errors import BridgeError, TransferError
from pagegate.transfer.faults import transfer_faults

TOKEN_SIZE = 16
READY = b"\x01"
"""What comes with the descriptor."""

# Kinds of messages beside records (eb.RECORDS_KIND, 1).
REQUEST = 2
"""A serialized TransferPagesRequest other than a batch."""
RESPONSE = 3
"""A serialized TransferPagesResponse."""
REFUSED = 4
"""A serialized google.rpc.Status: the last message of a server."""
METADATA = 5
"""A JSON list of pairs: what gRPC metadata carries, before Begin (the trace's context)."""

MAX_CONTROL = 64 << 10
PATIENCE_S = 10.0
"""Seconds that a peer that is alive may neither read nor write in the middle of a transfer."""
_SLICE_S = 0.25
"""Seconds between two looks whether the peer is still there."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RingOffer:
    """Where a session gets its shared memory: at a Unix socket, or, where that is empty, in the file both sides know."""

    socket: str
    token: bytes
    capacity: int


class RingSource(Protocol):
    """Where a server has shared memory from."""

    def start(self) -> None:
        """Begins to hand it out."""
        ...

    def offer(self, session_id: bytes) -> RingOffer | None:
        """For one session; None when there is none to be had. Raises TransferError RING_LIMIT."""
        ...

    def close(self) -> None:
        """Ends every ring; running transfers can be resumed elsewhere."""
        ...


class RingLink:
    """One side's end of a channel, and the socket that tells when the peer is gone."""

    def __init__(
        self, channel: eb.Channel, connection: socket.socket | None, *, patience_s: float = PATIENCE_S
    ) -> None:
        """Without a connection only its silence tells that the peer is gone."""
        self._channel = channel
        if connection is not None:
            connection.setblocking(False)
        self._connection = connection
        self._patience_s = patience_s

    @property
    def alive(self) -> bool:
        """False once the peer has ended or was killed."""
        if self._connection is None:
            return True
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def seal(
        self,
        session: eb.Session,
        transfer: eb.Transfer,
        *,
        region: int,
        first_gpa: int,
        plain: Buffer,
        number: int,
    ) -> eb.SealResult:
        """Seals a batch straight into the ring. Raises TransferError."""

        def attempt(timeout_s: float) -> eb.SealResult:
            return self._channel.seal(
                session,
                transfer,
                region=region,
                first_gpa=first_gpa,
                plain=plain,
                number=number,
                timeout_s=timeout_s,
            )

        return self._until(attempt, self._patience_s)

    def put_records(self, number: int, records: bytes) -> None:
        """Sends a batch that is sealed already. Raises TransferError."""
        self._put(eb.RECORDS_KIND, records, number)

    def put(self, kind: int, message: bytes) -> None:
        """Sends a message that is not a batch. Raises TransferError."""
        self._put(kind, message, 0)

    def _put(self, kind: int, message: bytes, number: int) -> None:
        self._until(
            lambda timeout_s: self._channel.put(kind, message, number=number, timeout_s=timeout_s), self._patience_s
        )

    def next(self, patience_s: float | None = None) -> eb.ChannelMessage:
        """The next message. Raises TransferError RING_TIMEOUT, RING_CLOSED, RING_CORRUPT."""
        patience = self._patience_s if patience_s is None else patience_s
        return self._until(self._attempt_next, patience)

    def _attempt_next(self, timeout_s: float) -> eb.ChannelMessage:
        message = self._channel.next(timeout_s)
        if message is None:
            raise _NotYetError
        return message

    def take(self) -> bytes:
        """The message that is next, copied. Raises TransferError MALFORMED_MESSAGE when it is too long."""
        try:
            with transfer_faults():
                return self._channel.take(MAX_CONTROL)
        except BridgeError as error:
            raise TransferError("MALFORMED_MESSAGE", f"a control message is longer than {MAX_CONTROL} bytes") from error

    def records(self, message: eb.ChannelMessage) -> eb.ChannelRecords:
        """The batch that is next, still in the ring."""
        return eb.ChannelRecords(self._channel, message.size)

    def _until(self, attempt: Callable[[float], _T], patience_s: float) -> _T:
        until = time.monotonic() + patience_s
        gone = False
        while True:
            rest = until - time.monotonic()
            try:
                with transfer_faults():
                    return attempt(0.0 if gone else min(_SLICE_S, max(rest, 0.0)))
            except _NotYetError:
                pass
            except TransferError as error:
                if error.reason != "RING_TIMEOUT":
                    raise
            if gone:
                self.close()
                raise TransferError("RING_CLOSED", "the process at the other end of the shared memory has ended")
            # Once more: it may have written its last word, a refusal, after the attempt and before its end.
            gone = not self.alive
            if rest <= 0 and not gone:
                raise TransferError("RING_TIMEOUT", f"the peer neither read nor wrote for {patience_s:g} s")

    def close(self) -> None:
        """Ends it for both sides. Safe in any thread, and twice."""
        self._channel.close()
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()


class _NotYetError(Exception):
    pass


def encode_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """What gRPC would carry as metadata; binary values are left out."""
    return json.dumps([pair for pair in metadata if isinstance(pair[1], str)]).encode()


def decode_metadata(message: bytes) -> tuple[tuple[str, str | bytes], ...]:
    """Raises TransferError MALFORMED_MESSAGE."""
    try:
        pairs = json.loads(message)
        return tuple((key, value) for key, value in pairs if isinstance(key, str) and isinstance(value, str))
    except (ValueError, TypeError, RecursionError):
        raise TransferError("MALFORMED_MESSAGE", "metadata is not a JSON list of pairs") from None
