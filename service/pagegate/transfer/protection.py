"""Page MACs of one region: which guard stands over the committed generation, and how it outlives the server.

Memory and files that the host can write are read only through a guard of the bridge (docs/regions.md). A guard
belongs to one generation; a file-backed region keeps its table beside the generation's pages.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

import enclave_bridge as eb
from pagegate.errors import BridgeError, TransferError
from pagegate.platforms.sealing import SealingSource
from pagegate.transfer.backing import Backing

_log = logging.getLogger(__name__)
_JOURNAL_LIMIT = 1024
"""Writes in place after which a table is made anew: its journal has then some 4 MiB."""


class GuardMaker:
    """Makes guards with one bridge and one sealing key, which is asked for when it is first needed."""

    def __init__(self, bridge: eb.Bridge, sealing: SealingSource | None = None) -> None:
        self._bridge = bridge
        self._source = sealing
        self._sealing: eb.Sealing | None = None
        self._lock = threading.Lock()

    def use(self, bridge: eb.Bridge) -> None:
        """Goes on with another bridge: the one before has died, and its sealing key and guards with it."""
        with self._lock:
            self._bridge, self._sealing = bridge, None

    @property
    def lasting(self) -> bool:
        """True when there is a sealing key: guards can outlive this process."""
        return self._source is not None

    def sealing(self) -> eb.Sealing:
        """The sealing key. Raises PlatformError."""
        assert self._source is not None
        with self._lock:
            if self._sealing is None:
                self._sealing = self._source(self._bridge)
            return self._sealing

    def new(self, region: str, generation: int, pages: int, fd: int, *, lasting: bool) -> eb.Guard:
        """A guard over zero pages."""
        key = self.sealing() if lasting else None
        return eb.Guard.new(self._bridge, region=region, generation=generation, pages=pages, fd=fd, sealing=key)

    def load(self, region: str, generation: int, pages: int, fd: int, table_fd: int) -> eb.Guard:
        """The guard that was saved. Raises BridgeStatusError TABLE."""
        return eb.Guard.load(
            self._bridge,
            region=region,
            generation=generation,
            pages=pages,
            fd=fd,
            sealing=self.sealing(),
            table_fd=table_fd,
        )


class Protection:
    """The guards of one region. Its region serialises the calls, but for `current` of a reader that goes on."""

    def __init__(self, maker: GuardMaker, backing: Backing, *, name: str, base_gpa: int, pages: int) -> None:
        """Takes up the committed generation. What is wrong with its table is kept for `current`: a region that
        cannot be trusted must not keep the others from being served. Raises PlatformError (the sealing key)."""
        self._maker = maker
        self._backing = backing
        self._name = name
        self._base_gpa = base_gpa
        self._pages = pages
        self._guard: eb.Guard | None = None
        self._staged: eb.Guard | None = None
        self._fault = ""
        self._loaded = False
        self._unsaved = False
        self._journalled = 0
        self._lost = False
        self._take_up()

    def take_up(self) -> None:
        """The bridge has died and another is there. A table that was saved is loaded again; MACs that only the
        bridge had are lost, and what the memory holds can no longer be told from what others wrote there."""
        self._guard = self._staged = None
        self._fault, self._loaded, self._unsaved, self._journalled = "", False, False, 0
        self._lost = not self._backing.durable
        self._take_up()

    def _take_up(self) -> None:
        self._open()
        if self._guard is None and self._lost:
            _log.error("region %s: its page MACs died with the bridge; send it again", self._name)
        elif self._guard is None:
            _log.error("memory tampering detected: region %s: %s", self._name, self._fault)

    def _open(self) -> None:
        generation = self._backing.generation
        with contextlib.ExitStack() as stack:
            fd = self._backing.open_current()
            stack.callback(os.close, fd)
            table = self._backing.open_table()
            if table is None:
                if generation > 0:
                    self._fault = f"its generation {generation} has no table of page MACs"
                    return
                self._guard = self._maker.new(self._name, 0, self._pages, fd, lasting=self._backing.durable)
                self._unsaved = self._backing.durable
                self._save()
                return
            stack.callback(os.close, table)
            try:
                self._guard = self._maker.load(self._name, generation, self._pages, fd, table)
                self._loaded = True
            except eb.BridgeStatusError as error:
                if error.reason != "TABLE":
                    raise BridgeError(error.reason, str(error)) from error
                self._fault = f"the page MACs of its generation {generation} do not verify"

    @property
    def fault(self) -> str:
        """Why no page of the committed generation can be trusted; empty when each can be checked."""
        return self._fault

    @property
    def lost(self) -> bool:
        """True when that is because the bridge died, and no sign of tampering."""
        return self._lost and self._guard is None

    def current(self) -> eb.Guard:
        """The guard of the committed generation. Raises TransferError TAMPERED when it has none."""
        if self._guard is None and self._lost:
            raise TransferError(
                "REGION_LOST",
                f"the page MACs of region {self._name} died with the bridge process that kept them: what its memory holds "
                "can no longer be told from what others wrote there. Send the region again as a whole (mode replace)",
                metadata={"region": self._name},
            )
        if self._guard is None:
            raise TransferError(
                "TAMPERED",
                f"memory tampering detected: region {self._name}: {self._fault}. It was written by an unprotected server, "
                "under another sealing key, or changed since; send the region again as a whole (mode replace)",
                metadata={"region": self._name},
            )
        return self._guard

    # ---- a whole generation -----------------------------------------------------------

    def stage(self, fd: int, *, delta: bool) -> eb.Guard:
        """A guard over the staged generation's zero pages; with `delta` over verified copies of the committed ones.

        Raises TransferError TAMPERED.
        """
        generation = self._backing.generation + 1
        staged = self._maker.new(self._name, generation, self._pages, fd, lasting=self._backing.durable)
        if delta:
            with self.told():
                staged.carry(self.current())
        self._staged = staged
        return staged

    def save_staged(self) -> None:
        """Writes the staged table, before the switch."""
        if self._backing.durable and self._staged is not None:
            self._backing.write_table(self._staged.save, staged=True)

    def committed(self) -> None:
        """The staged generation is now the committed one. Readers of the former keep their guard."""
        self._guard, self._staged, self._fault, self._lost = self._staged, None, "", False
        self._loaded = self._unsaved = False
        self._journalled = 0

    def discard(self) -> None:
        """The staged generation is dropped."""
        self._staged = None

    # ---- a page in place ----------------------------------------------------------------

    def writable(self) -> eb.Guard:
        """The guard of the committed generation, ready to take one page in place. Raises TransferError TAMPERED."""
        guard = self.current()
        if not self._backing.durable:
            return guard
        if self._loaded or self._journalled >= _JOURNAL_LIMIT:
            with self.told():
                guard.renew(self._backing.generation)
            self._loaded, self._unsaved = False, True
        self._save()
        table = self._backing.open_table()
        if table is None:
            raise TransferError("REGION_IO", f"the table of page MACs of region {self._name} is gone; send it again")
        try:
            guard.journal(table, self._backing.generation + 1)
        finally:
            os.close(table)
        self._journalled += 1
        return guard

    def _save(self) -> None:
        """Nothing is journalled to a table that is not this guard's."""
        if self._unsaved and self._guard is not None:
            self._backing.write_table(self._guard.save, staged=False)
            self._unsaved = False
            self._journalled = 0

    # ---- what is wrong ------------------------------------------------------------------

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """A page that is not as it was written, as TransferError TAMPERED that names it."""
        try:
            yield
        except eb.TamperedPageError as error:
            gpa = self._base_gpa + error.page * eb.PAGE_SIZE
            raise TransferError(
                "TAMPERED",
                f"memory tampering detected: region {self._name} page {error.page} ({gpa:#x}) is not what was written; "
                "nothing of it was used. 'pagegate region verify' lists all such pages; find what writes there, then "
                "send the region again as a whole (mode replace)",
                metadata={"region": self._name, "page": str(error.page), "gpa": hex(gpa)},
            ) from error
