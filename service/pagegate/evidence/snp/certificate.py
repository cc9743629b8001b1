"""X.509 certificates as AMD makes them, and the extensions of VCEK and VLEK (57230, certificate tables).

A strict parser of exactly this profile: RSASSA-PSS with SHA-384 signatures, each field checked for size and
encoding, each extension at most once.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from pagegate.errors import EvidenceError
from pagegate.evidence import der
from pagegate.evidence.der import DerError, Node
from pagegate.evidence.snp.product import CHIP_ID_BYTES, TURIN_CHIP_ID_BYTES

AMD_ARC: Final = "1.3.6.1.4.1.3704.1."
OID_STRUCT_VERSION: Final = AMD_ARC + "1"
OID_PRODUCT_NAME: Final = AMD_ARC + "2"
OID_SPL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bootloader": AMD_ARC + "3.1",
        "tee": AMD_ARC + "3.2",
        "snp": AMD_ARC + "3.3",
        "spl4": AMD_ARC + "3.4",
        "spl5": AMD_ARC + "3.5",
        "spl6": AMD_ARC + "3.6",
        "spl7": AMD_ARC + "3.7",
        "microcode": AMD_ARC + "3.8",
        "fmc": AMD_ARC + "3.9",
    }
)
"""Part of the TCB -> OID of its security patch level; the names are those of `tcb.layout`."""
OID_HWID: Final = AMD_ARC + "4"
OID_CSP_ID: Final = AMD_ARC + "5"
OID_BASIC_CONSTRAINTS: Final = "2.5.29.19"
OID_KEY_USAGE: Final = "2.5.29.15"
CN_VCEK: Final = "SEV-VCEK"
CN_VLEK: Final = "SEV-VLEK"

MAX_CERTIFICATE_BYTES: Final = 16 * 1024
MAX_CERTIFICATES: Final = 16
_OID_COMMON_NAME = "2.5.4.3"
_OID_PSS = "1.2.840.113549.1.1.10"
_OID_MGF1 = "1.2.840.113549.1.1.8"
_OID_SHA384 = "2.16.840.1.101.3.4.2.2"
_PSS_SALT_BYTES = 48
_MAX_EXTENSIONS = 32
_MAX_TEXT = 256
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Extension:
    """One extension: its value is the content of the OCTET STRING."""

    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class Certificate:
    """One parsed certificate. Parsing proves nothing: `chain` checks signatures, names and dates."""

    raw: bytes
    tbs: bytes
    """The bytes under the signature."""
    serial: int
    issuer: bytes
    """Name as DER; names are compared byte for byte."""
    subject: bytes
    issuer_name: str
    """Common name."""
    subject_name: str
    not_before: datetime
    not_after: datetime
    public_key: RSAPublicKey | EllipticCurvePublicKey
    extensions: Mapping[str, Extension]
    signature: bytes

    @property
    def is_authority(self) -> bool:
        """True when basic constraints say CA."""
        extension = self.extensions.get(OID_BASIC_CONSTRAINTS)
        return extension is not None and _read_basic_constraints(extension.value)[0]

    @property
    def path_length(self) -> int | None:
        """How many authorities may follow this one; None when not limited."""
        extension = self.extensions.get(OID_BASIC_CONSTRAINTS)
        return None if extension is None else _read_basic_constraints(extension.value)[1]

    def may(self, usage: KeyUsage) -> bool:
        """True when the key usage extension allows it, or there is none."""
        extension = self.extensions.get(OID_KEY_USAGE)
        return extension is None or usage in _read_key_usage(extension.value)


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """Bit number of a key usage (RFC 5280, 4.2.1.3)."""

    bit: int


SIGN_CERTIFICATES: Final = KeyUsage(5)
SIGN_CRLS: Final = KeyUsage(6)


@dataclass(frozen=True, slots=True)
class AmdExtensions:
    """What AMD certifies of a chip or a provider in a VCEK or VLEK."""

    struct_version: int | None
    product_name: str | None
    spl: Mapping[str, int]
    """TCB part -> security patch level, for the parts the certificate has."""
    hwid: bytes | None
    """8 or 64 bytes; None in a VLEK."""
    csp_id: str | None
    """Cloud provider; None in a VCEK."""
    unknown: tuple[str, ...]
    """OIDs of AMD's arc that have no meaning known to us."""


def parse_certificate(data: bytes) -> Certificate:
    """Parses one DER certificate. Raises EvidenceError SNP_CERT_MALFORMED."""
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise _malformed(f"{len(data)} bytes, the limit is {MAX_CERTIFICATE_BYTES}")
    try:
        return _read_certificate(data)
    except (DerError, UnsupportedAlgorithm, ValueError, OverflowError) as error:
        raise _malformed(str(error)) from None


def parse_amd_extensions(certificate: Certificate) -> AmdExtensions:
    """Reads AMD's extensions. Raises EvidenceError SNP_CERT_MALFORMED when one is not as 57230 says."""
    try:
        return _read_amd_extensions(certificate.extensions)
    except DerError as error:
        raise _malformed(f"AMD extension: {error}") from None


