"""What every genuine report looks like, whoever signed it: reserved fields, enumerations, consistency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pagegate.evidence.checks import Check, Finding, check
from pagegate.evidence.snp.product import Product, product_of_cpuid
from pagegate.evidence.snp.report import (
    GUEST_POLICY_KNOWN,
    P384_BYTES,
    PLATFORM_INFO_KNOWN,
    SIGNATURE_ALGORITHM_ECDSA_P384_SHA384,
    SIGNATURE_COMPONENT_BYTES,
    GuestPolicy,
    Report,
    SigningKey,
)
from pagegate.evidence.snp.tcb import Tcb

CPUID_VERSION: Final = 3
MITIGATIONS_VERSION: Final = 5
VMPL_MAX: Final = 3
P384_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
_REPORT = "56860, ATTESTATION_REPORT"


@dataclass(frozen=True, slots=True)
class ReportSubject:
    """A report and the product line it says, or its certificate says for it in version 2."""

    report: Report
    product: Product | None

    def tcbs(self) -> Iterator[tuple[str, Tcb]]:
        """The four TCBs by name; none when the product is not known."""
        if self.product is not None:
            report = self.report
            for name, data in (
                ("current_tcb", report.current_tcb),
                ("reported_tcb", report.reported_tcb),
                ("committed_tcb", report.committed_tcb),
                ("launch_tcb", report.launch_tcb),
            ):
                yield name, Tcb.from_bytes(self.product, data)


@check("SNP_RESERVED_NOT_ZERO", _REPORT)
def reserved_is_zero(subject: ReportSubject) -> Iterator[Finding]:
    """Reserved fields are zero, and so are fields that the report's version does not have yet."""
    report = subject.report
    ranges = [
        ("reserved at 0x4c", report.reserved_4c),
        ("reserved at 0x18b", report.reserved_18b),
        ("reserved at 0x1eb", report.reserved_1eb),
        ("reserved at 0x1ef", report.reserved_1ef),
        ("reserved at 0x208", report.reserved_208),
        ("key_info bits 5 to 31", (report.key_info >> 5).to_bytes(4, "big")),
    ]
    if report.version < CPUID_VERSION:
        cpuid = bytes((report.cpuid_family, report.cpuid_model, report.cpuid_stepping))
        ranges.append((f"cpuid before version {CPUID_VERSION}", cpuid))
    if report.version < MITIGATIONS_VERSION:
        vectors = report.launch_mitigations | report.current_mitigations
        ranges.append((f"mitigation vectors before version {MITIGATIONS_VERSION}", vectors.to_bytes(8, "big")))
    for name, data in ranges:
        if any(data):
            yield Finding(name, "zero", data.hex(), "this is not a report in a format we know")


@check("SNP_TCB_RESERVED", "56860, TCB_VERSION")
def tcb_reserved_is_zero(subject: ReportSubject) -> Iterator[Finding]:
    """The reserved parts of each TCB are zero for the product's layout."""
    for name, tcb in subject.tcbs():
        if any(tcb.reserved):
            yield Finding(name, f"reserved parts zero in {tcb.product}'s layout", tcb.to_bytes().hex())


@check("SNP_POLICY_RESERVED", "56860, Guest Policy")
def policy_bits_are_known(subject: ReportSubject) -> Iterator[Finding]:
    """Bit 17 of the guest policy is one, and bits 26 to 63 are zero."""
    policy = subject.report.policy
    if not policy & GuestPolicy.RESERVED_ONE.value:
        yield Finding("policy bit 17", "1", "0")
    if policy & ~GUEST_POLICY_KNOWN:
        yield Finding("policy bits 26 to 63", "zero", f"{policy:#x}", "a newer ABI: update pagegate")


@check("SNP_PLATFORM_RESERVED", _REPORT)
def platform_bits_are_known(subject: ReportSubject) -> Iterator[Finding]:
    """Bits 8 to 63 of the platform information are zero."""
    info = subject.report.platform_info
    if info & ~PLATFORM_INFO_KNOWN:
        yield Finding("platform_info bits 8 to 63", "zero", f"{info:#x}", "a newer ABI: update pagegate")


