"""Regions: named windows of guest-physical addresses, who may use them, and who is writing now."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import enclave_bridge as eb
from pagegate.errors import ConfigError, PagegateError, TransferError
from pagegate.evidence.model import AccessMode, Verdict
from pagegate.handshake.model import GrantedRegion
from pagegate.transfer.backing import Backing, FileBacking, MemfdBacking
from pagegate.transfer.protection import GuardMaker, Protection

_log = logging.getLogger(__name__)
_MAX_PAGES = 1 << 28


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """How a region is configured: `name=book,base=0x100000000,size=64MiB[,dir=/var/lib/pagegate/book]`."""

    name: str
    base_gpa: int
    pages: int
    directory: Path | None = None
    """Directory of a file-backed region; None keeps it in memory (memfd)."""
    protect: bool | None = None
    """Keep a MAC a page, and read only what verifies. None: where the server can (a file needs a sealing key)."""

    def __post_init__(self) -> None:
        if self.base_gpa % eb.PAGE_SIZE or self.base_gpa < 0:
            raise ConfigError(
                "REGION_UNALIGNED", f"region {self.name}: base {self.base_gpa:#x} is not a multiple of 4096"
            )
        if not 1 <= self.pages <= _MAX_PAGES or self.base_gpa + self.pages * eb.PAGE_SIZE > 1 << 64:
            raise ConfigError(
                "REGION_SIZE",
                f"region {self.name}: {self.pages} pages; allowed are 1 to {_MAX_PAGES}, without wrapping",
            )


class Reading(Protocol):
    """One read of a committed generation."""

    @property
    def generation(self) -> int:
        """The generation that is read, whatever is committed meanwhile."""
        ...

    def seal(
        self, session: eb.Session, transfer: eb.Transfer, *, first_gpa: int, pages: int
    ) -> tuple[bytes, eb.SealResult]:
        """Seals pages inside the window. Raises TransferError TAMPERED, BridgeStatusError."""
        ...


@dataclass(frozen=True, slots=True)
class _PlainReading:
    generation: int
    spec: RegionSpec
    number: int
    source: eb.Source

    def seal(
        self, session: eb.Session, transfer: eb.Transfer, *, first_gpa: int, pages: int
    ) -> tuple[bytes, eb.SealResult]:
        return session.seal_from(
            transfer,
            region=self.number,
            first_gpa=first_gpa,
            source=self.source,
            offset=first_gpa - self.spec.base_gpa,
            length=pages * eb.PAGE_SIZE,
        )


@dataclass(frozen=True, slots=True)
class _GuardedReading:
    generation: int
    protection: Protection
    guard: eb.Guard

    def seal(
        self, session: eb.Session, transfer: eb.Transfer, *, first_gpa: int, pages: int
    ) -> tuple[bytes, eb.SealResult]:
        with self.protection.told():
            return self.guard.seal(session, transfer, first_gpa=first_gpa, pages=pages)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of a region found."""

    generation: int
    pages: int
    bad_pages: int
    bad: tuple[eb.PageRange, ...]
    """The first ranges of them, ascending; `first` counts from the region's first page."""


