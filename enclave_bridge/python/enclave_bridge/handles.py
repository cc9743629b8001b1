"""Handles of the bridge: bridge, handshake, session, transfer, source.

A handle's C object is freed when the last reference to it goes, and a call holds one while it runs
(without the GIL). So `close` is safe at any time in any thread: it ends the handle for later calls,
zeroises what can be zeroised at once, and leaves the memory to the last call that still uses it.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from . import _isolated, _native
from ._native import ffi, lib
from .errors import BridgeStatusError, check
from .results import (
    PAGE_SIZE,
    RECORD_SIZE,
    SESSION_ID_SIZE,
    TRANSFER_ID_SIZE,
    BridgeInfo,
    MacPurpose,
    OpenResult,
    RecordHeader,
    Role,
    SealResult,
    SessionStats,
    Suite,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer

_NO_INDEX = 2**64 - 1
_HARDENING = {
    "seccomp": lib.EB_HARDENED_SECCOMP,
    "no-new-privs": lib.EB_HARDENED_NO_NEW_PRIVS,
    "not-dumpable": lib.EB_HARDENED_NOT_DUMPABLE,
    "parent-death": lib.EB_HARDENED_PARENT_DEATH,
    "limits": lib.EB_HARDENED_LIMITS,
    "no-capabilities": lib.EB_HARDENED_NO_CAPABILITIES,
    "user-namespace": lib.EB_HARDENED_USER_NAMESPACE,
    "network-namespace": lib.EB_HARDENED_NETWORK_NAMESPACE,
}
HARDENING: tuple[str, ...] = tuple(_HARDENING)
"""Everything that can confine an isolated bridge; `BridgeInfo.hardening` says what does."""
_U32_MAX = 2**32 - 1
_U64_MAX = 2**64 - 1
# Below this a zeroed bytes object is cheaper than the call that makes one which is not.
_UNINITIALISED_FROM = 64 * 1024
_uninitialised_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)


def _error(name: str) -> BridgeStatusError:
    return BridgeStatusError(getattr(lib, name))


def _unsigned(value: int, limit: int) -> int:
    """An integer that fits the C type: what does not is an argument error of the bridge too."""
    if not 0 <= value <= limit:
        raise _error("EB_ERR_ARGUMENT")
    return value


def _read(data: ReadableBuffer) -> Any:
    """The C view of a buffer. Given back by a `with` where a call may fail on a caller's memoryview: left to the
    traceback and the garbage collector it can crash the interpreter, which before 3.13 clears a memoryview in a cycle
    although it is exported."""
    return ffi.from_buffer("uint8_t[]", data)


def _write(data: WriteableBuffer) -> Any:
    return ffi.from_buffer("uint8_t[]", data, require_writable=True)


def _exactly(data: ReadableBuffer, size: int) -> Any:
    view = _read(data)
    if len(view) != size:
        raise _error("EB_ERR_LENGTH")
    return view


def _index(value: int) -> int | None:
    return None if value == _NO_INDEX else value


def _options(
    backend: Any,
    max_sessions: int,
    max_handshakes: int,
    max_guards: int,
    gcm_kernel: str | None,
    file_io: str | None,
) -> tuple[Any, Any]:
    """The C options, and the memory that they point at."""
    options = backend.ffi.new("eb_bridge_options *")
    options.max_sessions = _unsigned(max_sessions, _U32_MAX)
    options.max_handshakes = _unsigned(max_handshakes, _U32_MAX)
    options.max_guards = _unsigned(max_guards, _U32_MAX)
    names = [ffi.NULL if name is None else ffi.new("char[]", name.encode()) for name in (gcm_kernel, file_io)]
    options.gcm_kernel, options.file_io = names
    return options, names


class _Handle:
    """Owns one C object, and what that object points at.

    The backend is the cffi module that made it: all have the same functions, each with struct types of its own.
    """

    __slots__ = ("_backend", "_owned")

    def __init__(self, backend: Any, pointer: Any, free: str) -> None:
        self._backend = backend
        self._owned: Any = backend.ffi.gc(pointer, getattr(backend.lib, free))

    def _live(self) -> Any:
        """The C object. The caller keeps the reference for as long as it uses it."""
        owned = self._owned
        if owned is None:
            raise _error("EB_ERR_STATE")
        return owned

    def close(self) -> None:
        """End the handle; later calls fail. Safe while another thread is in a call, and twice."""
        self._owned = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Bridge(_Handle):
    """One pool of secret memory, for at most `max_sessions` and `max_handshakes` at a time.

    `gcm_kernel` names the AES-GCM to use (tests and benchmarks: avx512, vaes256, aesni, openssl); None is the
    fastest that this CPU can run. One that it cannot run is an `ARGUMENT` error. So is a `file_io` (io_uring, pread)
    that cannot be had; None is io_uring where the kernel lets us. `max_guards` counts sealing keys too.
    """

    __slots__ = ()
    isolation: ClassVar[Literal["in-process", "isolated"]] = "in-process"
    """Where the keys are."""

    def __init__(
        self,
        *,
        max_sessions: int = 256,
        max_handshakes: int = 64,
        gcm_kernel: str | None = None,
        file_io: str | None = None,
        max_guards: int = 64,
    ) -> None:
        out = ffi.new("eb_bridge **")
        options, _names = _options(_native, max_sessions, max_handshakes, max_guards, gcm_kernel, file_io)
        check(lib.eb_bridge_open(options, out))
        super().__init__(_native, out[0], "eb_bridge_free")

    @property
    def info(self) -> BridgeInfo:
        """How secrets are kept, which AES-GCM seals pages, what is in use."""
        raw = self._backend.ffi.new("eb_bridge_info *")
        check(self._backend.lib.eb_bridge_get_info(self._live(), raw))
        return BridgeInfo(
            memory="memfd_secret" if raw.memory == lib.EB_MEMORY_SECRET else "mlock",
            secret_bytes=raw.secret_bytes,
            sessions_live=raw.sessions_live,
            handshakes_live=raw.handshakes_live,
            gcm_kernel=_string(raw.gcm_kernel),
            libcrypto=_string(raw.libcrypto),
            file_io="io_uring" if _string(raw.file_io) == "io_uring" else "pread",
            process=raw.process or None,
            hardening=tuple(name for name, bit in _HARDENING.items() if raw.hardening & bit),
        )

    def random(self, n: int) -> bytes:
        """n fresh random bytes for public values (at most 1 MiB)."""
        if not 0 <= n <= lib.EB_MAX_MESSAGE_SIZE:
            raise _error("EB_ERR_LENGTH")
        out = bytearray(n)
        check(self._backend.lib.eb_random(self._live(), _write(out), n))
        return bytes(out)

    def handshake(self, role: Role, suites: Sequence[Suite]) -> Handshake:
        """A handshake with one fresh key for each suite (1 or 2 suites, no repeats)."""
        out = self._backend.ffi.new("eb_handshake **")
        wanted = self._backend.ffi.new("eb_suite[]", [_unsigned(suite, _U32_MAX) for suite in suites] or 1)
        check(self._backend.lib.eb_handshake_new(self._live(), _unsigned(role, _U32_MAX), wanted, len(suites), out))
        return Handshake(self._backend, out[0], "eb_handshake_free")

    def transfer(self, transfer_id: bytes, *, region: int, base_gpa: int, pages: int) -> Transfer:
        """An account of a window of `pages` pages from `base_gpa` (aligned to 4 KiB)."""
        window = self._backend.ffi.new("eb_window *")
        window.region = _unsigned(region, _U32_MAX)
        window.base_gpa = _unsigned(base_gpa, _U64_MAX)
        window.pages = _unsigned(pages, _U64_MAX)
        out = self._backend.ffi.new("eb_transfer **")
        check(self._backend.lib.eb_transfer_new(self._live(), _exactly(transfer_id, TRANSFER_ID_SIZE), window, out))
        return Transfer(self._backend, out[0], "eb_transfer_free")

    def source(self, fd: int, *, offset: int = 0, length: int) -> Source:
        """Bytes [offset, offset + length) of a regular file or memfd, to seal from. `fd` may be closed afterwards."""
        out = self._backend.ffi.new("eb_source **")
        if not 0 <= fd < 2**31:
            raise _error("EB_ERR_SOURCE_UNREADABLE")
        start, size = _unsigned(offset, _U64_MAX), _unsigned(length, _U64_MAX)
        check(self._backend.lib.eb_source_open(self._live(), fd, start, size, out))
        return Source(self._backend, out[0], length)


class IsolatedBridge(Bridge):
    """The same in a process of its own: no key and no page before it is verified is in this one.

    `lanes` calls cross at once. `memory_limit` bounds the private memory of the process in bytes, 0 is the default.
    When it dies every call is `BRIDGE_DIED`, at once, and all that it held is gone: open another. It is the same
    error when the program cannot be started, or refuses to run unconfined.
    """

    __slots__ = ()
    isolation = "isolated"

    def __init__(
        self,
        *,
        max_sessions: int = 256,
        max_handshakes: int = 64,
        gcm_kernel: str | None = None,
        max_guards: int = 64,
        lanes: int = 4,
        memory_limit: int = 0,
        program: Path | None = None,
    ) -> None:
        isolated = _isolated.ffi.new("eb_isolated_options *")
        isolated.lanes = _unsigned(lanes, _U32_MAX)
        isolated.memory_limit = _unsigned(memory_limit, _U64_MAX)
        path = ffi.NULL if program is None else ffi.new("char[]", os.fsencode(program))
        isolated.program = path
        out = _isolated.ffi.new("eb_bridge **")
        # Requests of io_uring pass a system call filter by, so the process has none.
        options, _names = _options(_isolated, max_sessions, max_handshakes, max_guards, gcm_kernel, "pread")
        check(_isolated.lib.eb_isolated_open(options, isolated, out))
        _Handle.__init__(self, _isolated, out[0], "eb_bridge_free")

    @property
    def pidfd(self) -> int:
        """A descriptor that is readable once the process has ended. It belongs to the bridge."""
        out = ffi.new("int *")
        check(_isolated.lib.eb_isolated_pidfd(self._live(), out))
        return int(out[0])


class Handshake(_Handle):
    """One side of a handshake. It belongs to one thread at a time."""

    __slots__ = ()

    def public_key(self, suite: Suite) -> bytes:
        """The own key of one suite: a SEC 1 uncompressed point."""
        size = lib.EB_MAX_PUBLIC_KEY_SIZE
        out, out_len = ffi.new("uint8_t[]", size), ffi.new("size_t *")
        check(self._backend.lib.eb_handshake_public_key(self._live(), _unsigned(suite, _U32_MAX), out, size, out_len))
        return bytes(ffi.buffer(out, out_len[0]))

    def absorb(self, message: ReadableBuffer) -> None:
        """Extend the transcript by a message (at most 1 MiB), its length before it."""
        view = _read(message)
        check(self._backend.lib.eb_handshake_absorb(self._live(), view, len(view)))

    def select(self, suite: Suite) -> None:
        """Fix the suite; the keys of the others are destroyed."""
        check(self._backend.lib.eb_handshake_select(self._live(), _unsigned(suite, _U32_MAX)))

    def binding(self, role: Role) -> bytes:
        """The 64 bytes of REPORT_DATA for a role's evidence over the transcript so far."""
        out = ffi.new("uint8_t[]", lib.EB_BINDING_SIZE)
        check(self._backend.lib.eb_handshake_binding(self._live(), _unsigned(role, _U32_MAX), out))
        return bytes(ffi.buffer(out))

    def derive(self, peer_key: ReadableBuffer) -> None:
        """Agree on keys with the peer's point. The private key is destroyed whatever the outcome."""
        view = _read(peer_key)
        check(self._backend.lib.eb_handshake_derive(self._live(), view, len(view)))

    def finished(self) -> bytes:
        """The own finished MAC over the transcript so far."""
        mac, mac_len = _mac_room()
        check(self._backend.lib.eb_handshake_finished(self._live(), mac, len(mac), mac_len))
        return bytes(ffi.buffer(mac, mac_len[0]))

    def check_finished(self, mac: ReadableBuffer) -> None:
        """Check the peer's finished MAC; a wrong one ends the handshake."""
        view = _read(mac)
        check(self._backend.lib.eb_handshake_check_finished(self._live(), view, len(view)))

    def session(self, session_id: bytes) -> Session:
        """The session of a finished handshake, which is spent by it."""
        out = self._backend.ffi.new("eb_session **")
        check(self._backend.lib.eb_handshake_session(self._live(), _exactly(session_id, SESSION_ID_SIZE), out))
        return Session(self._backend, out[0], "eb_session_free")