def split_certificates(blobs: Iterable[bytes]) -> tuple[bytes, ...]:
    """DER certificates of blobs that are each DER or PEM (several in one), without repetitions.

    Raises EvidenceError SNP_CERT_MALFORMED for bad PEM and for too many certificates.
    """
    found: dict[bytes, None] = {}
    for blob in blobs:
        if len(blob) > MAX_CERTIFICATES * MAX_CERTIFICATE_BYTES:
            raise _malformed(f"{len(blob)} bytes of certificates")
        found.update(dict.fromkeys(_from_pem(blob) if blob.lstrip().startswith(b"-----BEGIN") else (blob,)))
        if len(found) > MAX_CERTIFICATES:
            raise _malformed(f"more than {MAX_CERTIFICATES} certificates")
    return tuple(found)


def _from_pem(blob: bytes) -> Iterable[bytes]:
    bodies = _PEM.findall(blob)
    if not bodies:
        raise _malformed("PEM without a certificate")
    for body in bodies:
        try:
            yield b64decode(b"".join(body.split()), validate=True)
        except ValueError:
            raise _malformed("PEM is not base64") from None


def _malformed(why: str) -> EvidenceError:
    return EvidenceError("SNP_CERT_MALFORMED", f"certificate cannot be parsed: {why}")


def _take(nodes: tuple[Node, ...], count: int, what: str) -> tuple[Node, ...]:
    if len(nodes) != count:
        raise DerError(f"{what} has {len(nodes)} parts, expected {count}")
    return nodes


def _read_certificate(data: bytes) -> Certificate:
    tbs, algorithm, signature = _take(der.read_whole(data).expect(der.SEQUENCE).children(), 3, "certificate")
    version, serial, inner, issuer, validity, subject, key, extensions = _take(
        tbs.expect(der.SEQUENCE).children(), 8, "tbsCertificate"
    )
    if version.tag != 0xA0 or der.read_integer(der.read_whole(version.content)) != 2:
        raise DerError("not an X.509 version 3 certificate")
    if inner.raw != algorithm.raw:
        raise DerError("signature algorithms inside and outside differ")
    check_pss_sha384(algorithm)
    not_before, not_after = _take(validity.expect(der.SEQUENCE).children(), 2, "validity")
    public_key = load_der_public_key(key.raw)
    if not isinstance(public_key, RSAPublicKey | EllipticCurvePublicKey):
        raise DerError("public key is neither RSA nor EC")
    if extensions.tag != 0xA3:
        raise DerError("no extensions")
    return Certificate(
        raw=data,
        tbs=tbs.raw,
        serial=der.read_integer(serial),
        issuer=issuer.raw,
        subject=subject.raw,
        issuer_name=_common_name(issuer),
        subject_name=_common_name(subject),
        not_before=read_time(not_before),
        not_after=read_time(not_after),
        public_key=public_key,
        extensions=read_extensions(extensions),
        signature=der.read_bits(signature),
    )


def check_pss_sha384(algorithm: Node) -> None:
    """Demands RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes (RFC 4055). Raises DerError."""
    oid, parameters = _take(algorithm.expect(der.SEQUENCE).children(), 2, "signature algorithm")
    if der.read_oid(oid) != _OID_PSS:
        raise DerError(f"signature algorithm {der.read_oid(oid)}, expected RSASSA-PSS")
    fields = {node.tag: der.read_whole(node.content) for node in parameters.expect(der.SEQUENCE).children()}
    if not {0xA0, 0xA1, 0xA2} <= fields.keys() <= {0xA0, 0xA1, 0xA2, 0xA3}:
        raise DerError("RSASSA-PSS parameters do not name hash, mask and salt")
    mgf, mgf_hash = _take(fields[0xA1].expect(der.SEQUENCE).children(), 2, "mask generation")
    trailer = fields.get(0xA3)
    if (
        _hash_oid(fields[0xA0]) != _OID_SHA384
        or der.read_oid(mgf) != _OID_MGF1
        or _hash_oid(mgf_hash) != _OID_SHA384
        or der.read_integer(fields[0xA2]) != _PSS_SALT_BYTES
        or (trailer is not None and der.read_integer(trailer) != 1)
    ):
        raise DerError("RSASSA-PSS parameters are not SHA-384, MGF1 with SHA-384, salt of 48 bytes")


def _hash_oid(algorithm: Node) -> str:
    oid, *parameters = algorithm.expect(der.SEQUENCE).children() or (algorithm,)
    if len(parameters) > 1 or any(node.raw != b"\x05\x00" for node in parameters):
        raise DerError("hash algorithm has parameters")
    return der.read_oid(oid)


