"""Which transfer is writing which region, across streams and sessions of one peer."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import enclave_bridge as eb
from pagegate.errors import TransferError
from pagegate.transfer.receiver import Owner, Receiver
from pagegate.transfer.region import Region

_FINISHED_KEPT = 1024


class TransferRegistry:
    """One writer a region. A broken transfer can be resumed by the same attested peer, also under a
    new session; a peer that vanished loses its place after `stale_after_s`."""

    def __init__(
        self,
        bridge: Callable[[], eb.Bridge],
        *,
        stale_after_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bridge = bridge
        self._stale_after_s = stale_after_s
        self._clock = clock
        self._active: dict[int, Receiver] = {}
        self._finished: OrderedDict[tuple[Owner, bytes], Receiver] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, region: Region, transfer_id: bytes, owner: Owner, *, expected_pages: int, delta: bool) -> Receiver:
        """A receiver claimed for this stream: resumed, already committed, or new. Raises TransferError."""
        with self._lock:
            receiver = self._finished.get((owner, transfer_id)) or self._active.get(region.number)
            if receiver is not None and (receiver.transfer_id, receiver.owner) == (transfer_id, owner):
                receiver.check_same(expected_pages=expected_pages, delta=delta)
                receiver.acquire()
                return receiver
            if receiver is not None:
                self._evict(receiver, owner)
            receiver = Receiver(self._bridge(), region, transfer_id, owner, expected_pages=expected_pages, delta=delta)
            receiver.acquire()
            self._active[region.number] = receiver
            return receiver

    def _evict(self, holder: Receiver, owner: Owner) -> None:
        idle = self._clock() - holder.touched_at
        if not holder.in_use and (holder.owner == owner or idle >= self._stale_after_s):
            holder.abandon()
            del self._active[holder.region.number]
            return
        raise TransferError(
            "REGION_BUSY",
            f"region {holder.region.spec.name} is being written by another transfer; retry when it has ended",
            retry_after=0.5,
        )

    def finished(self, receiver: Receiver) -> None:
        """A transfer is committed: its region is free; its receipt is kept for a repeated Commit."""
        with self._lock:
            self._active.pop(receiver.region.number, None)
            self._finished[(receiver.owner, receiver.transfer_id)] = receiver
            while len(self._finished) > _FINISHED_KEPT:
                self._finished.popitem(last=False)

    def reset(self) -> None:
        """Drops every transfer, also the receipts: the bridge that had their accounts is gone."""
        with self._lock:
            active = list(self._active.values())
            self._active.clear()
            self._finished.clear()
        for receiver in active:
            receiver.lose()

    def staged(self) -> dict[int, tuple[int, int]]:
        """Number of each region that is being written -> pages staged, pages to come in all."""
        with self._lock:
            active = list(self._active.values())
        return {receiver.region.number: (receiver.staged, receiver.expected_pages) for receiver in active}

    def abandon(self, receiver: Receiver) -> None:
        """Drops a transfer and what it staged."""
        with self._lock:
            if self._active.get(receiver.region.number) is receiver:
                del self._active[receiver.region.number]
            receiver.abandon()