class Region:
    """One region on a server. Thread-safe."""

    def __init__(self, spec: RegionSpec, number: int, guards: GuardMaker | None = None) -> None:
        """Raises TransferError REGION_IO, REGION_SIZE; ConfigError SEALING; PlatformError."""
        self.spec = spec
        self.number = number
        size = spec.pages * eb.PAGE_SIZE
        self._backing: Backing = (
            MemfdBacking(spec.name, size) if spec.directory is None else FileBacking(spec.name, spec.directory, size)
        )
        self._lock = threading.RLock()
        self._writer: bytes | None = None
        self._door: eb.Transfer | None = None
        self._protection: Protection | None = None
        if guards is not None and self._wants_protection(guards):
            self._protection = Protection(
                guards, self._backing, name=spec.name, base_gpa=spec.base_gpa, pages=spec.pages
            )

    def _wants_protection(self, guards: GuardMaker) -> bool:
        possible = guards.lasting or not self._backing.durable
        if self.spec.protect and not possible:
            raise ConfigError(
                "SEALING", f"region {self.spec.name} is kept in files: its page MACs need a sealing key; choose one"
            )
        return possible if self.spec.protect is None else self.spec.protect

    @property
    def protected(self) -> bool:
        """True when each page has a MAC that every read checks."""
        return self._protection is not None

    @property
    def protection(self) -> str:
        """How its pages are protected at rest, in words for an operator."""
        if self._protection is None:
            return "no page MACs"
        if self._protection.lost:
            return "page MACs lost with the bridge"
        return f"TAMPERED: {self._protection.fault}" if self._protection.fault else "page MACs"

    @property
    def generation(self) -> int:
        """Number of the committed generation."""
        with self._lock:
            return self._backing.generation

    @property
    def writing(self) -> bool:
        """True while a transfer is staging a new generation."""
        return self._writer is not None

    def window(self, gpa: int, pages: int) -> int:
        """Byte offset of a page run, checked. Raises TransferError UNALIGNED or OUT_OF_RANGE."""
        spec = self.spec
        if gpa % eb.PAGE_SIZE:
            raise TransferError("UNALIGNED", f"address {gpa:#x} is not a multiple of 4096")
        end = spec.base_gpa + spec.pages * eb.PAGE_SIZE
        if not (spec.base_gpa <= gpa and pages > 0 and gpa + pages * eb.PAGE_SIZE <= end):
            raise TransferError(
                "OUT_OF_RANGE",
                f"{pages} pages from {gpa:#x} are not inside region {spec.name}: {spec.base_gpa:#x} to {end:#x}",
                metadata={"region_base": hex(spec.base_gpa), "region_end": hex(end)},
            )
        return gpa - spec.base_gpa

    def begin(self, bridge: eb.Bridge, transfer_id: bytes, *, delta: bool) -> eb.Transfer:
        """Stages a generation and returns the bridge's account of it. One writer at a time: REGION_BUSY."""
        with self._lock:
            if self._writer is not None:
                raise TransferError(
                    "REGION_BUSY",
                    f"region {self.spec.name} is being written by another transfer; retry when it has ended",
                    retry_after=0.5,
                )
            fd = self._backing.stage(copy_current=delta and self._protection is None)
            transfer = None
            try:
                transfer = self._account(bridge, transfer_id)
                if self._protection is None:
                    transfer.target_fd(fd)
                else:
                    self._protection.stage(fd, delta=delta).attach(transfer)
            except BaseException:
                if transfer is not None:
                    transfer.close()
                self._discard()
                raise
            finally:
                os.close(fd)
            self._writer = transfer_id
            return transfer

    def _account(self, bridge: eb.Bridge, transfer_id: bytes) -> eb.Transfer:
        return bridge.transfer(transfer_id, region=self.number, base_gpa=self.spec.base_gpa, pages=self.spec.pages)

    def commit(self, transfer_id: bytes) -> int:
        """Switches the staged generation in. Returns its number."""
        with self._lock:
            if self._writer != transfer_id:
                raise TransferError("NOTHING_STAGED", f"region {self.spec.name} has no such transfer to commit")
            if self._protection is not None:
                self._protection.save_staged()
            generation = self._backing.commit()
            if self._protection is not None:
                self._protection.committed()
            self._writer = None
            self._close_door()
            return generation

    def _discard(self) -> None:
        if self._protection is not None:
            self._protection.discard()
        self._backing.discard()

    def abandon(self, transfer_id: bytes) -> None:
        """Drops the staged generation of this transfer, if it is the one staging."""
        with self._lock:
            if self._writer == transfer_id:
                self._writer = None
                self._discard()

    def write_page(self, bridge: eb.Bridge, session: eb.Session, record: bytes) -> tuple[eb.OpenResult, int]:
        """Opens one sealed page straight into the committed generation. Returns the new generation too."""
        with self._lock:
            if self._writer is not None:
                raise TransferError(
                    "REGION_BUSY",
                    f"region {self.spec.name} is being written by a transfer; retry when it has ended",
                    retry_after=0.5,
                )
            guard = self._protection.writable() if self._protection is not None else None
            if self._door is None:
                self._door = self._open_door(bridge, guard)
            result = session.open(self._door, record)
            return result, self._backing.touch()

    def _open_door(self, bridge: eb.Bridge, guard: eb.Guard | None) -> eb.Transfer:
        door = self._account(bridge, bytes(16))
        if guard is not None:
            guard.attach(door)
            return door
        fd = self._backing.open_current()
        try:
            door.target_fd(fd)
        finally:
            os.close(fd)
        return door

    @contextlib.contextmanager
    def read(self, bridge: eb.Bridge) -> Iterator[Reading]:
        """A read of the committed generation. Later commits do not change it. Raises TransferError TAMPERED."""
        with self._lock:
            generation = self._backing.generation
            if self._protection is not None:
                guarded = _GuardedReading(generation, self._protection, self._protection.current())
            else:
                fd = self._backing.open_current()
        if self._protection is not None:
            yield guarded
            return
        try:
            source = bridge.source(fd, length=self.spec.pages * eb.PAGE_SIZE)
        finally:
            os.close(fd)
        with source:
            yield _PlainReading(generation, self.spec, self.number, source)

    def verify(self, first_gpa: int, pages: int, *, max_ranges: int) -> Checked:
        """Checks committed pages against their MACs.

        Raises TransferError REGION_UNPROTECTED, OUT_OF_RANGE, REGION_LOST.
        """
        first = self.window(first_gpa, pages) // eb.PAGE_SIZE
        if self._protection is None:
            raise TransferError(
                "REGION_UNPROTECTED",
                f"region {self.spec.name} keeps no page MACs, so there is nothing to check it against; its operator can "
                "serve it with protection",
            )
        with self._lock:
            generation, all_bad = self._backing.generation, bool(self._protection.fault) and not self._protection.lost
            guard = None if all_bad else self._protection.current()
        if guard is None:
            return Checked(generation, pages, pages, (eb.PageRange(first, pages),))
        found = guard.verify(first, pages, max_ranges=max_ranges)
        return Checked(generation, found.pages, found.bad_pages, found.bad)

    def open_current(self) -> int:
        """A descriptor of the committed generation for a local reader; belongs to the caller."""
        with self._lock:
            return self._backing.open_current()

    def close_door(self) -> None:
        """Gives up the account of single pages; the next page makes another."""
        with self._lock:
            self._close_door()

    def take_up(self) -> None:
        """The bridge has died and another is there: what it kept of the committed generation is taken up again."""
        with self._lock:
            self._close_door()
            if self._protection is not None:
                self._protection.take_up()

    def _close_door(self) -> None:
        if self._door is not None:
            self._door.close()
            self._door = None

    def close(self) -> None:
        """Drops what is staged and gives up the memory or files."""
        with self._lock:
            self._writer = None
            self._close_door()
            self._backing.close()


