"""The SEV-SNP report that Azure's paravisor (HCL) made at boot and keeps in the vTPM.

Format: checked against real blobs; described in Microsoft's Azure confidential VM guest attestation documents. The
report's REPORT_DATA is the hash of the runtime data (JSON with the vTPM's attestation key), fixed at boot: nothing of
ours can be put under it. So such a report cannot bind a handshake; a vTPM quote by that attestation key could, and
until verifiers appraise one, `attest` refuses.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pagegate.errors import PlatformError
from pagegate.evidence.model import Evidence, EvidenceType
from pagegate.platforms.snp_evidence import REPORT_BYTES
from pagegate.platforms.tpm import TpmDevice, read_nv_index

DEVICE = Path("/dev/tpmrm0")
NV_INDEX = 0x01400001
RUNTIME_DATA_ATTACHMENT = "azure-runtime-data"

_HEADER = struct.Struct("<4sIIII12x")
"""Magic, version, size of the part in use, request type, status, reserved."""
_RUNTIME_HEADER = struct.Struct("<IIIII")
"""Size of this header and the data, version, report type, hash type, size of the data."""
_REPORT_TYPE_SNP = 2
_HASHES: dict[int, Callable[[bytes], bytes]] = {
    1: lambda data: hashlib.sha256(data).digest(),
    2: lambda data: hashlib.sha384(data).digest(),
    3: lambda data: hashlib.sha512(data).digest(),
}
_REPORT_DATA = slice(0x50, 0x90)


@dataclass(frozen=True, slots=True)
class HclReport:
    """What the paravisor left: a report and the runtime data that its REPORT_DATA is the hash of."""

    report: bytes
    runtime_data: bytes
    """JSON, exactly as hashed."""


def parse_hcl(blob: bytes) -> HclReport:
    """Takes an HCL blob apart and checks the hash of its runtime data. Raises PlatformError HCL_..."""
    fixed = _HEADER.size + REPORT_BYTES + _RUNTIME_HEADER.size
    if len(blob) < fixed:
        raise _malformed(f"it has {len(blob)} bytes, the fixed part alone takes {fixed}")
    magic, _, _, request_type, _ = _HEADER.unpack_from(blob)
    if magic != b"HCLA":
        raise _malformed(f"it starts with {magic!r}, not with HCLA")
    report = blob[_HEADER.size : _HEADER.size + REPORT_BYTES]
    size, _, report_type, hash_type, data_size = _RUNTIME_HEADER.unpack_from(blob, _HEADER.size + REPORT_BYTES)
    if request_type != _REPORT_TYPE_SNP or report_type != _REPORT_TYPE_SNP:
        raise _malformed(f"it holds a report of type {report_type}, SEV-SNP is {_REPORT_TYPE_SNP}")
    if size != _RUNTIME_HEADER.size + data_size or data_size > len(blob) - fixed:
        raise _malformed(f"runtime data of {data_size} bytes do not fit {len(blob) - fixed}")
    if hash_type not in _HASHES:
        raise _malformed(f"hash type {hash_type} is not known, known are {sorted(_HASHES)}")
    runtime_data = blob[fixed : fixed + data_size]
    if report[_REPORT_DATA] != _HASHES[hash_type](runtime_data).ljust(64, b"\0"):
        raise PlatformError(
            "HCL_RUNTIME_DATA_MISMATCH",
            "the runtime data of the HCL report are not those under its REPORT_DATA; do not trust this vTPM",
        )
    return HclReport(report, runtime_data)


class AzurePlatform:
    """An Azure confidential VM with the report in its vTPM. Not fit for handshakes, see this module's text."""

    def __init__(self, device: Path = DEVICE) -> None:
        self._device = device

    @property
    def name(self) -> str:
        return "azure"

    @property
    def evidence_type(self) -> EvidenceType:
        return EvidenceType.SEV_SNP

    @property
    def simulated(self) -> bool:
        return False

    def attest(self, report_data: bytes) -> Evidence:
        """Always raises PlatformError AZURE_REPORT_NOT_FRESH: the report of the boot cannot carry `report_data`."""
        raise PlatformError(
            "AZURE_REPORT_NOT_FRESH",
            "Azure's vTPM holds a report made at boot; its REPORT_DATA cannot be bound to this handshake without a "
            "vTPM quote, which is not supported yet. Use a VM size that shows /dev/sev-guest to the guest, or inspect "
            "the boot report with `pagegate verify`",
        )

    def boot_evidence(self) -> Evidence:
        """The report of the boot, with its runtime data attached; for inspection. Raises PlatformError."""
        try:
            with self._device.open("r+b", buffering=0) as device:
                return boot_evidence_from(device)
        except OSError as error:
            raise PlatformError(
                "AZURE_VTPM_UNAVAILABLE",
                f"cannot open {self._device}: {error.strerror}; run in an Azure confidential VM as a user that may "
                "open the vTPM (group tss)",
            ) from error


def boot_evidence_from(device: TpmDevice) -> Evidence:
    """Reads the HCL report from an opened vTPM. Raises PlatformError."""
    hcl = parse_hcl(read_nv_index(device, NV_INDEX))
    return Evidence(EvidenceType.SEV_SNP, hcl.report, attachments={RUNTIME_DATA_ATTACHMENT: hcl.runtime_data})


def _malformed(why: str) -> PlatformError:
    return PlatformError(
        "HCL_REPORT_MALFORMED", f"the vTPM's NV index does not hold an HCL report: {why}; is this an Azure SEV-SNP VM?"
    )
