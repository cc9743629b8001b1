"""What both kernel interfaces to SEV-SNP share: the last look at a report before it is sent as evidence."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pagegate.errors import PlatformError
from pagegate.evidence.model import Evidence, EvidenceType
from pagegate.platforms.certificate_table import certificates_in

REPORT_BYTES = 1184
REPORT_DATA_BYTES = 64
_REPORT_DATA = slice(0x50, 0x90)
MAX_VMPL = 3

FIRMWARE_ERRORS: Mapping[int, str] = MappingProxyType(
    {
        0x01: "INVALID_PLATFORM_STATE",
        0x02: "INVALID_GUEST_STATE",
        0x03: "INVALID_CONFIG",
        0x04: "INVALID_LEN",
        0x07: "POLICY_FAILURE",
        0x08: "INACTIVE",
        0x09: "INVALID_ADDRESS",
        0x0A: "BAD_SIGNATURE",
        0x10: "INVALID_GUEST",
        0x11: "INVALID_COMMAND",
        0x13: "HWERROR_PLATFORM",
        0x14: "HWERROR_UNSAFE",
        0x15: "UNSUPPORTED",
        0x16: "INVALID_PARAM",
        0x17: "RESOURCE_LIMIT",
        0x1D: "AEAD_OFLOW",
        0x27: "INVALID_KEY",
    }
)
"""Status codes of the SNP firmware that a guest request can end with (56860, Status Codes)."""


def firmware_error_name(code: int) -> str:
    """For messages: the code in hex with its name where it has one."""
    return f"0x{code:x} {FIRMWARE_ERRORS.get(code, '(not a code we know)')}"


def require_report_data(report_data: bytes) -> None:
    """Raises PlatformError REPORT_DATA_INVALID unless `report_data` has 64 bytes."""
    if len(report_data) != REPORT_DATA_BYTES:
        raise PlatformError(
            "REPORT_DATA_INVALID", f"report data has {len(report_data)} bytes; give exactly {REPORT_DATA_BYTES}"
        )


def require_vmpl(vmpl: int, what: str) -> None:
    """Raises PlatformError VMPL_INVALID unless `vmpl` is 0 to 3."""
    if not 0 <= vmpl <= MAX_VMPL:
        raise PlatformError("VMPL_INVALID", f"{what} is {vmpl}; it goes from 0 to {MAX_VMPL}")


def snp_evidence(report: bytes, table: bytes, report_data: bytes, interface: str) -> Evidence:
    """Evidence of a report and the host's certificate table (may be empty).

    Raises PlatformError REPORT_UNEXPECTED when it is not a report over `report_data`: a guest should not present
    what its peer must refuse.
    """
    if len(report) != REPORT_BYTES:
        raise PlatformError(
            "REPORT_UNEXPECTED", f"{interface} gave a report of {len(report)} bytes; one has {REPORT_BYTES}"
        )
    if report[_REPORT_DATA] != report_data:
        raise PlatformError(
            "REPORT_UNEXPECTED", f"{interface} gave a report over other report data than asked for; ask again"
        )
    return Evidence(EvidenceType.SEV_SNP, report, certificates_in(table))
