"""The certificate chain of a report, and everything about it that does not depend on the report or the time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA384

from pagegate.evidence.checks import Check, Finding, check
from pagegate.evidence.model import KeyKind
from pagegate.evidence.snp.anchors import TrustAnchor
from pagegate.evidence.snp.certificate import (
    CN_VCEK,
    CN_VLEK,
    OID_BASIC_CONSTRAINTS,
    OID_KEY_USAGE,
    SIGN_CERTIFICATES,
    AmdExtensions,
    Certificate,
)
from pagegate.evidence.snp.product import product_of_name
from pagegate.evidence.snp.tcb import layout

SIMULATED_PREFIX: Final = "SIMULATED-"
"""The authorities of a simulated platform have common names that begin so; the leaf has AMD's."""
_RSA_BITS: Final = 4096
_RSA_EXPONENT: Final = 65537
_PSS_PADDING: Final = PSS(MGF1(SHA384()), 48)
_LEAF_NAMES = {KeyKind.VCEK: CN_VCEK, KeyKind.VLEK: CN_VLEK}
_ISSUER_PREFIXES = {KeyKind.VCEK: "SEV-", KeyKind.VLEK: "SEV-VLEK-"}
_PROFILE = "57230, certificate profiles"


@dataclass(frozen=True, slots=True)
class Chain:
    """Leaf, issuer (ASK or ASVK) and root (ARK) as far as they were found, and the anchor the root is pinned by."""

    kind: KeyKind
    leaf: Certificate
    extensions: AmdExtensions
    issuer: Certificate
    root: Certificate
    anchor: TrustAnchor | None

    @property
    def links(self) -> tuple[tuple[str, Certificate, Certificate], ...]:
        """(what, certificate, by whom) from the root down."""
        issuer_name = "ASK" if self.kind is KeyKind.VCEK else "ASVK"
        return (
            ("ARK", self.root, self.root),
            (issuer_name, self.issuer, self.root),
            (self.kind.upper(), self.leaf, self.issuer),
        )


def signed_by(tbs: bytes, signature: bytes, signer: Certificate) -> bool:
    """True when `signer`'s RSA key made this RSA-PSS-SHA384 signature."""
    if not isinstance(signer.public_key, RSAPublicKey):
        return False
    try:
        signer.public_key.verify(signature, tbs, _PSS_PADDING, SHA384())
    except InvalidSignature:
        return False
    return True


@check("SNP_ROOT_UNTRUSTED", _PROFILE)
def root_is_pinned(chain: Chain) -> Iterator[Finding]:
    """The chain ends in a root whose SHA-256 is pinned."""
    if chain.anchor is None:
        yield Finding(
            "ARK",
            "a pinned root certificate",
            f"{chain.root.subject_name}, not pinned",
            "whoever holds that root can make any report; for a simulated platform name its root explicitly",
        )


@check("SNP_CHAIN_SIGNATURE", _PROFILE)
def links_are_signed(chain: Chain) -> Iterator[Finding]:
    """Each certificate is signed by the one above with RSA-PSS and SHA-384, the root by itself."""
    for what, certificate, signer in chain.links:
        if not signed_by(certificate.tbs, certificate.signature, signer):
            yield Finding(
                what, f"signed by {signer.subject_name}", "signature does not verify", "fetch the chain again"
            )


@check("SNP_CHAIN_NAME", _PROFILE)
def names_match(chain: Chain) -> Iterator[Finding]:
    """Issuer and subject names chain, and each common name is the one AMD gives for product and key kind."""
    for what, certificate, signer in chain.links:
        if certificate.issuer != signer.subject:
            yield Finding(f"{what} issuer", signer.subject_name, certificate.issuer_name)
    if chain.anchor is None:
        return
    product, prefix = chain.anchor.product, SIMULATED_PREFIX if chain.anchor.simulated else ""
    expected = (f"{prefix}ARK-{product}", f"{prefix}{_ISSUER_PREFIXES[chain.kind]}{product}", _LEAF_NAMES[chain.kind])
    for (what, certificate, _), name in zip(chain.links, expected, strict=True):
        if certificate.subject_name != name:
            yield Finding(f"{what} common name", name, certificate.subject_name)


