"""Writes the 1184-byte ATTESTATION_REPORT of SEV-SNP, versions 2 to 5.

Source: SEV Secure Nested Paging Firmware ABI (56860), ATTESTATION_REPORT and "Signature formats". This is the
writer's side only: what it writes may be wrong on purpose, so that tests can show that verifiers refuse it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from pagegate.errors import PlatformError

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0
"""The signature covers bytes 0 to 0x29F."""
SIGNATURE_ALGORITHM = 1
"""ECDSA P-384 with SHA-384."""

_COMPONENT_BYTES = 72
_SIGNING_KEY_SHIFT = 2
_BODY = struct.Struct(
    "<IIQ16s16sII8sQII"  # version .. reserved at 0x4C
    "64s48s32s48s48s32s32s8s"  # report_data .. reported_tcb
    "3s21x64s8s"  # cpuid family, model, stepping; chip_id; committed_tcb
    "3sx3sx8sQQ"  # current and committed version; launch_tcb; mitigation vectors
    "152x"
)
if _BODY.size != SIGNED_BYTES:  # pragma: no cover - a slip in the layout above
    raise AssertionError(_BODY.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFields:
    """The signed fields of a report, by the names of the ABI. Integers are unsigned; TCBs are 8 bytes in file order."""

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int = SIGNATURE_ALGORITHM
    current_tcb: bytes
    platform_info: int
    author_key_enabled: bool = False
    chip_key_masked: bool = False
    signing_key: int = 0
    """0 VCEK, 1 VLEK, 7 none."""
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_migration_agent: bytes
    reported_tcb: bytes
    cpuid: bytes
    """Family, model, stepping; zero in version 2."""
    chip_id: bytes
    committed_tcb: bytes
    current_version: bytes
    """Build, minor, major."""
    committed_version: bytes
    launch_tcb: bytes
    launch_mitigations: int = 0
    current_mitigations: int = 0

    def __post_init__(self) -> None:
        for name, length in _LENGTHS.items():
            found = len(getattr(self, name))
            if found != length:
                raise PlatformError(
                    "SIMULATED_REPORT_FIELD_INVALID", f"report field {name} has {found} bytes; give exactly {length}"
                )
        for name, bits in _WIDTHS.items():
            value = getattr(self, name)
            if not 0 <= value < 1 << bits:
                raise PlatformError(
                    "SIMULATED_REPORT_FIELD_INVALID", f"report field {name} is {value}; it must fit in {bits} bits"
                )

    def to_bytes(self) -> bytes:
        """The signed part of the report, bytes 0 to 0x29F."""
        flags = self.author_key_enabled | self.chip_key_masked << 1 | self.signing_key << _SIGNING_KEY_SHIFT
        return _BODY.pack(
            self.version,
            self.guest_svn,
            self.policy,
            self.family_id,
            self.image_id,
            self.vmpl,
            self.signature_algorithm,
            self.current_tcb,
            self.platform_info,
            flags,
            0,
            self.report_data,
            self.measurement,
            self.host_data,
            self.id_key_digest,
            self.author_key_digest,
            self.report_id,
            self.report_id_migration_agent,
            self.reported_tcb,
            self.cpuid,
            self.chip_id,
            self.committed_tcb,
            self.current_version,
            self.committed_version,
            self.launch_tcb,
            self.launch_mitigations,
            self.current_mitigations,
        )


_LENGTHS = {
    "family_id": 16,
    "image_id": 16,
    "current_tcb": 8,
    "report_data": 64,
    "measurement": 48,
    "host_data": 32,
    "id_key_digest": 48,
    "author_key_digest": 48,
    "report_id": 32,
    "report_id_migration_agent": 32,
    "reported_tcb": 8,
    "cpuid": 3,
    "chip_id": 64,
    "committed_tcb": 8,
    "current_version": 3,
    "committed_version": 3,
    "launch_tcb": 8,
}
_WIDTHS = {
    "version": 32,
    "guest_svn": 32,
    "policy": 64,
    "vmpl": 32,
    "signature_algorithm": 32,
    "platform_info": 64,
    "signing_key": 3,
    "launch_mitigations": 64,
    "current_mitigations": 64,
}


def encode_signature(r: int, s: int) -> bytes:
    """The 512-byte signature field: R and S little-endian in 72 bytes each, then zeros."""
    components = r.to_bytes(_COMPONENT_BYTES, "little") + s.to_bytes(_COMPONENT_BYTES, "little")
    return components.ljust(REPORT_BYTES - SIGNED_BYTES, b"\0")


def sign_report(fields: ReportFields, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Returns the whole 1184-byte report, signed by `key` (P-384)."""
    body = fields.to_bytes()
    r, s = decode_dss_signature(key.sign(body, ec.ECDSA(hashes.SHA384())))
    return body + encode_signature(r, s)
