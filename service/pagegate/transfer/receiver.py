"""The receiving side of one transfer: batches are verified and staged, a commit makes them visible."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import enclave_bridge as eb
from pagegate.errors import TransferError
from pagegate.telemetry import TraceContext
from pagegate.transfer import macs
from pagegate.transfer.faults import transfer_faults
from pagegate.transfer.region import Region

Owner = tuple[str, bytes, str]
"""Policy identity, measurement and platform id of an attested peer."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A generation that became visible, and the MAC that proves it to the sender."""

    pages: int
    generation: int
    commit_mac: bytes


class Receiver:
    """One transfer into one region. One stream drives it at a time; it survives a broken stream."""

    def __init__(
        self,
        bridge: eb.Bridge,
        region: Region,
        transfer_id: bytes,
        owner: Owner,
        *,
        expected_pages: int,
        delta: bool,
    ) -> None:
        """Stages a generation. Raises TransferError REGION_BUSY, OUT_OF_RANGE."""
        if len(transfer_id) != macs.TRANSFER_ID_SIZE:
            raise TransferError("MALFORMED_MESSAGE", f"transfer_id is {len(transfer_id)} bytes; it must be 16")
        if not 1 <= expected_pages <= region.spec.pages:
            raise TransferError(
                "OUT_OF_RANGE",
                f"a transfer of {expected_pages} pages does not fit region {region.spec.name} of {region.spec.pages} pages",
            )
        self.region = region
        self.transfer_id = transfer_id
        self.owner = owner
        self.expected_pages = expected_pages
        self.delta = delta
        self.batches = 0
        self.receipt: Receipt | None = None
        self.began: TraceContext | None = None
        """The hop in which the first stream of this transfer ran; None without telemetry."""
        self.touched_at = time.monotonic()
        self._lock = threading.Lock()
        self._transfer = region.begin(bridge, transfer_id, delta=delta)

    @property
    def staged(self) -> int:
        """Pages verified and waiting for the commit; 0 once it was made."""
        try:
            return self._transfer.pages
        except eb.BridgeStatusError:
            return 0

    def check_same(self, *, expected_pages: int, delta: bool) -> None:
        """Raises TransferError TRANSFER_MISMATCH when a resumed Begin says otherwise than the first."""
        if (expected_pages, delta) != (self.expected_pages, self.delta):
            raise TransferError("TRANSFER_MISMATCH", "this transfer_id was begun with another size or mode")

    def acquire(self) -> None:
        """Claims the transfer for one stream. Raises TransferError TRANSFER_IN_USE."""
        if not self._lock.acquire(blocking=False):
            raise TransferError(
                "TRANSFER_IN_USE", "another stream drives this transfer; retry when it has ended", retry_after=0.2
            )

    def release(self) -> None:
        """The stream ended, whole or broken."""
        self.touched_at = time.monotonic()
        self._lock.release()

    @property
    def in_use(self) -> bool:
        """True while a stream drives it."""
        return self._lock.locked()

    def batch(self, session: eb.Session, number: int, records: memoryview | bytes | eb.ChannelRecords) -> eb.OpenResult:
        """Verifies and stages one batch. A failure ends the stream; what was staged stays invisible."""
        if number != self.batches:
            raise TransferError(
                "BATCH_OUT_OF_ORDER", f"batch {number} came where {self.batches} was due; resume the transfer"
            )
        with transfer_faults():
            if isinstance(records, eb.ChannelRecords):
                result = records.open(session, self._transfer)
            else:
                result = session.open(self._transfer, records)
        self.batches += 1
        return result

    def commit(self, session: eb.Session, pages: int, mac: bytes) -> Receipt:
        """Checks that exactly what was sent is staged, then makes it visible. Repeating it is harmless."""
        if self.receipt is not None:
            if (pages, mac) != (self.receipt.pages, self.receipt.commit_mac):
                raise TransferError("TRANSFER_MISMATCH", "this transfer was committed with another content")
            return self.receipt
        staged = self._transfer.pages
        if pages != staged or pages != self.expected_pages:
            raise TransferError(
                "TRANSFER_INCOMPLETE",
                f"commit says {pages} pages, begin said {self.expected_pages}, staged are {staged}; nothing became visible",
            )
        with transfer_faults():
            session.check_commit_mac(self._transfer, mac)
        # Unmap before the switch: nothing may write a committed generation.
        self._transfer.close()
        generation = self.region.commit(self.transfer_id)
        self.receipt = Receipt(pages, generation, mac)
        return self.receipt

    def lose(self) -> None:
        """The bridge is gone: what is staged is dropped. A stream that drives this sees it in its next call."""
        self.region.abandon(self.transfer_id)

    def abandon(self) -> None:
        """Drops what is staged."""
        self.region.abandon(self.transfer_id)
        self._transfer.close()
