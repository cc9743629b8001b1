"""The platform of a simulated guest on a simulated chip. Its evidence proves nothing, and says so."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pagegate.errors import PlatformError
from pagegate.evidence.model import Evidence, EvidenceType, KeyKind
from pagegate.platforms.simulated.report import ReportFields
from pagegate.platforms.simulated.root import SimulatedChip

REPORT_DATA_BYTES = 64
POLICY_DEFAULT = 0x30000
"""SMT allowed and the reserved bit that must be one; debug and migration off."""

_PLATFORM_INFO = {2: 0x01, 3: 0x25, 4: 0x25, 5: 0x25}
"""SMT; from version 3 on also ECC memory and the completed alias check, as on current hosts."""
_FIRMWARE = bytes((29, 55, 1))
"""Build, minor, major."""
_NO_MIGRATION_AGENT = b"\xff" * 32
_VLEK_SIGNED = 1


class SimulatedPlatform:
    """A guest with the identity its maker chose, as `pagegate.platforms.model.Platform`.

    `follow` is asked before each report for the chip as it runs now (`SimulatedRoot.as_it_runs`), so that a firmware
    update shows. `adjust` may change any field of the report before it is signed: so tests make a genuine signature over
    wrong content.
    """

    def __init__(
        self,
        chip: SimulatedChip,
        *,
        measurement: bytes,
        host_data: bytes = b"\0" * 32,
        policy: int = POLICY_DEFAULT,
        vmpl: int = 0,
        guest_svn: int = 0,
        id_key_digest: bytes = b"\0" * 48,
        author_key_digest: bytes = b"\0" * 48,
        family_id: bytes = b"\0" * 16,
        image_id: bytes = b"\0" * 16,
        version: int = 3,
        follow: Callable[[SimulatedChip], SimulatedChip] | None = None,
        adjust: Callable[[ReportFields], ReportFields] | None = None,
    ) -> None:
        if version not in _PLATFORM_INFO:
            raise PlatformError(
                "SIMULATED_REPORT_FIELD_INVALID", f"report version {version} is not known; give 2, 3, 4 or 5"
            )
        self._chip = chip
        self._follow = follow
        self._adjust = adjust
        vlek = chip.kind is KeyKind.VLEK
        tcb = chip.tcb_bytes
        self._template = ReportFields(
            version=version,
            guest_svn=guest_svn,
            policy=policy,
            family_id=family_id,
            image_id=image_id,
            vmpl=vmpl,
            current_tcb=tcb,
            platform_info=_PLATFORM_INFO[version],
            author_key_enabled=any(author_key_digest),
            signing_key=_VLEK_SIGNED if vlek else 0,
            report_data=b"\0" * REPORT_DATA_BYTES,
            measurement=measurement,
            host_data=host_data,
            id_key_digest=id_key_digest,
            author_key_digest=author_key_digest,
            report_id=secrets.token_bytes(32),
            report_id_migration_agent=_NO_MIGRATION_AGENT,
            reported_tcb=tcb,
            cpuid=b"\0" * 3 if version == 2 else chip.product.cpuid,
            # Clouds that use VLEKs give reports without a chip id (seen in real ones).
            chip_id=b"\0" * 64 if vlek else chip.chip_id,
            committed_tcb=tcb,
            current_version=_FIRMWARE,
            committed_version=_FIRMWARE,
            launch_tcb=tcb,
        )

    @property
    def name(self) -> str:
        return "simulated"

    @property
    def evidence_type(self) -> EvidenceType:
        return EvidenceType.SEV_SNP

    @property
    def simulated(self) -> bool:
        return True

    @property
    def chip(self) -> SimulatedChip:
        return self._chip

    def attest(self, report_data: bytes) -> Evidence:
        """Makes a report with these 64 bytes and sends the chip's certificates along. Raises PlatformError."""
        if self._follow is not None:
            self._chip = self._follow(self._chip)
        # The launch TCB stays that of the launch.
        tcb = self._chip.tcb_bytes
        fields = replace(self._template, report_data=report_data, current_tcb=tcb, committed_tcb=tcb, reported_tcb=tcb)
        if self._adjust is not None:
            fields = self._adjust(fields)
        return Evidence(EvidenceType.SEV_SNP, self._chip.sign(fields), self._chip.certificates)


def measurement_of(content: Path | bytes) -> bytes:
    """A 48-byte stand-in for a launch measurement: the same for the same file or bytes, on every machine.

    Not what AMD's firmware computes; `pagegate measure` does that.
    """
    data = content.read_bytes() if isinstance(content, Path) else content
    return hashlib.sha384(b"pagegate SIMULATED measurement\0" + data).digest()
