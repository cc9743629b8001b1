"""Content checks: bytes from anywhere become typed endorsements, or are refused before they are stored.

Nothing here makes a trust decision (the appraiser does). These checks keep wrong, truncated or foreign
files out of the cache, where they would turn good evidence away until they expire.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from pagegate.endorsements.certificate import invalid, is_root, parse_certificate, printable, split_pem
from pagegate.endorsements.part import (
    Part,
    PartKind,
    chain_part,
    crl_part,
    format_tcb,
    hwid_length,
    part_of_leaf,
)
from pagegate.errors import EndorsementError
from pagegate.evidence.model import KeyKind
from pagegate.evidence.snp.certificate import Certificate
from pagegate.evidence.snp.chain import signed_by

MAX_BODY = {PartKind.LEAF: 16 * 1024, PartKind.CHAIN: 64 * 1024, PartKind.CRL: 1024 * 1024}
"""Bytes accepted of each kind; AMD's are below 2, 6 and 2 KiB."""

_CA_NAME = re.compile(r"(?:SIMULATED-)?(?P<role>ARK|SEV)-(?P<vlek>VLEK-)?(?P<product>Milan|Genoa|Turin)\b")


@dataclass(frozen=True, slots=True)
class Content:
    """Parsed content of one part. `certificates` holds the leaf, or intermediate then root; none for a CRL."""

    part: Part
    body: bytes
    """The form that is stored: DER of a leaf or CRL, certificates of a chain one after the other."""
    certificates: tuple[Certificate, ...]
    made_at: datetime
    """notBefore or thisUpdate."""
    expires_at: datetime
    """The earliest notAfter, or nextUpdate."""


def parse(part: Part, body: bytes) -> Content:
    """Parses `body` (DER or PEM) as what `part` names and checks that it is that very thing.

    Raises EndorsementError: ENDORSEMENT_CONTENT_INVALID when it is no such thing,
    ENDORSEMENT_CERTIFICATE_MISMATCH when it is one for another product, chip or TCB.
    """
    if len(body) > MAX_BODY[part.kind]:
        raise invalid(f"{part}: {len(body)} bytes; the limit is {MAX_BODY[part.kind]}")
    match part.kind:
        case PartKind.LEAF:
            content = parse_leaf(_single(body, "CERTIFICATE"))
        case PartKind.CHAIN:
            content = parse_chain(split_certificates(body))
        case PartKind.CRL:
            content = parse_crl(_single(body, "X509 CRL"), part.key_kind)
    if content.part != part:
        raise EndorsementError("ENDORSEMENT_CERTIFICATE_MISMATCH", _difference(part, content.part))
    return content


def parse_leaf(body: bytes) -> Content:
    """A VCEK or VLEK, DER."""
    leaf = parse_certificate(body)
    name = _CA_NAME.match(leaf.issuer_name)
    if name is None:
        raise invalid(f"a certificate issued by {leaf.issuer_name!r}, not by SEV-<product> or SEV-VLEK-<product>")
    part = part_of_leaf(leaf, name["product"])
    if (part.key_kind is KeyKind.VLEK) != bool(name["vlek"]):
        raise invalid(f"a {part.key_kind.upper()} by its extensions, but issued by {leaf.issuer_name!r}")
    return Content(part, body, (leaf,), leaf.not_before, leaf.not_after)