@check("SNP_CHAIN_CONSTRAINTS", "RFC 5280, 4.2.1.9 and 4.2.1.3")
def constraints_hold(chain: Chain) -> Iterator[Finding]:
    """Only ARK and ASK or ASVK are authorities, each allowed to sign what it signs; no unknown critical extension."""
    for what, certificate, _ in chain.links[:2]:
        if not certificate.is_authority:
            yield Finding(f"{what} basic constraints", "CA", "not CA")
        if not certificate.may(SIGN_CERTIFICATES):
            yield Finding(f"{what} key usage", "keyCertSign", "not allowed")
    if chain.root.path_length == 0:
        yield Finding("ARK path length", "at least 1", "0")
    if chain.leaf.is_authority:
        yield Finding(f"{chain.kind.upper()} basic constraints", "not CA", "CA")
    for what, certificate, _ in chain.links:
        for oid, extension in certificate.extensions.items():
            if extension.critical and oid not in (OID_BASIC_CONSTRAINTS, OID_KEY_USAGE):
                yield Finding(f"{what} extensions", "no unknown critical one", oid)


@check("SNP_CHAIN_KEY", _PROFILE)
def keys_are_strong(chain: Chain) -> Iterator[Finding]:
    """ARK and ASK or ASVK have RSA keys of 4096 bits, the leaf an EC key on P-384."""
    for what, certificate, _ in chain.links[:2]:
        key = certificate.public_key
        if not isinstance(key, RSAPublicKey):
            yield Finding(f"{what} key", "RSA", "EC")
        elif key.key_size != _RSA_BITS or key.public_numbers().e != _RSA_EXPONENT:
            found = f"{key.key_size} bits, exponent {key.public_numbers().e}"
            yield Finding(f"{what} key", f"RSA of {_RSA_BITS} bits, exponent {_RSA_EXPONENT}", found)
    leaf_key = chain.leaf.public_key
    if not isinstance(leaf_key, EllipticCurvePublicKey):
        yield Finding(f"{chain.kind.upper()} key", "EC P-384", "RSA")
    elif not isinstance(leaf_key.curve, SECP384R1):
        yield Finding(f"{chain.kind.upper()} key", "EC P-384", f"EC {leaf_key.curve.name}")


@check("SNP_CERT_KIND", "57230, VCEK and VLEK certificate extensions")
def identity_fits_kind(chain: Chain) -> Iterator[Finding]:
    """A VCEK has a hwID and no cspID; a VLEK has a cspID and no hwID."""
    what = chain.kind.upper()
    has_hwid, has_csp = chain.extensions.hwid is not None, chain.extensions.csp_id is not None
    for name, has, wanted in (
        ("hwID", has_hwid, chain.kind is KeyKind.VCEK),
        ("cspID", has_csp, chain.kind is KeyKind.VLEK),
    ):
        if has != wanted:
            yield Finding(f"{what} {name}", "present" if wanted else "absent", "present" if has else "absent")


@check("SNP_CERT_EXTENSIONS", "57230, VCEK and VLEK certificate extensions")
def extensions_are_complete(chain: Chain) -> Iterator[Finding]:
    """Every extension of AMD's profile for the product is there, and none that we do not know."""
    what = chain.kind.upper()
    if chain.extensions.struct_version is None:
        yield Finding(f"{what} structVersion", "present", "absent")
    if chain.extensions.product_name is None:
        yield Finding(f"{what} productName", "present", "absent")
    if chain.anchor is not None:
        names = frozenset(layout(chain.anchor.product))
        for name in sorted(names - chain.extensions.spl.keys()):
            yield Finding(f"{what} {name} SPL", "present", "absent")
        for name in sorted(chain.extensions.spl.keys() - names):
            yield Finding(f"{what} {name} SPL", f"absent on {chain.anchor.product}", "present")
    for oid in chain.extensions.unknown:
        yield Finding(f"{what} extensions", "only those AMD has published", oid)


@check("SNP_CERT_STRUCT_VERSION", "57230, structVersion")
def structure_version_fits(chain: Chain) -> Iterator[Finding]:
    """structVersion is that of the product: 0 for Milan and Genoa, 1 for Turin."""
    if chain.anchor is None or chain.extensions.struct_version is None:
        return
    wanted = chain.anchor.product.structure_version
    if chain.extensions.struct_version != wanted:
        found = str(chain.extensions.struct_version)
        yield Finding(f"{chain.kind.upper()} structVersion", str(wanted), found)


@check("SNP_CERT_PRODUCT", "57230, productName")
def product_name_fits(chain: Chain) -> Iterator[Finding]:
    """productName belongs to the product line of the root."""
    name = chain.extensions.product_name
    if chain.anchor is not None and name is not None and product_of_name(name) is not chain.anchor.product:
        yield Finding(f"{chain.kind.upper()} productName", str(chain.anchor.product), name)


CHAIN_CHECKS: Final[tuple[Check[Chain], ...]] = (
    root_is_pinned,
    links_are_signed,
    names_match,
    constraints_hold,
    keys_are_strong,
    identity_fits_kind,
    extensions_are_complete,
    structure_version_fits,
    product_name_fits,
)