@check("SNP_SIGNING_KEY", _REPORT)
def signing_key_is_known(subject: ReportSubject) -> Iterator[Finding]:
    """The report says that a VCEK or a VLEK signed it, and MASK_CHIP_KEY does not keep the chip from signing."""
    selector = subject.report.signing_key
    if selector not in (SigningKey.VCEK, SigningKey.VLEK):
        found = "none: the report is not signed" if selector == SigningKey.NONE else f"{selector}, reserved"
        yield Finding("signing_key", "0 (VCEK) or 1 (VLEK)", found)
    if subject.report.mask_chip_key and selector == SigningKey.VCEK:
        yield Finding("mask_chip_key", "0 for a report signed by a VCEK", "1")


@check("SNP_SIGNATURE_ALGORITHM", "56860, Signature Formats")
def algorithm_is_known(subject: ReportSubject) -> Iterator[Finding]:
    """The signature algorithm is ECDSA on P-384 with SHA-384."""
    algorithm = subject.report.signature_algorithm
    if algorithm != SIGNATURE_ALGORITHM_ECDSA_P384_SHA384:
        yield Finding("signature_algo", "1 (ECDSA P-384 with SHA-384)", str(algorithm))


@check("SNP_SIGNATURE_FORMAT", "56860, Signature Formats")
def signature_is_in_range(subject: ReportSubject) -> Iterator[Finding]:
    """R and S are between 1 and the order of P-384, and the rest of the signature field is zero."""
    report = subject.report
    for name, value in (("signature R", report.signature_r), ("signature S", report.signature_s)):
        if not 0 < value < P384_ORDER:
            yield Finding(name, f"1 to the order of P-384, {P384_BYTES} bytes", f"{value:#x}"[:40])
    if any(report.signature[2 * SIGNATURE_COMPONENT_BYTES :]):
        yield Finding("signature padding", "zero", "other bytes")


@check("SNP_VMPL_INVALID", _REPORT)
def vmpl_is_a_guest(subject: ReportSubject) -> Iterator[Finding]:
    """The report was asked for from within the guest: VMPL is 0 to 3."""
    vmpl = subject.report.vmpl
    if vmpl > VMPL_MAX:
        hint = "0xffffffff marks a report that the hypervisor asked for: it says nothing of the guest's wish"
        yield Finding("vmpl", "0 to 3", f"{vmpl:#x}", hint)


@check("SNP_AUTHOR_KEY_INCONSISTENT", _REPORT)
def author_key_is_consistent(subject: ReportSubject) -> Iterator[Finding]:
    """Without AUTHOR_KEY_EN the author key digest is zero."""
    report = subject.report
    if not report.author_key_enabled and any(report.author_key_digest):
        yield Finding("author_key_digest", "zero, as author_key_en is 0", report.author_key_digest.hex())


@check("SNP_PRODUCT_UNKNOWN", "56860, CPUID_FAM_ID, CPUID_MOD_ID; 57230, product names")
def product_is_known(subject: ReportSubject) -> Iterator[Finding]:
    """From version 3 on the report's CPU family and model belong to Milan, Genoa (Bergamo, Siena) or Turin."""
    report = subject.report
    if report.version >= CPUID_VERSION and product_of_cpuid(report.cpuid_family, report.cpuid_model) is None:
        found = f"family {report.cpuid_family:#x}, model {report.cpuid_model:#x}"
        yield Finding("cpuid", "a product whose root is known", found, "a newer chip: update pagegate")


@check("SNP_CHIP_ID_LENGTH", "56860, CHIP_ID")
def chip_id_fits_product(subject: ReportSubject) -> Iterator[Finding]:
    """On Turin only the first 8 bytes of the chip id are set."""
    if subject.product is not None and any(subject.report.chip_id[subject.product.hwid_bytes :]):
        found = subject.report.chip_id.hex()
        yield Finding("chip_id", f"{subject.product.hwid_bytes} bytes on {subject.product}", found)


STRUCTURE_CHECKS: Final[tuple[Check[ReportSubject], ...]] = (
    reserved_is_zero,
    tcb_reserved_is_zero,
    policy_bits_are_known,
    platform_bits_are_known,
    signing_key_is_known,
    algorithm_is_known,
    signature_is_in_range,
    vmpl_is_a_guest,
    author_key_is_consistent,
    product_is_known,
    chip_id_fits_product,
)