def parse_chain(certificates: list[bytes]) -> Content:
    """One ASK or ASVK and its ARK, any order. Their signatures are checked."""
    if len(certificates) != 2:
        raise invalid(f"a chain of {len(certificates)} certificates; expected ASK or ASVK, and ARK")
    parsed = [parse_certificate(c) for c in certificates]
    roots = [c for c in parsed if is_root(c)]
    if len(roots) != 1:
        raise invalid(f"a chain with {len(roots)} self-issued certificates, expected the ARK only")
    root, intermediate = roots[0], next(c for c in parsed if c is not roots[0])
    name = _CA_NAME.match(intermediate.subject_name)
    root_name = _CA_NAME.match(root.subject_name)
    if name is None or root_name is None or root_name["vlek"] or name["product"] != root_name["product"]:
        raise invalid(
            f"a chain of {intermediate.subject_name!r} and {root.subject_name!r}; expected SEV-... and ARK-..."
        )
    check_signed_by(root, root)
    check_signed_by(intermediate, root)
    kind = KeyKind.VLEK if name["vlek"] else KeyKind.VCEK
    return Content(
        chain_part(name["product"], kind),
        intermediate.raw + root.raw,
        (intermediate, root),
        max(intermediate.not_before, root.not_before),
        min(intermediate.not_after, root.not_after),
    )


def parse_crl(body: bytes, kind: KeyKind) -> Content:
    """A CRL of an ARK, DER. It does not say for which key kind KDS serves it: `kind` does."""
    crl = _load_crl(body)
    names = crl.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    issuer = printable(str(names[0].value).encode()) if names else ""
    name = _CA_NAME.match(issuer)
    if name is None or name["role"] != "ARK":
        raise invalid(f"a CRL issued by {issuer!r}, not by ARK-<product>")
    if crl.next_update_utc is None:
        raise invalid("a CRL without nextUpdate")
    return Content(crl_part(name["product"], kind), body, (), crl.last_update_utc, crl.next_update_utc)


def check_leaf_link(leaf: Content, chain: Content) -> None:
    """The chain's ASK or ASVK signed the leaf."""
    check_signed_by(leaf.certificates[0], chain.certificates[0])


def check_crl_link(crl: Content, chain: Content) -> None:
    """The chain's ARK signed the CRL."""
    root = chain.certificates[1]
    parsed = _load_crl(crl.body)
    if not signed_by(parsed.tbs_certlist_bytes, parsed.signature, root):
        raise invalid(f"a CRL whose signature is not of {root.subject_name!r}")


def check_signed_by(certificate: Certificate, issuer: Certificate) -> None:
    """`issuer` signed `certificate`: RSA-PSS, SHA-384, salt of 48 bytes (57230, certificate format)."""
    name, signer = certificate.subject_name, issuer.subject_name
    if certificate.issuer != issuer.subject:
        raise invalid(f"{name!r}: its issuer {certificate.issuer_name!r} is not this {signer!r}")
    if not signed_by(certificate.tbs, certificate.signature, issuer):
        raise invalid(f"{name!r}: its signature is not of {signer!r}")


def split_certificates(body: bytes) -> list[bytes]:
    """The certificates of a PEM bundle, or of DER ones one after the other."""
    if blocks := split_pem(body):
        return [data for label, data in blocks if label == "CERTIFICATE"]
    certificates = []
    while body:
        if len(body) < 4 or body[:2] != b"\x30\x82":
            raise invalid("neither PEM nor DER certificates")
        length = 4 + int.from_bytes(body[2:4], "big")
        certificates.append(body[:length])
        body = body[length:]
    return certificates


def _single(body: bytes, label: str) -> bytes:
    blocks = split_pem(body)
    if not blocks:
        return body
    if len(blocks) != 1 or blocks[0][0] != label:
        raise invalid(f"PEM blocks {[name for name, _ in blocks][:4]}, expected one {label}")
    return blocks[0][1]


def _load_crl(body: bytes) -> x509.CertificateRevocationList:
    try:
        return x509.load_der_x509_crl(body)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise invalid(f"not a DER revocation list: {error}") from error


def _difference(wanted: Part, found: Part) -> str:
    if (wanted.product, wanted.key_kind) != (found.product, found.key_kind):
        return f"asked for {wanted}, got one of {found.product} {found.key_kind.upper()}"
    if wanted.hwid != found.hwid:
        shown = min(8, hwid_length(wanted.product))
        return f"asked for {wanted}, got the certificate of another chip ({found.hwid[:shown].hex()}..)"
    return f"asked for {wanted}, got one for TCB {format_tcb(found.product, found.tcb)}"
