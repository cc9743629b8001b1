"""Guards: MACs of pages in memory or files that others can write, and the sealing key that lets them outlive us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._native import ffi, lib
from .errors import BridgeStatusError, check
from .handles import _U32_MAX, _U64_MAX, Bridge, Session, Transfer, _Handle, _read, _room_for, _unsigned
from .results import PAGE_SIZE, SealResult

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class PageRange:
    """`pages` pages from page `first` of a region."""

    first: int
    pages: int


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check found. `bad` has the first ranges, ascending; `bad_pages` counts all."""

    pages: int
    bad_pages: int
    bad: tuple[PageRange, ...]


@dataclass(frozen=True, slots=True)
class SnpFailure:
    """Why the SNP firmware gave no key: errno, the firmware's and the host's error, the answer's status; 0 is none."""

    system_error: int
    fw_error: int
    vmm_error: int
    status: int


class SealingError(BridgeStatusError):
    """There is no sealing key. `failure` is set when the SNP firmware was asked for it."""

    def __init__(self, status: int, failure: SnpFailure | None = None) -> None:
        super().__init__(status)
        self.failure = failure

    def __reduce__(self) -> tuple[type[SealingError], tuple[int, SnpFailure | None]]:  # type: ignore[override]
        return type(self), (self.status, self.failure)


class TamperedPageError(BridgeStatusError):
    """Page `page` of a region is not as it was written."""

    def __init__(self, status: int, page: int) -> None:
        super().__init__(status)
        self.page = page

    def __reduce__(self) -> tuple[type[TamperedPageError], tuple[int, int]]:  # type: ignore[override]
        return type(self), (self.status, self.page)


class Sealing(_Handle):
    """A key that this machine can have again after a restart. It never leaves the bridge's secret memory."""

    __slots__ = ()

    @classmethod
    def from_file(cls, bridge: Bridge, fd: int) -> Sealing:
        """The key in a file of this user, mode 0600; an empty file gets one. Raises SealingError."""
        backend = bridge._backend
        out = backend.ffi.new("eb_sealing **")
        _check_key(backend.lib.eb_sealing_open_file(bridge._live(), fd, out), None)
        return cls(backend, out[0], "eb_sealing_free")

    @classmethod
    def from_snp(
        cls,
        bridge: Bridge,
        fd: int,
        *,
        guest_fields: int,
        root_key: int = 0,
        vmpl: int = 0,
        guest_svn: int = 0,
        tcb_version: int = 0,
    ) -> Sealing:
        """The SNP firmware's derived key, by the open device /dev/sev-guest. Raises SealingError.

        The numbers are those of MSG_KEY_REQ (AMD 56860). While the host is busy it is asked again for about 3 s.
        """
        backend = bridge._backend
        options = backend.ffi.new("eb_snp_key_options *")
        options.root_key = _unsigned(root_key, _U32_MAX)
        options.guest_fields = _unsigned(guest_fields, _U64_MAX)
        options.vmpl = _unsigned(vmpl, _U32_MAX)
        options.guest_svn = _unsigned(guest_svn, _U32_MAX)
        options.tcb_version = _unsigned(tcb_version, _U64_MAX)
        raw, out = backend.ffi.new("eb_snp_failure *"), backend.ffi.new("eb_sealing **")
        status = backend.lib.eb_sealing_open_snp(bridge._live(), fd, options, raw, out)
        _check_key(status, SnpFailure(raw.system_error, raw.fw_error, raw.vmm_error, raw.status))
        return cls(backend, out[0], "eb_sealing_free")


def _check_key(status: int, failure: SnpFailure | None) -> None:
    if status == lib.EB_ERR_SEALING:
        raise SealingError(status, failure)
    check(status)


