"""Judging the peer's evidence inside a handshake."""

from __future__ import annotations

from datetime import UTC, datetime

from pagegate.errors import HandshakeError
from pagegate.evidence.model import Appraiser, Evidence, Verdict


class EvidenceRejectedError(HandshakeError):
    """The peer's evidence was appraised and not believed. `verdict` has every failed check."""

    def __init__(self, verdict: Verdict) -> None:
        codes = ",".join(dict.fromkeys(failure.code for failure in verdict.failures))
        first = verdict.failures[0]
        super().__init__(
            "EVIDENCE_REJECTED",
            f"the peer's evidence was rejected: {codes}. {first.field}: expected {first.expected}, found {first.found}",
            # Codes only: reference values stay here.
            metadata={"checks": codes},
        )
        self.verdict = verdict


def appraise(appraiser: Appraiser, evidence: Evidence, report_data: bytes) -> Verdict:
    """Appraises evidence against this transcript's binding. Raises EvidenceRejectedError."""
    verdict = appraiser.appraise(evidence, report_data=report_data, now=datetime.now(UTC))
    if not verdict.accepted:
        raise EvidenceRejectedError(verdict)
    return verdict