class Source(_Handle):
    """Part of a file whose pages `Session.seal_from` seals. Any number of threads may."""

    __slots__ = ("length",)

    def __init__(self, backend: Any, pointer: Any, length: int) -> None:
        super().__init__(backend, pointer, "eb_source_free")
        self.length = length
        """Bytes."""


class Transfer(_Handle):
    """Which pages of a window were sealed or opened, and where opened ones go."""

    __slots__ = ()

    # _owned is (C object, objects whose memory it points at): a call in progress holds both.
    def __init__(self, backend: Any, pointer: Any, free: str) -> None:
        super().__init__(backend, pointer, free)
        self._owned = (self._owned, [])

    def target_fd(self, fd: int, offset: int = 0) -> None:
        """Verified pages go to this file or memory file (at least the window's size from `offset`)."""
        owned = self._live()
        if not 0 <= fd < 2**31:
            raise _error("EB_ERR_TARGET")
        check(self._backend.lib.eb_transfer_set_target_fd(owned[0], fd, _unsigned(offset, _U64_MAX)))

    def target_memory(self, buffer: WriteableBuffer) -> None:
        """Verified pages go to this buffer of exactly the window's size, which is kept alive."""
        owned = self._live()
        view = _write(buffer)
        check(self._backend.lib.eb_transfer_set_target_memory(owned[0], view, len(view)))
        owned[1].append(view)

    @property
    def pages(self) -> int:
        """Distinct pages recorded so far."""
        owned = self._live()
        out = ffi.new("uint64_t *")
        check(self._backend.lib.eb_transfer_pages(owned[0], out))
        return int(out[0])

    def forget(self, first_gpa: int, pages: int) -> None:
        """Drop pages that were never acknowledged from the account."""
        owned = self._live()
        check(
            self._backend.lib.eb_transfer_forget(owned[0], _unsigned(first_gpa, _U64_MAX), _unsigned(pages, _U64_MAX))
        )


