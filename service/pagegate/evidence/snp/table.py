"""The certificate table of an extended report: GUID, offset, length, then the data (56421, GHCB, SNP Extended
Guest Request; also the auxblob of configfs-tsm)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from uuid import UUID

from pagegate.errors import EvidenceError

ATTACHMENT: Final = "certificate_table"
"""Key of `Evidence.attachments` under which a platform hands over the table as it got it."""
MAX_TABLE_BYTES: Final = 128 * 1024
_ENTRY_BYTES = 24
_MAX_ENTRIES = 32

GUIDS: Final[Mapping[str, UUID]] = MappingProxyType(
    {
        "ark": UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"),
        "ask": UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"),
        "vcek": UUID("63da758d-e664-4564-adc5-f4b93be8accd"),
        "vlek": UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"),
        "crl": UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"),
    }
)


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One blob of the table. Whoever wrote the table is not trusted; nor is the GUID."""

    guid: UUID
    data: bytes

    @property
    def name(self) -> str:
        """Our name of the GUID, empty when not known."""
        return next((name for name, guid in GUIDS.items() if guid == self.guid), "")


def parse_table(data: bytes) -> tuple[TableEntry, ...]:
    """Takes a certificate table apart. Raises EvidenceError SNP_TABLE_MALFORMED.

    A table of zeros or of no bytes is empty: the host has no certificates to give.
    """
    if len(data) > MAX_TABLE_BYTES:
        raise _malformed(f"{len(data)} bytes, the limit is {MAX_TABLE_BYTES}")
    entries: list[TableEntry] = []
    position = 0
    headers: list[tuple[UUID, int, int]] = []
    while data:
        header = data[position : position + _ENTRY_BYTES]
        if len(header) != _ENTRY_BYTES:
            raise _malformed("no zero entry ends the list of entries")
        position += _ENTRY_BYTES
        if not any(header):
            break
        if len(headers) == _MAX_ENTRIES:
            raise _malformed(f"more than {_MAX_ENTRIES} entries")
        headers.append(
            (UUID(bytes=header[:16]), int.from_bytes(header[16:20], "little"), int.from_bytes(header[20:24], "little"))
        )
    seen: set[UUID] = set()
    for guid, offset, length in headers:
        if guid in seen:
            raise _malformed(f"{guid} is there twice")
        seen.add(guid)
        if offset < position or offset > len(data) or length > len(data) - offset:
            raise _malformed(f"{guid} at offset {offset} with {length} bytes does not fit {position} to {len(data)}")
        entries.append(TableEntry(guid, data[offset : offset + length]))
    return tuple(entries)


def build_table(blobs: Mapping[str, bytes]) -> bytes:
    """The table of these blobs by the names of `GUIDS`; the exact inverse of `parse_table`."""
    offset = _ENTRY_BYTES * (len(blobs) + 1)
    headers = b""
    for name, blob in blobs.items():
        headers += GUIDS[name].bytes + offset.to_bytes(4, "little") + len(blob).to_bytes(4, "little")
        offset += len(blob)
    return headers + bytes(_ENTRY_BYTES) + b"".join(blobs.values())


def _malformed(why: str) -> EvidenceError:
    return EvidenceError("SNP_TABLE_MALFORMED", f"certificate table cannot be parsed: {why}")