class Guard(_Handle):
    """A MAC for each page of a region's memory. Any thread may call."""

    __slots__ = ()

    @classmethod
    def new(
        cls,
        bridge: Bridge,
        *,
        region: str,
        generation: int,
        pages: int,
        fd: int,
        sealing: Sealing | None = None,
    ) -> Guard:
        """A guard over the zero pages of `fd`, which may be closed afterwards. With a sealing key it can be saved."""
        backend = bridge._backend
        out = backend.ffi.new("eb_guard **")
        name, scope = _scope(backend, region, generation, pages)
        key = ffi.NULL if sealing is None else sealing._live()
        check(backend.lib.eb_guard_new(bridge._live(), key, scope, fd, 0, out))
        del name
        return cls(backend, out[0], "eb_guard_free")

    @classmethod
    def load(
        cls,
        bridge: Bridge,
        *,
        region: str,
        generation: int,
        pages: int,
        fd: int,
        sealing: Sealing,
        table_fd: int,
    ) -> Guard:
        """The guard that was saved to `table_fd`, if it is that of this region and generation; else `TABLE`.

        It verifies; before it takes pages again it must be renewed.
        """
        backend = bridge._backend
        out = backend.ffi.new("eb_guard **")
        name, scope = _scope(backend, region, generation, pages)
        check(backend.lib.eb_guard_load(bridge._live(), sealing._live(), scope, fd, 0, table_fd, out))
        del name
        return cls(backend, out[0], "eb_guard_free")

    def attach(self, transfer: Transfer) -> None:
        """Verified pages of the transfer go to the guard's memory and get their MACs."""
        check(self._backend.lib.eb_transfer_set_guard(transfer._live()[0], self._live()))

    def seal(self, session: Session, transfer: Transfer, *, first_gpa: int, pages: int) -> tuple[bytes, SealResult]:
        """Seal pages from private copies that verified. Raises TamperedPageError, and then nothing was sealed."""
        owned = transfer._live()
        records = _room_for(pages * PAGE_SIZE)
        raw, written = self._backend.ffi.new("eb_result *"), ffi.new("size_t *")
        status = self._backend.lib.eb_guard_seal(
            self._live(),
            session._live(),
            owned[0],
            _unsigned(first_gpa, _U64_MAX),
            _unsigned(pages, _U64_MAX),
            _read(records),
            len(records),
            written,
            raw,
        )
        _check_pages(status, raw.bad_index)
        return records, SealResult(raw.pages, None, raw.nanoseconds, raw.epoch, raw.sequence)

    def verify(self, first: int, pages: int, *, max_ranges: int = 256) -> Verification:
        """Check pages from page `first`."""
        bad, raw = (
            self._backend.ffi.new("eb_page_range[]", max(max_ranges, 1)),
            self._backend.ffi.new("eb_verify_result *"),
        )
        check(
            self._backend.lib.eb_guard_verify(
                self._live(), _unsigned(first, _U64_MAX), _unsigned(pages, _U64_MAX), bad, max_ranges, raw
            )
        )
        ranges = tuple(PageRange(bad[i].first, bad[i].pages) for i in range(raw.ranges))
        return Verification(raw.pages, raw.bad_pages, ranges)

    def carry(self, former: Guard) -> None:
        """Copy all pages of another guard's memory to this one's, each verified. Raises TamperedPageError."""
        self._told_page(lambda own, bad: self._backend.lib.eb_guard_carry(own, former._live(), bad))

    def renew(self, generation: int) -> None:
        """New keys and MACs for the same pages, each verified first. Raises TamperedPageError."""
        self._told_page(lambda own, bad: self._backend.lib.eb_guard_renew(own, _unsigned(generation, _U64_MAX), bad))

    def save(self, table_fd: int) -> None:
        """Write the table of MACs, authenticated under the sealing key, to an open file."""
        check(self._backend.lib.eb_guard_save(self._live(), table_fd))

    def journal(self, table_fd: int, generation: int) -> None:
        """The next page taken makes `generation`, and is appended to the saved table before it is written."""
        check(self._backend.lib.eb_guard_journal(self._live(), table_fd, _unsigned(generation, _U64_MAX)))

    def _told_page(self, call: Callable[[Any, Any], int]) -> None:
        bad = ffi.new("uint64_t *")
        _check_pages(call(self._live(), bad), bad[0])


def _check_pages(status: int, page: int) -> None:
    if status == lib.EB_ERR_TAMPERED:
        raise TamperedPageError(status, page)
    check(status)


def _scope(backend: Any, region: str, generation: int, pages: int) -> tuple[Any, Any]:
    """The C struct, and the name it points at: keep both for the call."""
    name = ffi.new("char[]", region.encode())
    scope = backend.ffi.new("eb_guard_scope *")
    scope.region = name
    scope.generation = _unsigned(generation, _U64_MAX)
    scope.pages = _unsigned(pages, _U64_MAX)
    return name, scope
