"""What each control message's MAC covers: a label, 0x00, then fixed-width little-endian fields (docs/protocol.md)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

TRANSFER_ID_SIZE = 16
NONCE_SIZE = 16


def begin(transfer_id: bytes, region: int, expected_pages: int, mode: int) -> bytes:
    """MAC input of TransferBegin."""
    return b"begin\0" + transfer_id + struct.pack("<IQI", region, expected_pages, mode)


def abort(transfer_id: bytes) -> bytes:
    """MAC input of TransferAbort."""
    return b"abort\0" + transfer_id


def get(transfer_id: bytes, region: int, first_gpa: int, pages: int) -> bytes:
    """MAC input of GetRegionRequest."""
    return b"get\0" + transfer_id + struct.pack("<IQQ", region, first_gpa, pages)


def info(transfer_id: bytes, base_gpa: int, pages: int, generation: int) -> bytes:
    """MAC input of RegionInfo."""
    return b"info\0" + transfer_id + struct.pack("<QQQ", base_gpa, pages, generation)


def ack(transfer_id: bytes, batches: int) -> bytes:
    """MAC input of TransferAck."""
    return b"ack\0" + transfer_id + struct.pack("<Q", batches)


def committed(transfer_id: bytes, pages: int, generation: int, commit_mac: bytes) -> bytes:
    """MAC input of TransferCommitted."""
    return b"committed\0" + transfer_id + struct.pack("<QQ", pages, generation) + commit_mac


def page(tag: bytes, generation: int) -> bytes:
    """MAC input of TransferPageResponse."""
    return b"page\0" + tag + struct.pack("<Q", generation)


def verify(nonce: bytes, region: int, first_gpa: int, pages: int) -> bytes:
    """MAC input of VerifyRegionRequest."""
    return b"verify\0" + nonce + struct.pack("<IQQ", region, first_gpa, pages)


def verified(nonce: bytes, generation: int, pages: int, bad_pages: int, bad: Sequence[tuple[int, int]]) -> bytes:
    """MAC input of VerifyRegionResponse; `bad` are pairs of first address and pages."""
    head = b"verified\0" + nonce + struct.pack("<QQQI", generation, pages, bad_pages, len(bad))
    return head + b"".join(struct.pack("<QQ", gpa, count) for gpa, count in bad)


def ring(nonce: bytes) -> bytes:
    """MAC input of OpenRingRequest."""
    return b"ring\0" + nonce


def ring_offer(nonce: bytes, token: bytes, capacity: int, socket: str) -> bytes:
    """MAC input of OpenRingResponse."""
    return b"ring offer\0" + nonce + token + struct.pack("<Q", capacity) + socket.encode()