def _common_name(name: Node) -> str:
    found = []
    for relative in name.expect(der.SEQUENCE).children():
        for attribute in relative.expect(der.SET).children():
            oid, value = _take(attribute.expect(der.SEQUENCE).children(), 2, "name attribute")
            if der.read_oid(oid) == _OID_COMMON_NAME:
                found.append(_bounded_text(value))
    if len(found) != 1:
        raise DerError(f"name has {len(found)} common names, expected 1")
    return found[0]


def _bounded_text(node: Node) -> str:
    text = der.read_text(node)
    if not 1 <= len(text) <= _MAX_TEXT or not text.isprintable():
        raise DerError(f"text of {len(text)} characters is empty, too long or not printable")
    return text


def read_time(node: Node) -> datetime:
    """UTCTime or GeneralizedTime in the form of RFC 5280. Raises DerError."""
    text = node.expect(der.UTC_TIME, der.GENERALIZED_TIME).content
    digits = 12 if node.tag == der.UTC_TIME else 14
    if len(text) != digits + 1 or not text[:digits].isdigit() or text[digits:] != b"Z":
        raise DerError("time is not in the form of RFC 5280")
    year = text[: digits - 10].decode()
    if node.tag == der.UTC_TIME:
        year = ("19" if int(year) >= 50 else "20") + year
    try:
        return datetime.strptime(year + text[digits - 10 : digits].decode(), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise DerError("time is not a date") from None


def read_extensions(wrapper: Node) -> Mapping[str, Extension]:
    """Extensions by OID, each at most once. Raises DerError."""
    nodes = der.read_whole(wrapper.content).expect(der.SEQUENCE).children()
    if len(nodes) > _MAX_EXTENSIONS:
        raise DerError(f"{len(nodes)} extensions, the limit is {_MAX_EXTENSIONS}")
    found: dict[str, Extension] = {}
    for node in nodes:
        oid, *rest = node.expect(der.SEQUENCE).children() or (node,)
        name = der.read_oid(oid)
        if name in found:
            raise DerError(f"extension {name} is there twice")
        critical = len(rest) == 2 and der.read_boolean(rest[0])
        if not 1 <= len(rest) <= 2:
            raise DerError(f"extension {name} has {len(rest) + 1} parts")
        value = rest[-1].expect(der.OCTET_STRING).content
        if name == OID_BASIC_CONSTRAINTS:
            _read_basic_constraints(value)
        elif name == OID_KEY_USAGE:
            _read_key_usage(value)
        found[name] = Extension(critical, value)
    return MappingProxyType(found)


def _read_basic_constraints(value: bytes) -> tuple[bool, int | None]:
    nodes = der.read_whole(value).expect(der.SEQUENCE).children()
    authority = bool(nodes) and nodes[0].tag == der.BOOLEAN and der.read_boolean(nodes[0])
    rest = nodes[1:] if nodes and nodes[0].tag == der.BOOLEAN else nodes
    if len(rest) > 1:
        raise DerError("basic constraints have too many parts")
    return authority, der.read_integer(rest[0]) if rest else None


def _read_key_usage(value: bytes) -> frozenset[KeyUsage]:
    content = der.read_whole(value).expect(der.BIT_STRING).content
    if not 2 <= len(content) <= 3 or content[0] > 7:
        raise DerError("key usage is not a short bit string")
    bits = int.from_bytes(content[1:], "big")
    width = 8 * (len(content) - 1)
    return frozenset(KeyUsage(bit) for bit in range(width) if bits >> (width - 1 - bit) & 1)


def _read_amd_extensions(extensions: Mapping[str, Extension]) -> AmdExtensions:
    values = {oid: one.value for oid, one in extensions.items() if oid.startswith(AMD_ARC)}
    struct_version = values.pop(OID_STRUCT_VERSION, None)
    product_name = values.pop(OID_PRODUCT_NAME, None)
    hwid = values.pop(OID_HWID, None)
    csp_id = values.pop(OID_CSP_ID, None)
    levels = {name: values.pop(oid) for name, oid in OID_SPL.items() if oid in values}
    return AmdExtensions(
        struct_version=None if struct_version is None else _small_integer(struct_version),
        product_name=None if product_name is None else _bounded_text(der.read_whole(product_name)),
        spl=MappingProxyType({name: _small_integer(value) for name, value in levels.items()}),
        hwid=None if hwid is None else _read_hwid(hwid),
        csp_id=None if csp_id is None else _bounded_text(der.read_whole(csp_id)),
        unknown=tuple(values),
    )


def _small_integer(value: bytes) -> int:
    number = der.read_integer(der.read_whole(value))
    if not 0 <= number <= 255:
        raise DerError(f"security patch level {number} is not 0 to 255")
    return number


def _read_hwid(value: bytes) -> bytes:
    """The chip id: raw bytes, or the same in an OCTET STRING; the length tells which."""
    sizes = (CHIP_ID_BYTES, TURIN_CHIP_ID_BYTES)
    if len(value) in sizes:
        return value
    inner = der.read_whole(value).expect(der.OCTET_STRING).content
    if len(inner) not in sizes:
        raise DerError(f"hwID of {len(inner)} bytes, expected 8 or 64")
    return inner