class Session(_Handle):
    """Keys of two attested peers. Any thread may call; each direction does one call at a time."""

    __slots__ = ("_closed",)

    def __init__(self, backend: Any, pointer: Any, free: str) -> None:
        super().__init__(backend, pointer, free)
        self._closed = False

    def seal(
        self,
        transfer: Transfer | None,
        *,
        region: int,
        first_gpa: int,
        plain: ReadableBuffer,
        out: WriteableBuffer | None = None,
    ) -> tuple[bytes, SealResult]:
        """Seal the pages of `plain` as consecutive addresses; the records come back as bytes.

        With `out` the records are also left there, and `bytes` is a copy; use `seal_into` to have none.
        """
        if out is not None:
            result = self.seal_into(transfer, region=region, first_gpa=first_gpa, plain=plain, out=out)
            return bytes(memoryview(out).cast("B")), result
        with _read(plain) as source:
            records = _room_for(len(source))
            return records, self._seal(transfer, region, first_gpa, source, _read(records))

    def seal_into(
        self, transfer: Transfer | None, *, region: int, first_gpa: int, plain: ReadableBuffer, out: WriteableBuffer
    ) -> SealResult:
        """Seal into `out`, whose size is that of the records (4160 bytes a page)."""
        with _read(plain) as source, _write(out) as target:
            size = len(target)
            if size != len(source) // PAGE_SIZE * RECORD_SIZE:
                raise _error("EB_ERR_BUFFER" if size < len(source) // PAGE_SIZE * RECORD_SIZE else "EB_ERR_LENGTH")
            return self._seal(transfer, region, first_gpa, source, target)

    def seal_from(
        self, transfer: Transfer | None, *, region: int, first_gpa: int, source: Source, offset: int, length: int
    ) -> tuple[bytes, SealResult]:
        """Seal `length` bytes of a source from `offset` (whole pages; zeros after the source's end fill the last).

        The plaintext is read into the bridge's secret memory: Python has no view of it.
        """
        owned_source = source._live()
        if not 0 < length < source.length + PAGE_SIZE:  # no room is made for what cannot be
            raise _error("EB_ERR_LENGTH")
        records = _room_for(length)
        return records, self._sealed(
            self._backend.lib.eb_pages_seal_from,
            transfer,
            region,
            first_gpa,
            (owned_source, _unsigned(offset, _U64_MAX), length),
            _read(records),
        )

    def _seal(self, transfer: Transfer | None, region: int, first_gpa: int, source: Any, target: Any) -> SealResult:
        return self._sealed(self._backend.lib.eb_pages_seal, transfer, region, first_gpa, (source, len(source)), target)

    def _sealed(
        self, call: Any, transfer: Transfer | None, region: int, first_gpa: int, plain: tuple[Any, ...], target: Any
    ) -> SealResult:
        """Either way to seal; `plain` is what says where the pages come from."""
        owned = None if transfer is None else transfer._live()
        raw, written = self._backend.ffi.new("eb_result *"), ffi.new("size_t *")
        status = call(
            self._live(),
            ffi.NULL if owned is None else owned[0],
            _unsigned(region, _U32_MAX),
            _unsigned(first_gpa, _U64_MAX),
            *plain,
            target,
            len(target),
            written,
            raw,
        )
        if status:
            raise BridgeStatusError(status)
        return SealResult(raw.pages, None, raw.nanoseconds, raw.epoch, raw.sequence)

    def open(self, transfer: Transfer, records: ReadableBuffer) -> OpenResult:
        """Open records in order into the transfer's target. Stops at the first bad one.

        Raises `BridgeStatusError` whose `result` says how many before it took effect.
        """
        owned = transfer._live()
        raw = self._backend.ffi.new("eb_result *")
        with _read(records) as source:
            status = self._backend.lib.eb_pages_open(self._live(), owned[0], source, len(source), raw)
        result = OpenResult(raw.pages, _index(raw.bad_index), raw.nanoseconds, raw.epoch, raw.sequence)
        if status:
            raise BridgeStatusError(status, result)
        return result

    def mac(self, purpose: MacPurpose, message: ReadableBuffer) -> bytes:
        """The MAC of a control message under the own key for that purpose."""
        view = _read(message)
        mac, mac_len = _mac_room()
        check(
            self._backend.lib.eb_session_mac(
                self._live(), _unsigned(purpose, _U32_MAX), view, len(view), mac, len(mac), mac_len
            )
        )
        return bytes(ffi.buffer(mac, mac_len[0]))

    def check_mac(self, purpose: MacPurpose, message: ReadableBuffer, mac: ReadableBuffer) -> None:
        """Check a MAC made by the peer."""
        view, claimed = _read(message), _read(mac)
        check(
            self._backend.lib.eb_session_check_mac(
                self._live(), _unsigned(purpose, _U32_MAX), view, len(view), claimed, len(claimed)
            )
        )

    def commit_mac(self, transfer: Transfer) -> bytes:
        """The MAC over the transfer's account: every recorded page's address and tag."""
        owned = transfer._live()
        mac, mac_len = _mac_room()
        check(self._backend.lib.eb_transfer_commit_mac(self._live(), owned[0], mac, len(mac), mac_len))
        return bytes(ffi.buffer(mac, mac_len[0]))

    def check_commit_mac(self, transfer: Transfer, mac: ReadableBuffer) -> None:
        """Check that the peer's account of the transfer is the same as ours."""
        owned = transfer._live()
        claimed = _read(mac)
        check(self._backend.lib.eb_transfer_check_commit_mac(self._live(), owned[0], claimed, len(claimed)))

    def rekey(self) -> None:
        """Move the sending direction to its next epoch."""
        check(self._backend.lib.eb_session_rekey(self._live()))

    def stats(self) -> SessionStats:
        """Counters; also of a session that the bridge has closed."""
        raw = self._backend.ffi.new("eb_session_stats *")
        check(self._backend.lib.eb_session_get_stats(self._live(), raw))
        return SessionStats(
            raw.send_epoch,
            raw.recv_epoch,
            raw.sent_pages,
            raw.opened_pages,
            raw.replayed,
            raw.tampered,
            raw.refused,
            bool(raw.closed),
        )

    def _live(self) -> Any:
        if self._closed:
            raise _error("EB_ERR_SESSION_CLOSED")
        return super()._live()

    def close(self) -> None:
        """Zeroise the keys now, after the calls in progress; later calls are `SESSION_CLOSED`."""
        owned, self._closed, self._owned = self._owned, True, None
        if owned is not None:
            self._backend.lib.eb_session_close(owned)  # closed by the bridge before, or a forked child: nothing to do


def parse_header(record: ReadableBuffer) -> RecordHeader:
    """The public fields of one record (4160 bytes), for logs and messages."""
    view = _read(record)
    raw = ffi.new("eb_record_header *")
    check(lib.eb_record_parse(view, len(view), raw))
    return RecordHeader(
        bytes(ffi.buffer(raw.session_id)), raw.epoch, raw.flags, raw.sequence, raw.region, raw.reserved, raw.gpa
    )


def _room_for(length: int) -> bytes:
    """Room for the records of that much plaintext. The object is ours alone until it is returned: C may write it."""
    size = length // PAGE_SIZE * RECORD_SIZE
    return bytes(size) if size < _UNINITIALISED_FROM else _uninitialised_bytes(None, size)


def _mac_room() -> tuple[Any, Any]:
    return ffi.new("uint8_t[]", lib.EB_MAX_MAC_SIZE), ffi.new("size_t *")


def _string(array: Any) -> str:
    return bytes(ffi.buffer(array)).split(b"\0", 1)[0].decode("ascii", "replace")
