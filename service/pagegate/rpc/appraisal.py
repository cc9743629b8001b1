"""An appraiser whose time and verdicts are measured."""

from __future__ import annotations

import time
from datetime import datetime

from pagegate.evidence.model import Appraiser, Evidence, Verdict
from pagegate.telemetry import Tracing


class MeasuredAppraiser:
    """Judges as `inner` does, endorsements included in the time."""

    def __init__(self, inner: Appraiser, telemetry: Tracing) -> None:
        self._inner = inner
        self._telemetry = telemetry

    def appraise(self, evidence: Evidence, *, report_data: bytes | None, now: datetime) -> Verdict:
        """See Appraiser.appraise."""
        started = time.monotonic()
        verdict = self._inner.appraise(evidence, report_data=report_data, now=now)
        labels = {
            "pagegate.evidence.type": evidence.type.value,
            "pagegate.verdict": "accepted" if verdict.accepted else "rejected",
        }
        self._telemetry.record("pagegate.appraisal.duration", time.monotonic() - started, labels)
        return verdict
