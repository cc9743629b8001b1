"""The certificates a host sends along with an extended report.

Source: GHCB specification (56421), SNP Extended Guest Request: entries of GUID, offset and length (24 bytes), a zero
entry, then the data. The host writes it and is not trusted; verifiers check each certificate.
"""

from __future__ import annotations

import ssl
import struct
from uuid import UUID

from pagegate.errors import PlatformError

_ENTRY = struct.Struct("<16sII")
_MAX_ENTRIES = 32
_MAX_CERTIFICATE_BYTES = 16 * 1024
_CERTIFICATES = {
    UUID("63da758d-e664-4564-adc5-f4b93be8accd"): "VCEK",
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): "VLEK",
    UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): "ASK",
    UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): "ARK",
}


def certificates_in(table: bytes) -> tuple[bytes, ...]:
    """The VCEK or VLEK, ASK and ARK of a table, DER, in its order; other entries are passed over.

    A table of zeros or of no bytes has none. Raises PlatformError CERTIFICATE_TABLE_MALFORMED.
    """
    entries: list[tuple[UUID, int, int]] = []
    start = 0
    while table:
        if len(table) - start < _ENTRY.size or len(entries) > _MAX_ENTRIES:
            raise _malformed(f"no zero entry within {len(table)} bytes and {_MAX_ENTRIES} entries")
        guid, offset, length = _ENTRY.unpack_from(table, start)
        start += _ENTRY.size
        if not any(guid):
            break
        entries.append((UUID(bytes=guid), offset, length))
    return tuple(
        _der(_CERTIFICATES[guid], _slice(table, start, guid, offset, length))
        for guid, offset, length in entries
        if guid in _CERTIFICATES
    )


def _slice(table: bytes, start: int, guid: UUID, offset: int, length: int) -> bytes:
    if offset < start or offset + length > len(table) or not 0 < length <= _MAX_CERTIFICATE_BYTES:
        raise _malformed(f"entry {guid} has {length} bytes at {offset}; the data spans {start} to {len(table)}")
    return table[offset : offset + length]


def _der(name: str, blob: bytes) -> bytes:
    if not blob.startswith(b"-----BEGIN"):
        return blob
    try:
        return ssl.PEM_cert_to_DER_cert(blob.decode("ascii"))
    except ValueError as error:
        raise _malformed(f"its {name} is no certificate in PEM: {error}") from None


def _malformed(why: str) -> PlatformError:
    return PlatformError(
        "CERTIFICATE_TABLE_MALFORMED",
        f"the host's certificate table cannot be read: {why}; correct it on the host, or attest without it "
        "(certificates off: the verifier then finds them elsewhere)",
    )
