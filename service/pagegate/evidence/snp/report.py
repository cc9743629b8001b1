"""The SEV-SNP attestation report, 1184 bytes, versions 2 to 5 (56860, MSG_REPORT_RSP: ATTESTATION_REPORT).

Parsing takes the bytes apart and judges nothing but size and version: `structure` holds the checks, so that
one appraisal can list everything that is wrong.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from enum import IntEnum, IntFlag

from pagegate.errors import EvidenceError

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0
REPORT_DATA_BYTES = 64
SUPPORTED_VERSIONS = (2, 3, 4, 5)
SIGNATURE_ALGORITHM_ECDSA_P384_SHA384 = 1
SIGNATURE_COMPONENT_BYTES = 72
P384_BYTES = 48
_LAYOUT = struct.Struct("<IIQ16s16sII8sQI4s64s48s32s48s48s32s32s8sBBB21s64s8sBBBsBBBs8sQQ152s512s")


class GuestPolicy(IntFlag):
    """POLICY bits above the ABI version (56860, Guest Policy)."""

    SMT = 1 << 16
    RESERVED_ONE = 1 << 17
    MIGRATE_MA = 1 << 18
    DEBUG = 1 << 19
    SINGLE_SOCKET = 1 << 20
    CXL_ALLOW = 1 << 21
    MEM_AES_256_XTS = 1 << 22
    RAPL_DIS = 1 << 23
    CIPHERTEXT_HIDING_DRAM = 1 << 24
    PAGE_SWAP_DISABLE = 1 << 25


GUEST_POLICY_KNOWN = 0x03FF_FFFF


class PlatformInfo(IntFlag):
    """PLATFORM_INFO bits (56860, ATTESTATION_REPORT).

    Bit 6 has no name in the documents we have, and is set in every genuine Turin report we know.
    """

    SMT = 1 << 0
    TSME = 1 << 1
    ECC = 1 << 2
    RAPL_DIS = 1 << 3
    CIPHERTEXT_HIDING_DRAM = 1 << 4
    ALIAS_CHECK_COMPLETE = 1 << 5
    BIT_6 = 1 << 6
    TIO = 1 << 7


PLATFORM_INFO_KNOWN = 0xFF


class SigningKey(IntEnum):
    """SIGNING_KEY selector of the key information field; 2 to 6 are reserved."""

    VCEK = 0
    VLEK = 1
    NONE = 7


@dataclass(frozen=True, slots=True, order=True)
class FirmwareVersion:
    """Version of the SNP firmware; ordered."""

    major: int
    minor: int
    build: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True)
class Report:
    """Every field of an attestation report, in the order of the ABI; integers are little-endian on the wire."""

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: bytes
    platform_info: int
    key_info: int
    """Bit 0 AUTHOR_KEY_EN, bit 1 MASK_CHIP_KEY, bits 2-4 SIGNING_KEY."""
    reserved_4c: bytes
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid_family: int
    cpuid_model: int
    cpuid_stepping: int
    reserved_18b: bytes
    chip_id: bytes
    committed_tcb: bytes
    current_build: int
    current_minor: int
    current_major: int
    reserved_1eb: bytes
    committed_build: int
    committed_minor: int
    committed_major: int
    reserved_1ef: bytes
    launch_tcb: bytes
    launch_mitigations: int
    """LAUNCH_MIT_VECTOR, version 5 on."""
    current_mitigations: int
    """CURRENT_MIT_VECTOR, version 5 on."""
    reserved_208: bytes
    signature: bytes
    """512 bytes: R and S, 72 bytes each, little-endian; the rest is zero."""

    def to_bytes(self) -> bytes:
        """The 1184 bytes; the exact inverse of `parse_report`."""
        return _LAYOUT.pack(*astuple(self))

    @property
    def signed_bytes(self) -> bytes:
        """The part under the signature, 0x2a0 bytes."""
        return self.to_bytes()[:SIGNED_BYTES]

    @property
    def author_key_enabled(self) -> bool:
        return bool(self.key_info & 1)

    @property
    def mask_chip_key(self) -> bool:
        """True when the firmware may not sign with a chip key at all: the signature is then zero."""
        return bool(self.key_info & 2)

    @property
    def signing_key(self) -> int:
        """SIGNING_KEY, 0 to 7; see `SigningKey` for those with a meaning."""
        return self.key_info >> 2 & 7

    @property
    def chip_id_masked(self) -> bool:
        return not any(self.chip_id)

    @property
    def abi(self) -> tuple[int, int]:
        """The least ABI version (major, minor) the guest's owner asked for in POLICY."""
        return self.policy >> 8 & 0xFF, self.policy & 0xFF

    @property
    def current_version(self) -> FirmwareVersion:
        return FirmwareVersion(self.current_major, self.current_minor, self.current_build)

    @property
    def committed_version(self) -> FirmwareVersion:
        return FirmwareVersion(self.committed_major, self.committed_minor, self.committed_build)

    @property
    def signature_r(self) -> int:
        return int.from_bytes(self.signature[:SIGNATURE_COMPONENT_BYTES], "little")

    @property
    def signature_s(self) -> int:
        return int.from_bytes(self.signature[SIGNATURE_COMPONENT_BYTES : 2 * SIGNATURE_COMPONENT_BYTES], "little")


def parse_report(data: bytes) -> Report:
    """Takes a report apart. Raises EvidenceError SNP_REPORT_SIZE or SNP_REPORT_VERSION, nothing else."""
    if len(data) != REPORT_BYTES:
        raise EvidenceError(
            "SNP_REPORT_SIZE",
            f"an SEV-SNP report has {REPORT_BYTES} bytes, got {len(data)}{_size_hint(data)}",
        )
    report = Report(*_LAYOUT.unpack(data))
    if report.version not in SUPPORTED_VERSIONS:
        raise EvidenceError(
            "SNP_REPORT_VERSION",
            f"report version {report.version} is not supported; known are "
            f"{SUPPORTED_VERSIONS[0]} to {SUPPORTED_VERSIONS[-1]}: update pagegate, or check that this is a report",
        )
    return report


def encode_signature(r: int, s: int) -> bytes:
    """The 512-byte signature field of an ECDSA signature (56860, Signature Formats)."""
    both = b"".join(part.to_bytes(SIGNATURE_COMPONENT_BYTES, "little") for part in (r, s))
    return both.ljust(REPORT_BYTES - SIGNED_BYTES, b"\0")


def _size_hint(data: bytes) -> str:
    """Names the two wrappings that reports are often stored in."""
    if data[:4] == b"HCLA":
        return ": this is an Azure HCL blob, the report is the 1184 bytes at offset 32"
    if len(data) >= REPORT_BYTES + 32 and data[4:8] == REPORT_BYTES.to_bytes(4, "little"):
        return ": this is a MSG_REPORT_RSP, the report is the 1184 bytes at offset 32"
    return ""
