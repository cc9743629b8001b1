"""The seam where evidence is made."""

from __future__ import annotations

from typing import Protocol

from pagegate.evidence.model import Evidence, EvidenceType


class Platform(Protocol):
    """A machine that can make evidence about itself."""

    @property
    def name(self) -> str:
        """Short stable name: "configfs-tsm", "sev-guest", "simulated"."""
        ...

    @property
    def evidence_type(self) -> EvidenceType: ...

    @property
    def simulated(self) -> bool:
        """True for the simulated platform, whose evidence proves nothing."""
        ...

    def attest(self, report_data: bytes) -> Evidence:
        """Makes evidence with these 64 bytes as REPORT_DATA. Raises PlatformError."""
        ...
