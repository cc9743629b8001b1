"""What an AMD certificate says, parsed and not yet believed (AMD 57230, VCEK certificate and KDS interface)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pagegate.errors import EndorsementError
from pagegate.evidence import der

MAX_CERTIFICATE = 16 * 1024
"""Bytes; AMD's are below 2 KiB."""

_AMD = bytes.fromhex("2b060104019c7801")  # 1.3.6.1.4.1.3704.1
_SPL = {1: "bl", 2: "tee", 3: "snp", 4: "spl4", 5: "spl5", 6: "spl6", 7: "spl7", 8: "ucode", 9: "fmc"}
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s+([A-Za-z0-9+/=\s]+?)-----END \1-----")


def invalid(what: str) -> EndorsementError:
    """The error for content that cannot be used."""
    return EndorsementError("ENDORSEMENT_CONTENT_INVALID", what)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The facts of one X.509 certificate that choosing and checking endorsements needs."""

    der: bytes
    tbs: bytes
    """The signed part."""
    signature: bytes
    spki: bytes
    """SubjectPublicKeyInfo, DER."""
    subject: str
    """Common name, made safe to print; likewise `issuer`."""
    issuer: str
    subject_der: bytes
    issuer_der: bytes
    not_before: datetime
    not_after: datetime
    spl: Mapping[str, int]
    """Security patch levels by part: bl, tee, snp, ucode, fmc, spl4..spl7; empty on a CA."""
    hwid: bytes | None
    """Chip id of a VCEK: 64 bytes, 8 on Turin."""
    csp_id: str | None
    """Cloud provider of a VLEK."""

    @property
    def self_issued(self) -> bool:
        """Subject and issuer are the same name: a root."""
        return self.subject_der == self.issuer_der


def parse_certificate(data: bytes) -> Certificate:
    """Parses one DER certificate. Raises EndorsementError ENDORSEMENT_CONTENT_INVALID."""
    if len(data) > MAX_CERTIFICATE:
        raise invalid(f"a certificate of {len(data)} bytes; the limit is {MAX_CERTIFICATE}")
    try:
        return _certificate(data)
    except (der.DerError, ValueError) as error:
        raise invalid(f"not a DER certificate: {error}") from error


def split_pem(data: bytes) -> list[tuple[str, bytes]]:
    """The (label, DER) pairs of a PEM bundle; empty when `data` holds no PEM."""
    blocks = []
    for label, text in _PEM.findall(data):
        try:
            blocks.append((label.decode(), base64.b64decode(b"".join(text.split()), validate=True)))
        except binascii.Error as error:
            raise invalid(f"bad base64 in a PEM block {label.decode()}: {error}") from error
    return blocks


def _certificate(data: bytes) -> Certificate:
    tbs, _algorithm, signature = _exactly(der.read_whole(data).expect(der.SEQUENCE), 3)
    fields = tbs.expect(der.SEQUENCE).children()
    if len(fields) < 7 or fields[0].raw != b"\xa0\x03\x02\x01\x02":
        raise der.DerError("not a version 3 certificate")
    fields[1].expect(der.INTEGER)
    issuer, validity, subject, spki = (f.expect(der.SEQUENCE) for f in fields[3:7])
    not_before, not_after = _exactly(validity, 2)
    if len(signature.expect(der.BIT_STRING).content) < 2 or signature.content[0] != 0:
        raise der.DerError("the signature is empty or has unused bits")
    spl, hwid, csp_id = _amd_extensions(fields[7:])
    return Certificate(
        der=data,
        tbs=tbs.raw,
        signature=signature.content[1:],
        spki=spki.raw,
        subject=_common_name(subject),
        issuer=_common_name(issuer),
        subject_der=subject.raw,
        issuer_der=issuer.raw,
        not_before=_time(not_before),
        not_after=_time(not_after),
        spl=spl,
        hwid=hwid,
        csp_id=csp_id,
    )


def _exactly(node: der.Node, count: int) -> tuple[der.Node, ...]:
    children = node.children()
    if len(children) != count:
        raise der.DerError(f"{len(children)} elements, expected {count}")
    return children


def _common_name(name: der.Node) -> str:
    for rdn in name.children():
        for attribute in rdn.expect(der.SET).children():
            kind, value = _exactly(attribute, 2)
            if kind.raw == b"\x06\x03\x55\x04\x03":
                return printable(value.content)
    return ""


def printable(text: bytes) -> str:
    """ASCII fit for a terminal: whatever else a certificate says becomes '?'."""
    return "".join(chr(b) if 0x20 <= b < 0x7F else "?" for b in text[:128])


def _time(node: der.Node) -> datetime:
    text = node.expect(der.UTC_TIME, der.GENERALIZED_TIME).content.decode("ascii")
    if node.tag == der.UTC_TIME:
        if not re.fullmatch(r"\d{12}Z", text):
            raise der.DerError(f"time {text!r}")
        text = ("19" if text >= "50" else "20") + text  # RFC 5280, 4.1.2.5.1
    elif not re.fullmatch(r"\d{14}Z", text):
        raise der.DerError(f"time {text!r}")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _amd_extensions(optional: tuple[der.Node, ...]) -> tuple[dict[str, int], bytes | None, str | None]:
    spl: dict[str, int] = {}
    hwid: bytes | None = None
    csp_id: str | None = None
    seen: set[bytes] = set()
    for extension in (e for node in optional if node.tag == 0xA3 for e in _exactly(node, 1)[0].children()):
        parts = extension.expect(der.SEQUENCE).children()
        if len(parts) not in (2, 3):
            raise der.DerError(f"extension of {len(parts)} elements")
        oid = parts[0].expect(der.OID).content
        value = parts[-1].expect(der.OCTET_STRING).content
        if oid in seen:
            raise der.DerError(f"extension {oid.hex()} occurs twice")
        seen.add(oid)
        if not oid.startswith(_AMD):
            continue
        match tuple(oid[len(_AMD) :]):
            case (3, part) if part in _SPL:
                spl[_SPL[part]] = der.read_small_integer(der.read_whole(value))
            case (4,):
                hwid = _hwid(value)
            case (5,):
                csp_id = printable(der.read_whole(value).expect(der.IA5_STRING, der.UTF8_STRING).content)
    return spl, hwid, csp_id


def _hwid(value: bytes) -> bytes:
    """Raw in the certificates AMD issues; some encoders wrap it in an OCTET STRING."""
    if len(value) in (10, 66) and value[0] == der.OCTET_STRING:
        value = der.read_whole(value).content
    if len(value) not in (8, 64):
        raise der.DerError(f"HWID of {len(value)} bytes, expected 8 or 64")
    return value
