"""A policy on trial: it sees every verdict and changes none."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.model import Evidence, Verdict
from pagegate.evidence.policy.model import Policy


class ShadowAppraiser:
    """Appraises by the policy in force, and tells of each verdict that a policy on trial would change."""

    def __init__(
        self, in_force: EvidenceAppraiser, trial: Policy, on_difference: Callable[[Verdict, Verdict], None]
    ) -> None:
        """`on_difference(in force, on trial)` is called when they differ in acceptance, identity or grants."""
        self._in_force = in_force
        self._trial = in_force.with_policy(trial)
        self._on_difference = on_difference

    def appraise(self, evidence: Evidence, *, report_data: bytes | None, now: datetime) -> Verdict:
        """The verdict of the policy in force; see `Appraiser`."""
        verdict = self._in_force.appraise(evidence, report_data=report_data, now=now)
        tried = self._trial.reappraise(verdict, now)
        if (verdict.accepted, verdict.identity, verdict.grants) != (tried.accepted, tried.identity, tried.grants):
            self._on_difference(verdict, tried)
        return verdict
