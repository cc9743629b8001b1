"""AMD's certificate revocation lists: parsed strictly, believed only when the pinned root signed them (57230, CRL)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final

from pagegate.errors import EvidenceError
from pagegate.evidence import der
from pagegate.evidence.der import DerError, Node
from pagegate.evidence.snp.certificate import Certificate, check_pss_sha384, read_extensions, read_time

MAX_CRL_BYTES: Final = 4 * 1024 * 1024
_OID_CERTIFICATE_ISSUER = "2.5.29.29"
_KNOWN_CRITICAL = frozenset({_OID_CERTIFICATE_ISSUER, "2.5.29.28"})


@dataclass(frozen=True, slots=True)
class RevocationList:
    """One parsed CRL."""

    raw: bytes
    tbs: bytes
    issuer: bytes
    """Name as DER."""
    this_update: datetime
    next_update: datetime | None
    revoked: Mapping[int, datetime]
    """Serial number -> since when."""
    signature: bytes

    def lists(self, certificate: Certificate) -> bool:
        """True when the list has this certificate's serial number.

        The list is the root's; a leaf's serial in it is taken to mean that leaf, whoever issued it. AMD's roots
        and issuers do not share serial numbers, so this can only refuse too much, never too little.
        """
        return certificate.serial in self.revoked


def parse_crl(data: bytes) -> RevocationList:
    """Parses one DER CRL. Raises EvidenceError SNP_CRL_MALFORMED."""
    if len(data) > MAX_CRL_BYTES:
        raise _malformed(f"{len(data)} bytes, the limit is {MAX_CRL_BYTES}")
    try:
        return _read(data)
    except (DerError, ValueError, OverflowError) as error:
        raise _malformed(str(error)) from None


def _malformed(why: str) -> EvidenceError:
    return EvidenceError("SNP_CRL_MALFORMED", f"revocation list cannot be parsed: {why}")


def _read(data: bytes) -> RevocationList:
    parts = der.read_whole(data).expect(der.SEQUENCE).children()
    if len(parts) != 3:
        raise DerError(f"{len(parts)} parts, expected 3")
    tbs, algorithm, signature = parts
    check_pss_sha384(algorithm)
    fields = list(tbs.expect(der.SEQUENCE).children())
    if len(fields) < 5 or der.read_integer(fields.pop(0)) != 1:
        raise DerError("not a version 2 list")
    if fields.pop(0).raw != algorithm.raw:
        raise DerError("signature algorithms inside and outside differ")
    issuer, this_update = fields.pop(0), fields.pop(0)
    next_update = fields.pop(0) if fields and fields[0].tag in (der.UTC_TIME, der.GENERALIZED_TIME) else None
    entries = fields.pop(0).children() if fields and fields[0].tag == der.SEQUENCE else ()
    if fields and fields[0].tag == 0xA0:
        _refuse_unknown_critical(fields.pop(0))
    if fields:
        raise DerError("unknown fields at the end")
    return RevocationList(
        raw=data,
        tbs=tbs.raw,
        issuer=issuer.expect(der.SEQUENCE).raw,
        this_update=read_time(this_update),
        next_update=None if next_update is None else read_time(next_update),
        revoked=MappingProxyType(dict(_read_entry(entry) for entry in entries)),
        signature=der.read_bits(signature),
    )


def _refuse_unknown_critical(wrapper: Node) -> None:
    for oid, extension in read_extensions(wrapper).items():
        if extension.critical and oid not in _KNOWN_CRITICAL:
            raise DerError(f"critical extension {oid} is not known")


def _read_entry(entry: Node) -> tuple[int, datetime]:
    serial, since, *extensions = entry.expect(der.SEQUENCE).children()
    if len(extensions) > 1:
        raise DerError("entry has too many parts")
    return der.read_integer(serial), read_time(since)
