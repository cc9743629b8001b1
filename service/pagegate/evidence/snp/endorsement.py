"""The report against its certificate: same chip, same TCB, and the signature itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from pagegate.evidence.checks import Check, Finding, check
from pagegate.evidence.model import KeyKind
from pagegate.evidence.snp.chain import Chain
from pagegate.evidence.snp.product import Product
from pagegate.evidence.snp.report import Report
from pagegate.evidence.snp.structure import P384_ORDER
from pagegate.evidence.snp.tcb import Tcb

_ECDSA: Final = ECDSA(SHA384())


@dataclass(frozen=True, slots=True)
class EndorsedReport:
    """A report, the exact bytes under its signature, and the chain that is to endorse it."""

    report: Report
    signed: bytes
    product: Product
    chain: Chain

    @property
    def certified_tcb(self) -> Tcb:
        return Tcb(self.product, self.chain.extensions.spl)

    @property
    def reported_tcb(self) -> Tcb:
        return Tcb.from_bytes(self.product, self.report.reported_tcb)


def certificate_url(product: Product, kind: KeyKind, chip_id: bytes, reported_tcb: bytes) -> str:
    """The KDS address of the right certificate; empty for a VLEK or a masked chip id, which KDS cannot give."""
    if kind is not KeyKind.VCEK or not any(chip_id):
        return ""
    tcb = Tcb.from_bytes(product, reported_tcb).parts
    names = [("fmcSPL", "fmc")] if product is Product.TURIN else []
    names += [("blSPL", "bootloader"), ("teeSPL", "tee"), ("snpSPL", "snp"), ("ucodeSPL", "microcode")]
    query = "&".join(f"{parameter}={tcb[part]:02d}" for parameter, part in names)
    return f"https://kdsintf.amd.com/vcek/v1/{product}/{chip_id[: product.hwid_bytes].hex()}?{query}"


def signature_verifies(endorsed: EndorsedReport) -> bool:
    """True when the leaf's key made the report's signature over exactly `signed`."""
    key = endorsed.chain.leaf.public_key
    r, s = endorsed.report.signature_r, endorsed.report.signature_s
    if not isinstance(key, EllipticCurvePublicKey) or not (0 < r < P384_ORDER and 0 < s < P384_ORDER):
        return False
    try:
        key.verify(encode_dss_signature(r, s), endorsed.signed, _ECDSA)
    except InvalidSignature:
        return False
    return True


def _where_to_get(endorsed: EndorsedReport) -> str:
    url = certificate_url(endorsed.product, endorsed.chain.kind, endorsed.report.chip_id, endorsed.report.reported_tcb)
    if url:
        return f"the right certificate is at {url}"
    return "a VLEK, or a VCEK of a masked chip id, comes from the cloud provider with the evidence"


@check("SNP_SIGNATURE", "56860, ATTESTATION_REPORT, SIGNATURE")
def report_is_signed(endorsed: EndorsedReport) -> Iterator[Finding]:
    """The leaf's key made the ECDSA signature over the first 0x2a0 bytes of the report."""
    if signature_verifies(endorsed):
        return
    kind = endorsed.chain.kind.upper()
    certified, reported = endorsed.certified_tcb, endorsed.reported_tcb
    if _differing(certified, reported):
        yield Finding(
            "signature",
            f"made by the {kind} of TCB {reported}",
            f"certificate is the {kind} of TCB {certified}: each TCB has a key of its own",
            _where_to_get(endorsed),
        )
    else:
        yield Finding(
            "signature",
            f"made by this {kind} over this report",
            "does not verify",
            "the report was changed, or the certificate is another chip's",
        )


@check("SNP_CERT_TCB", "57230, TCB of the VCEK; 56860, REPORTED_TCB")
def certificate_is_of_reported_tcb(endorsed: EndorsedReport) -> Iterator[Finding]:
    """Each part of the certificate's TCB equals that part of the reported TCB."""
    certified, reported = endorsed.certified_tcb, endorsed.reported_tcb
    for part in _differing(certified, reported):
        yield Finding(
            f"{endorsed.chain.kind.upper()} {part} SPL",
            f"{reported.parts.get(part, 'none')} (report: {reported})",
            f"{certified.parts.get(part, 'none')} (certificate: {certified})",
            _where_to_get(endorsed),
        )


@check("SNP_CERT_TCB_ABOVE_CURRENT", "56860, SNP_CONFIG: REPORTED_TCB")
def certificate_is_not_above_current(endorsed: EndorsedReport) -> Iterator[Finding]:
    """No part of the certificate's TCB is above the firmware that is running."""
    current = Tcb.from_bytes(endorsed.product, endorsed.report.current_tcb)
    for part in current.below(endorsed.certified_tcb.parts):
        yield Finding(
            f"{endorsed.chain.kind.upper()} {part} SPL",
            f"at most {current.parts.get(part, 0)}, as in current_tcb",
            str(endorsed.certified_tcb.parts[part]),
        )


@check("SNP_CERT_HWID", "57230, hwID; 56860, CHIP_ID")
def certificate_is_of_chip(endorsed: EndorsedReport) -> Iterator[Finding]:
    """The VCEK's hwID is the report's chip id, 8 bytes on Turin and 64 before; a masked chip id has none to compare."""
    hwid = endorsed.chain.extensions.hwid
    if endorsed.chain.kind is not KeyKind.VCEK or hwid is None:
        return
    size = endorsed.product.hwid_bytes
    if len(hwid) != size:
        yield Finding("VCEK hwID", f"{size} bytes on {endorsed.product}", f"{len(hwid)} bytes")
    elif any(endorsed.report.chip_id) and endorsed.report.chip_id[:size] != hwid:
        yield Finding("VCEK hwID", endorsed.report.chip_id[:size].hex(), hwid.hex(), _where_to_get(endorsed))


@check("SNP_CERT_PRODUCT_OF_REPORT", "56860, CPUID_FAM_ID, CPUID_MOD_ID; 57230, product names")
def chain_is_of_product(endorsed: EndorsedReport) -> Iterator[Finding]:
    """The chain ends in the root of the product line that the report says."""
    anchor = endorsed.chain.anchor
    if anchor is not None and anchor.product is not endorsed.product:
        yield Finding("ARK", f"the root of {endorsed.product}", f"the root of {anchor.product}")


ENDORSEMENT_CHECKS: Final[tuple[Check[EndorsedReport], ...]] = (
    report_is_signed,
    certificate_is_of_reported_tcb,
    certificate_is_not_above_current,
    certificate_is_of_chip,
    chain_is_of_product,
)


def _differing(certified: Tcb, reported: Tcb) -> tuple[str, ...]:
    names = dict.fromkeys((*reported.parts, *certified.parts))
    return tuple(name for name in names if certified.parts.get(name) != reported.parts.get(name))
