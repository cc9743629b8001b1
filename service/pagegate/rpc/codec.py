"""The TransferPages messages on the wire, without copying the pages.

The same bytes as the generated classes make (a test holds the two together); only the one large
field of a batch is written and read by hand, so that a megabyte of records is not copied into a
protobuf object and out again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError

from enclave_bridge import ChannelRecords
from pagegate.v1 import transfer_pb2 as pb

_Carrier = TypeVar("_Carrier", pb.TransferPagesRequest, pb.GetRegionResponse)
_BATCH_FIELD = 2 << 3 | 2  # `batch` is field 2 of TransferPagesRequest and of GetRegionResponse
_RECORDS_FIELD = 1 << 3 | 2
_NUMBER_FIELD = 2 << 3


@dataclass(frozen=True, slots=True)
class Batch:
    """A PageBatch whose records are a view of the message that carried it."""

    records: memoryview | bytes
    number: int


@dataclass(frozen=True, slots=True)
class RingBatch:
    """A batch whose records are still in shared memory."""

    records: ChannelRecords
    number: int


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise DecodeError("truncated or oversized varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def encode_batch(batch: Batch) -> bytes:
    """Serializes the message whose `batch` is this one."""
    number = bytes([_NUMBER_FIELD]) + _varint(batch.number) if batch.number else b""
    size = len(batch.records)
    records = bytes([_RECORDS_FIELD]) + _varint(size)
    inner = len(records) + size + len(number)
    return b"".join((bytes([_BATCH_FIELD]), _varint(inner), records, batch.records, number))


def decode_batch(data: bytes) -> Batch | None:
    """Reads a message that is a batch in the form `encode_batch` writes; None for anything else."""
    if not data or data[0] != _BATCH_FIELD:
        return None
    view = memoryview(data)
    try:
        inner, at = _read_varint(view, 1)
        if at + inner != len(view) or inner == 0 or view[at] != _RECORDS_FIELD:
            return None
        size, at = _read_varint(view, at + 1)
        end = at + size
        if end > len(view):
            return None
        number = 0
        if end < len(view):
            if view[end] != _NUMBER_FIELD:
                return None
            number, tail = _read_varint(view, end + 1)
            if tail != len(view) or number >= 1 << 64:
                return None
    except DecodeError:
        return None
    return Batch(view[at:end], number)


def encode(message: pb.TransferPagesRequest | pb.GetRegionResponse | Batch) -> bytes:
    """Serializes what carries pages: a client's side of TransferPages, a server's of GetRegion."""
    return encode_batch(message) if isinstance(message, Batch) else message.SerializeToString()


def decode_request(data: bytes) -> pb.TransferPagesRequest | Batch:
    """Parses what a client sent on TransferPages. Raises DecodeError."""
    return _decode(data, pb.TransferPagesRequest)


def decode_region(data: bytes) -> pb.GetRegionResponse | Batch:
    """Parses what a server sent on GetRegion. Raises DecodeError."""
    return _decode(data, pb.GetRegionResponse)


def _decode(data: bytes, kind: type[_Carrier]) -> _Carrier | Batch:
    batch = decode_batch(data)
    if batch is not None:
        return batch
    message = kind.FromString(data)
    if message.WhichOneof("step") == "batch":
        # A batch in another field order than ours: legal, only not free of a copy.
        return Batch(message.batch.records, message.batch.number)
    return message