class RegionTable:
    """All regions of a server, by name and by number."""

    def __init__(self, specs: Sequence[RegionSpec], guards: GuardMaker | None = None) -> None:
        """`guards` makes page MACs for the regions that want them; None leaves all without."""
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise ConfigError("REGION_TWICE", f"a region is configured twice: {', '.join(names)}")
        self._regions = [Region(spec, number, guards) for number, spec in enumerate(specs, start=1)]
        self._by_name = {region.spec.name: region for region in self._regions}

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def by_number(self, number: int) -> Region:
        """Raises TransferError REGION_UNKNOWN."""
        if not 1 <= number <= len(self._regions):
            raise TransferError("REGION_UNKNOWN", f"region number {number} does not exist on this server")
        return self._regions[number - 1]

    def by_name(self, name: str) -> Region:
        """Raises TransferError REGION_UNKNOWN."""
        try:
            return self._by_name[name]
        except KeyError:
            raise TransferError(
                "REGION_UNKNOWN", f"region {name!r} does not exist on this server; ask its operator for the names"
            ) from None

    def grant(self, wanted: Mapping[str, AccessMode], verdict: Verdict) -> dict[str, GrantedRegion]:
        """All regions wanted, if the verdict's identity may use each so. Raises TransferError REGION_NOT_GRANTED."""
        granted: dict[str, GrantedRegion] = {}
        for name, mode in wanted.items():
            allowed = verdict.grants.get(name, verdict.grants.get("*"))
            if allowed is None or not allowed.allows(mode):
                raise TransferError(
                    "REGION_NOT_GRANTED",
                    f"identity {verdict.identity!r} may not {mode.value} region {name!r}; its policy entry must grant it",
                    metadata={"region": name},
                )
            region = self.by_name(name)
            granted[name] = GrantedRegion(name, region.number, region.spec.base_gpa, region.spec.pages, mode)
        return granted

    def close_doors(self) -> None:
        """What a bridge that is gone held of the regions."""
        for region in self._regions:
            region.close_door()

    def take_up(self) -> None:
        """As each region's; one that fails is not served, and keeps no other from being so."""
        for region in self._regions:
            try:
                region.take_up()
            except PagegateError as error:
                _log.error("region %s cannot be taken up by another bridge: %s", region.spec.name, error)

    def close(self) -> None:
        """Closes every region."""
        for region in self._regions:
            region.close()
