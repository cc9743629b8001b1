"""Sealed pages through shared memory: one end of a pair of rings.

A channel holds no secret. Pages are sealed straight into the ring and opened straight out of it, also by a bridge in
another process, which then maps the same memory. Only where that memory could be cut (`named`) it gets copies.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from . import _native
from ._native import ffi, lib
from .errors import BridgeStatusError, check
from .handles import _read
from .results import RECORD_SIZE, OpenResult, Role, SealResult

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import ReadableBuffer

    from .handles import Session, Transfer

RECORDS_KIND: int = lib.EB_CHANNEL_RECORDS
"""Kind of a message of page records; all other kinds are the caller's."""
_NO_INDEX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class ChannelMessage:
    """What the next message is. All of it is the peer's word."""

    kind: int
    number: int
    size: int


@dataclass(frozen=True, slots=True)
class ChannelRecords:
    """The records that are next in a channel, to be opened once."""

    channel: Channel
    size: int

    def __len__(self) -> int:
        return self.size

    def open(self, session: Session, transfer: Transfer) -> OpenResult:
        """As `Session.open`, out of the ring."""
        return self.channel.open(session, transfer)


def channel_capacity(batch_pages: int) -> int:
    """The least capacity of which two batches of so many pages fit in each direction. Raises `LENGTH`."""
    capacity: int = lib.EB_CHANNEL_MIN_CAPACITY
    while lib.eb_channel_max_message(capacity) < batch_pages * RECORD_SIZE:
        capacity *= 2
        if capacity > lib.EB_CHANNEL_MAX_CAPACITY:
            raise BridgeStatusError(lib.EB_ERR_LENGTH)
    return capacity


def create_channel(capacity: int) -> int:
    """A descriptor of new, sealed memory with an empty channel; the caller closes it."""
    out = ffi.new("int *")
    check(lib.eb_channel_create(capacity, out))
    return int(out[0])


def format_channel(fd: int, capacity: int) -> None:
    """Makes an empty channel at the start of a file or device (an ivshmem BAR); one side does it, before both attach."""
    check(lib.eb_channel_format(fd, capacity))


class Channel:
    """One side's end. One thread sends and one receives at a time; any may close.

    `named`: fd is a file or device that this side's operator chose. Otherwise it must be memory that cannot shrink,
    since a peer that cuts it would kill this process; anything else is `RING_MEMORY`. fd may be closed afterwards.
    `session` is whose records it will carry: its bridge works in the ring itself, wherever it is. Records of other
    sessions are copied when their bridge is in another process.
    Every call can raise `BridgeStatusError` with RING_CLOSED, RING_CORRUPT (for good) or RING_TIMEOUT.
    """

    __slots__ = ("_backend", "_channel")

    def __init__(
        self, fd: int, capacity: int, *, role: Role, named: bool = False, session: Session | None = None
    ) -> None:
        # Each backend has its own code of a channel.
        self._backend: Any = _native if session is None or named else session._backend
        owned = self._backend.ffi.NULL if session is None or named else session._live()
        out = self._backend.ffi.new("eb_channel **")
        kind = lib.EB_CHANNEL_NAMED if named else lib.EB_CHANNEL_SEALED
        check(self._backend.lib.eb_channel_attach(owned, int(role), fd, capacity, kind, out))
        # Freed with the last reference; a call in progress holds one.
        self._channel: Any = self._backend.ffi.gc(out[0], self._backend.lib.eb_channel_free)

    def seal(
        self,
        session: Session,
        transfer: Transfer | None,
        *,
        region: int,
        first_gpa: int,
        plain: ReadableBuffer,
        number: int,
        timeout_s: float,
    ) -> SealResult:
        """Seal the pages of `plain` as one message. Nothing is sent unless all of it is."""
        if session._backend is not self._backend:
            records, result = session.seal(transfer, region=region, first_gpa=first_gpa, plain=plain)
            self.put(RECORDS_KIND, records, number=number, timeout_s=timeout_s)
            return result
        owned = None if transfer is None else transfer._live()
        raw = self._backend.ffi.new("eb_result *")
        with _read(plain) as source:
            status = self._backend.lib.eb_channel_seal(
                self._channel,
                session._live(),
                self._backend.ffi.NULL if owned is None else owned[0],
                region,
                first_gpa,
                source,
                len(source),
                number,
                _deadline(timeout_s),
                raw,
            )
        check(status)
        return SealResult(raw.pages, None, raw.nanoseconds, raw.epoch, raw.sequence)

    def put(self, kind: int, message: ReadableBuffer, *, number: int = 0, timeout_s: float) -> None:
        """Send a message of the caller's, or records that were sealed before."""
        with _read(message) as view:
            status = self._backend.lib.eb_channel_put(
                self._channel, kind, number, view, len(view), _deadline(timeout_s)
            )
        check(status)

    def next(self, timeout_s: float) -> ChannelMessage | None:
        """The next message, which stays until it is opened or taken; None when none came in time."""
        raw = self._backend.ffi.new("eb_channel_message *")
        status = self._backend.lib.eb_channel_next(self._channel, _deadline(timeout_s), raw)
        if status == lib.EB_ERR_RING_TIMEOUT:
            return None
        check(status)
        return ChannelMessage(raw.kind, raw.number, raw.len)

    def open(self, session: Session, transfer: Transfer) -> OpenResult:
        """Open the records that are next into the transfer's target, as `Session.open` does. They are gone then."""
        if session._backend is not self._backend:
            message = self.next(0)
            return session.open(transfer, b"" if message is None else self.take(message.size))
        raw = self._backend.ffi.new("eb_result *")
        status = self._backend.lib.eb_channel_open(self._channel, session._live(), transfer._live()[0], raw)
        bad = None if raw.bad_index == _NO_INDEX else int(raw.bad_index)
        result = OpenResult(raw.pages, bad, raw.nanoseconds, raw.epoch, raw.sequence)
        if status:
            raise BridgeStatusError(status, result)
        return result

    def take(self, limit: int) -> bytes:
        """The message that is next, copied out. Raises `BUFFER` when it is longer than `limit`; then it stays."""
        message = self.next(0)
        if message is None:
            raise BridgeStatusError(lib.EB_ERR_STATE)
        if message.size > limit:
            raise BridgeStatusError(lib.EB_ERR_BUFFER)
        out, out_len = bytearray(message.size), ffi.new("size_t *")
        check(
            self._backend.lib.eb_channel_take(self._channel, ffi.from_buffer("uint8_t[]", out), message.size, out_len)
        )
        return bytes(out)

    def close(self) -> None:
        """End the channel for both sides. Safe in any thread, and twice."""
        self._backend.lib.eb_channel_close(self._channel)  # in a forked child: nothing to do

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _deadline(timeout_s: float) -> int:
    """As the bridge counts: CLOCK_MONOTONIC nanoseconds, 0 not to wait."""
    return time.monotonic_ns() + int(timeout_s * 1e9) if timeout_s > 0 else 0
