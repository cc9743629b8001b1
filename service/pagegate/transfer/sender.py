"""The sending side of one transfer: seals batches ahead of the acknowledgements, resumes after a break."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from typing_extensions import Buffer

import enclave_bridge as eb
from pagegate.errors import TransferError
from pagegate.handshake.model import Established, GrantedRegion
from pagegate.transfer import macs
from pagegate.transfer.faults import transfer_faults
from pagegate.transfer.source import FileSource, Source

Progress = Callable[[int, int], None]
"""Called with pages acknowledged and pages in all."""
SealHook = Callable[[int, int], None]
"""Called with pages sealed and the nanoseconds the bridge took."""


class PageSink(Protocol):
    """Where batches are sealed into directly: shared memory."""

    def seal(
        self, session: eb.Session, transfer: eb.Transfer, *, region: int, first_gpa: int, plain: Buffer, number: int
    ) -> eb.SealResult:
        """Seals and sends one batch. Raises TransferError."""
        ...

    def put_records(self, number: int, records: bytes) -> None:
        """Sends a batch that is sealed. Raises TransferError."""
        ...


class Sender:
    """What survives a broken stream: the transfer's id, its tags in the bridge, and how far the server is."""

    def __init__(
        self,
        bridge: eb.Bridge,
        region: GrantedRegion,
        source: Source | FileSource,
        *,
        first_gpa: int | None = None,
        delta: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Raises TransferError OUT_OF_RANGE when the source does not fit the region."""
        start = region.base_gpa if first_gpa is None else first_gpa
        end = region.base_gpa + region.pages * eb.PAGE_SIZE
        if start % eb.PAGE_SIZE:
            raise TransferError("UNALIGNED", f"address {start:#x} is not a multiple of 4096")
        if not region.base_gpa <= start or start + source.pages * eb.PAGE_SIZE > end:
            raise TransferError(
                "OUT_OF_RANGE",
                f"{source.pages} pages from {start:#x} do not fit region {region.name}: {region.base_gpa:#x} to {end:#x}",
            )
        self.region = region
        self.transfer_id = bridge.random(macs.TRANSFER_ID_SIZE)
        self.delta = delta
        self.pages = source.pages
        self._plain = source.open(bridge) if isinstance(source, FileSource) else source
        self._first_gpa = start
        self._progress = progress
        self._transfer = bridge.transfer(
            self.transfer_id, region=region.number, base_gpa=region.base_gpa, pages=region.pages
        )
        self._acked = 0
        self._condition = threading.Condition()
        self._stopped = False
        self.commit_mac = b""

    def begin_mac(self, session: eb.Session, mode: int) -> bytes:
        """MAC of Begin under this session's key."""
        with transfer_faults():
            return session.mac(
                eb.MacPurpose.TRANSFER, macs.begin(self.transfer_id, self.region.number, self.pages, mode)
            )

    def resume(self, batches: int, batch_pages: int) -> None:
        """The server holds this many batches; the next stream starts there."""
        if batches > -(-self.pages // batch_pages):
            raise TransferError("MALFORMED_MESSAGE", f"the server claims to hold {batches} batches of this transfer")
        with self._condition:
            self._acked = batches
            self._stopped = False

    def batches(
        self, established: Established, sealed: SealHook | None = None, sink: PageSink | None = None
    ) -> Iterator[tuple[int, bytes | None]]:
        """Sealed batches from where the server is, at most `max_batches_in_flight` ahead of it.

        With a sink they are sealed into it; what is yielded is then None, and already on its way.
        """
        step = established.limits.max_batch_pages
        window = established.limits.max_batches_in_flight
        first_number = self._acked
        for number in range(first_number, -(-self.pages // step)):
            with self._condition:
                self._condition.wait_for(lambda n=number: self._stopped or n - self._acked < window)  # type: ignore[misc]
                if self._stopped:
                    return
            first = number * step
            count = min(step, self.pages - first)
            records, result = self._seal(established.session, first, count, number, sink)
            if sealed is not None:
                sealed(count, result.nanoseconds)
            yield number, records

    def _seal(
        self, session: eb.Session, first: int, count: int, batch: int, sink: PageSink | None
    ) -> tuple[bytes | None, eb.SealResult]:
        number, gpa = self.region.number, self._first_gpa + first * eb.PAGE_SIZE
        with transfer_faults():
            if isinstance(self._plain, eb.Source):
                records, result = session.seal_from(
                    self._transfer,
                    region=number,
                    first_gpa=gpa,
                    source=self._plain,
                    offset=first * eb.PAGE_SIZE,
                    length=count * eb.PAGE_SIZE,
                )
                if sink is None:
                    return records, result
                sink.put_records(batch, records)
                return None, result
            plain = self._plain.read(first, count)
            if sink is None:
                return session.seal(self._transfer, region=number, first_gpa=gpa, plain=plain)
            return None, sink.seal(session, self._transfer, region=number, first_gpa=gpa, plain=plain, number=batch)

    def commit(self, session: eb.Session) -> bytes:
        """MAC over what was sent."""
        with transfer_faults():
            self.commit_mac = session.commit_mac(self._transfer)
        return self.commit_mac

    def acknowledged(self, established: Established, batches: int, receipt: bytes) -> None:
        """Checks an acknowledgement and opens the window."""
        with transfer_faults():
            established.session.check_mac(eb.MacPurpose.RECEIPT, macs.ack(self.transfer_id, batches), receipt)
        with self._condition:
            self._acked = max(self._acked, batches)
            self._condition.notify_all()
        if self._progress is not None:
            self._progress(min(self.pages, batches * established.limits.max_batch_pages), self.pages)

    def committed(self, session: eb.Session, generation: int, receipt: bytes) -> None:
        """Checks the server's proof that the snapshot is visible."""
        with transfer_faults():
            session.check_mac(
                eb.MacPurpose.RECEIPT,
                macs.committed(self.transfer_id, self.pages, generation, self.commit_mac),
                receipt,
            )
        if self._progress is not None:
            self._progress(self.pages, self.pages)

    def stop(self) -> None:
        """Ends `batches` in whatever thread runs it."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def close(self) -> None:
        """Gives up the bridge's account of the transfer."""
        self.stop()
        if isinstance(self._plain, eb.Source):
            self._plain.close()
        self._transfer.close()
