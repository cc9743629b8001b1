"""An appraiser and a platform with a stop watch: the spans and durations of both sides of a handshake."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pagegate.evidence.model import Appraiser, Evidence, EvidenceType, Verdict
from pagegate.platforms.model import Platform
from pagegate.telemetry import Span, Tracing

Role = Literal["client", "server"]


@dataclass(frozen=True, slots=True)
class MeasuredPlatform:
    """A platform whose reports are hops of the trace."""

    platform: Platform
    telemetry: Tracing
    role: Role

    @property
    def name(self) -> str:
        return self.platform.name

    @property
    def evidence_type(self) -> EvidenceType:
        return self.platform.evidence_type

    @property
    def simulated(self) -> bool:
        return self.platform.simulated

    def attest(self, report_data: bytes) -> Evidence:
        """As `Platform.attest`."""
        with self.telemetry.span(f"pagegate.{self.role}.evidence", {"pagegate.simulated": self.simulated}):
            return self.platform.attest(report_data)


@dataclass(frozen=True, slots=True)
class MeasuredAppraiser:
    """An appraiser whose appraisals are hops of the trace; each failed check is a refusal with its reason code."""

    appraiser: Appraiser
    telemetry: Tracing
    role: Role

    def appraise(self, evidence: Evidence, *, report_data: bytes | None, now: datetime) -> Verdict:
        """As `Appraiser.appraise`."""
        with self.telemetry.span(
            f"pagegate.{self.role}.appraise", {"pagegate.evidence.type": evidence.type.value}
        ) as span:
            started = time.monotonic()
            verdict = self.appraiser.appraise(evidence, report_data=report_data, now=now)
            labels = {"pagegate.evidence.type": evidence.type.value, "pagegate.verdict": _word(verdict)}
            self.telemetry.record("pagegate.appraisal.duration", time.monotonic() - started, labels)
            _describe(span, verdict)
        return verdict


def _word(verdict: Verdict) -> str:
    return "accepted" if verdict.accepted else "rejected"


def _describe(span: Span, verdict: Verdict) -> None:
    codes = tuple(dict.fromkeys(failure.code for failure in verdict.failures))
    span.set(
        {
            "pagegate.verdict": _word(verdict),
            "pagegate.simulated": verdict.simulated,
            "pagegate.policy.digest": verdict.policy_digest,
            "pagegate.identity": verdict.identity or "",
        }
    )
    if verdict.claims is not None:
        measurement, platform_id = verdict.claims.measurement.hex(), verdict.claims.platform_id
        span.set({"pagegate.measurement": measurement, "pagegate.platform.id": platform_id})
    if verdict.accepted:
        span.event("accepted")
        return
    span.set({"pagegate.failures": codes})
    for failure in verdict.failures:
        span.refused(failure.code, f"{failure.field}: found {failure.found}")
    span.error("EVIDENCE_REJECTED", ", ".join(codes))
