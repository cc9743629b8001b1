"""Refusals of the bridge on the page path, as transfer errors with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import enclave_bridge as eb
from pagegate.errors import BridgeError, TransferError

_RESTART_S = 0.2
_ADVICE = {
    "TAMPERED": "memory tampering detected: a page's tag does not verify; nothing of it was written. "
    "Something between the two enclaves changes data; find it before sending again",
    "REPLAYED": "a page record was received before, or is too old to tell; it was not written again",
    "EPOCH": "a page record's key epoch is not accepted now; attest again",
    "HEADER": "a reserved field of a page record is not zero; the sender speaks another version",
    "OUT_OF_RANGE": "a page record's address is outside the region's window",
    "UNALIGNED": "a page record's address is not a multiple of 4096",
    "WRONG_SESSION": "a page record belongs to another session",
    "WRONG_REGION": "a page record belongs to another region",
    "LENGTH": "page records must be whole: 4160 bytes each",
    "MAC": "a control message's MAC does not verify: it was changed on the way, or not made by the attested peer",
    "RING_CLOSED": "the shared memory was closed by the peer, or the peer is gone; the transfer can be resumed",
    "RING_CORRUPT": "the peer wrote an impossible index or length into the shared memory; it is given up",
    "RING_TIMEOUT": "the peer neither read from the shared memory nor wrote to it in time; the transfer can be resumed",
    "SESSION_CLOSED": "the session is closed (too many bad pages, a policy change or its end); attest again",
    "SOURCE_UNREADABLE": "a file was cut while it was sent, or reading it failed; see the kernel log, then send again",
    "TARGET_FULL": "the disk, quota or file size limit of the region's directory is reached: nothing became visible; "
    "make room there and send again",
    "TARGET_IO": "a region's file cannot be written: nothing became visible; see the kernel log of its machine",
    "BRIDGE_DIED": "the process that held this session's keys has died; attest again. Nothing unverified was written",
    "EXHAUSTED": "the session's keys are used up; attest again",
}


@contextmanager
def transfer_faults() -> Iterator[None]:
    """Turns bridge statuses that a peer or the path causes into TransferError, the rest into BridgeError."""
    try:
        yield
    except eb.BridgeStatusError as error:
        advice = _ADVICE.get(error.reason)
        if advice is None:
            raise BridgeError(error.reason, str(error)) from error
        result = getattr(error, "result", None)
        metadata = {}
        if result is not None and result.bad_index is not None:
            metadata["record"] = str(result.bad_index)
        retry_after = _RESTART_S if error.reason == "BRIDGE_DIED" else None
        raise TransferError(error.reason, advice, metadata=metadata, retry_after=retry_after) from error
