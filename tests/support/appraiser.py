"""A small appraiser that believes real report bytes only, for tests of everything above appraisal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pagegate.errors import EvidenceError
from pagegate.evidence.model import AccessMode, Claims, Evidence, Failure, Verdict
from pagegate.evidence.snp.report import parse_report

ALL_REGIONS: Mapping[str, AccessMode] = {"*": AccessMode.READ_WRITE}


class MeasuringAppraiser:
    """Parses the report and checks REPORT_DATA and MEASUREMENT against an allow-list (measurement -> identity).

    It checks no signature: tests that turn on signatures, TCBs or policies take the product's own appraiser.
    """

    def __init__(
        self, identities: Mapping[bytes, str], grants: Mapping[str, Mapping[str, AccessMode]] | None = None
    ) -> None:
        self._identities = dict(identities)
        self._grants = grants or {}
        self.seen: list[Evidence] = []
        """Evidence judged, in order: a side that refuses on cheap grounds adds nothing here."""

    def appraise(self, evidence: Evidence, *, report_data: bytes | None, now: datetime) -> Verdict:
        """As `pagegate.evidence.model.Appraiser`."""
        self.seen.append(evidence)
        try:
            report = parse_report(evidence.report)
        except EvidenceError as error:
            failure = Failure(error.reason, "report", "a report", "no report", "56860")
            return Verdict(False, True, (failure,), None, appraised_at=now)
        failures = []
        if report_data is not None and report.report_data != report_data:
            failures.append(
                Failure("SNP_REPORT_DATA", "report_data", report_data.hex(), report.report_data.hex(), "protocol.md")
            )
        identity = self._identities.get(report.measurement)
        if identity is None:
            known = ", ".join(m.hex() for m in self._identities)
            failures.append(Failure("SNP_MEASUREMENT", "measurement", known, report.measurement.hex(), "policy"))
        claims = Claims(
            evidence.type, report.measurement, report.host_data, report.report_data, report.chip_id.hex(), {}
        )
        grants = self._grants.get(identity or "", ALL_REGIONS) if not failures else {}
        return Verdict(not failures, True, tuple(failures), claims, identity, grants, now)
