"""Makes certificates and revocation lists with the profile of AMD's, under names that say SIMULATED.

Source: VCEK Certificate and KDS Interface Specification (57230), and AMD's own certificates. Two differences are
forced or meant: a leaf has a positive serial number (AMD's have 0, which RFC 5280 forbids and libraries refuse to
write), and no certificate names AMD's CRL server.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from pagegate.evidence.model import KeyKind
from pagegate.platforms.simulated.products import Product, Tcb

ORGANISATION = "pagegate SIMULATED, proves nothing"
ROOT_KEY_BITS = 4096

_CA_LIFE = timedelta(days=25 * 365)
_VCEK_LIFE = timedelta(days=7 * 365)
_VLEK_LIFE = timedelta(days=365)
CRL_LIFE = timedelta(days=365)
_BACKDATED = timedelta(days=1)
"""Room for a verifier whose clock is behind."""

_OID_BASE = "1.3.6.1.4.1.3704.1"
_OID_STRUCT_VERSION = f"{_OID_BASE}.1"
_OID_PRODUCT_NAME = f"{_OID_BASE}.2"
_OID_LEVELS = f"{_OID_BASE}.3"
_OID_HWID = f"{_OID_BASE}.4"
_OID_CSP_ID = f"{_OID_BASE}.5"

_ISSUER_NAMES = {KeyKind.VCEK: "SIMULATED-SEV-", KeyKind.VLEK: "SIMULATED-SEV-VLEK-"}
_ISSUER_SERIALS = {KeyKind.VCEK: 1, KeyKind.VLEK: 0x101}
_LEAF_NAMES = {KeyKind.VCEK: "SEV-VCEK", KeyKind.VLEK: "SEV-VLEK"}


def generate_rsa_key() -> rsa.RSAPrivateKey:
    """A new 4096-bit key; takes seconds."""
    return rsa.generate_private_key(public_exponent=65537, key_size=ROOT_KEY_BITS)


def root_name(product: Product) -> str:
    """Common name of the ARK."""
    return f"SIMULATED-ARK-{product.name}"


def issue_root(product: Product, key: rsa.RSAPrivateKey) -> x509.Certificate:
    """The self-signed ARK."""
    name = _name(root_name(product))
    builder = _certificate(name, name, key.public_key(), product.serial_base, _CA_LIFE)
    builder = builder.add_extension(_key_usage(crl_sign=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return _sign(builder, key)


def issue_intermediate(
    product: Product,
    kind: KeyKind,
    public_key: rsa.RSAPublicKey,
    root: x509.Certificate,
    root_key: rsa.RSAPrivateKey,
) -> x509.Certificate:
    """The ASK (for VCEKs) or the ASVK (for VLEKs), signed by the ARK."""
    name = _name(_ISSUER_NAMES[kind] + product.name)
    serial = product.serial_base + _ISSUER_SERIALS[kind]
    builder = _certificate(name, root.subject, public_key, serial, _CA_LIFE)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    builder = builder.add_extension(authority, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(crl_sign=False), critical=True)
    return _sign(builder, root_key)


def issue_leaf(
    product: Product,
    kind: KeyKind,
    public_key: ec.EllipticCurvePublicKey,
    *,
    tcb: Tcb,
    chip_id: bytes,
    csp_id: str,
    issuer: x509.Certificate,
    issuer_key: rsa.RSAPrivateKey,
) -> x509.Certificate:
    """A VCEK certificate (bound to `chip_id`) or a VLEK certificate (bound to `csp_id`)."""
    life = _VCEK_LIFE if kind is KeyKind.VCEK else _VLEK_LIFE
    serial = secrets.randbits(127) | 1
    builder = _certificate(_name(_LEAF_NAMES[kind]), issuer.subject, public_key, serial, life)
    product_name = product.vcek_product_name if kind is KeyKind.VCEK else product.name
    extensions = [(_OID_STRUCT_VERSION, _der_integer(product.struct_version))]
    extensions.append((_OID_PRODUCT_NAME, _der_ia5_string(product_name)))
    extensions += [(f"{_OID_LEVELS}.{arc}", _der_integer(level)) for arc, level in _levels(product, tcb)]
    if kind is KeyKind.VCEK:
        # Raw bytes, not an OCTET STRING inside the extension's own: so do AMD's certificates.
        extensions.append((_OID_HWID, chip_id[: product.hwid_bytes]))
    else:
        extensions.append((_OID_CSP_ID, _der_ia5_string(csp_id)))
    for oid, value in extensions:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        builder = builder.add_extension(extension, critical=False)
    return _sign(builder, issuer_key)


def issue_crl(
    root: x509.Certificate, root_key: rsa.RSAPrivateKey, revoked_serials: Iterable[int]
) -> x509.CertificateRevocationList:
    """A revocation list of `revoked_serials`, signed by the ARK."""
    now = _now()
    builder = x509.CertificateRevocationListBuilder().issuer_name(root.subject)
    builder = builder.last_update(now - _BACKDATED).next_update(now + CRL_LIFE)
    number = int(now.timestamp())
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    builder = builder.add_extension(authority, critical=False)
    for serial in sorted(revoked_serials):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - _BACKDATED)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(root_key, hashes.SHA384(), rsa_padding=_pss())


def _levels(product: Product, tcb: Tcb) -> list[tuple[int, int]]:
    """Security patch levels as (last arc of the OID, level), in the order of AMD's certificates."""
    if product.has_fmc:
        head = [(9, tcb.fmc), (1, tcb.bootloader), (2, tcb.tee), (3, tcb.snp)]
        return [*head, (5, 0), (6, 0), (7, 0), (8, tcb.microcode)]
    return [
        (1, tcb.bootloader),
        (2, tcb.tee),
        *((reserved, 0) for reserved in (4, 5, 6, 7)),
        (3, tcb.snp),
        (8, tcb.microcode),
    ]


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "SIMULATED"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    serial: int,
    life: timedelta,
) -> x509.CertificateBuilder:
    not_before = _now() - _BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_before + life)
    )


def _sign(builder: x509.CertificateBuilder, key: rsa.RSAPrivateKey) -> x509.Certificate:
    return builder.sign(key, hashes.SHA384(), rsa_padding=_pss())


def _pss() -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=hashes.SHA384.digest_size)


def _key_usage(*, crl_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _der_integer(value: int) -> bytes:
    """DER INTEGER of a value from 0 to 255."""
    content = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes((0x02, len(content))) + content


def _der_ia5_string(text: str) -> bytes:
    """DER IA5String of at most 127 characters."""
    content = text.encode("ascii")
    return bytes((0x16, len(content))) + content
