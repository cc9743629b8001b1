"""Evidence in, verdict out: every check runs, every failed check is listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hmac import compare_digest
from typing import Final

from pagegate.errors import EvidenceError
from pagegate.evidence.checks import Check, Finding, check, run
from pagegate.evidence.model import Claims, EndorsementSource, Evidence, EvidenceType, Failure, Stages, Verdict, untimed
from pagegate.evidence.policy.model import GuestRules, Identity, Policy
from pagegate.evidence.snp.acceptance import (
    IDENTITY_CHECKS,
    POLICY_CHECKS,
    GuestSubject,
    PolicySubject,
)
from pagegate.evidence.snp.anchors import TrustAnchor
from pagegate.evidence.snp.describe import describe_report
from pagegate.evidence.snp.report import Report, parse_report
from pagegate.evidence.snp.revocation import RevocationList
from pagegate.evidence.snp.trust import (
    FRESHNESS_CHECKS,
    TRUST_CHECKS,
    RevocationMode,
    TrustRules,
    TrustSubject,
)
from pagegate.evidence.snp.verifier import SnpVerifier, Verified

_SAFE_RULES: Final = GuestRules()
"""What holds without any policy: debug and migration off, firmware committed, no masked chip, no VLEK."""


@dataclass(frozen=True, slots=True)
class _Judgement:
    """What the policy says: failures, or the identity that matched."""

    failures: tuple[Failure, ...]
    identity: Identity | None = None


@dataclass(frozen=True, slots=True)
class _Binding:
    report: Report
    expected: bytes


@check("SNP_REPORT_DATA", "docs/protocol.md, Attest; 56860, REPORT_DATA")
def report_data_is_bound(binding: _Binding) -> Iterator[Finding]:
    """REPORT_DATA is exactly the 64 bytes that this handshake asks for."""
    if not compare_digest(binding.report.report_data, binding.expected):
        yield Finding(
            "report_data",
            binding.expected.hex(),
            binding.report.report_data.hex(),
            "the evidence was not made for this handshake: it is replayed, or relayed from another machine",
        )


@dataclass(frozen=True, slots=True)
class _Age:
    age: timedelta
    limit: timedelta | None


@check("EVIDENCE_TOO_OLD", "policy max_evidence_age")
def evidence_is_recent(subject: _Age) -> Iterator[Finding]:
    """The evidence of a session is not older than the policy allows."""
    if subject.limit is not None and subject.age > subject.limit:
        yield Finding("evidence age", f"at most {subject.limit}", str(subject.age), "attest again")


SESSION_CHECKS: Final[tuple[Check[_Age], ...]] = (evidence_is_recent,)
BINDING_CHECKS: Final[tuple[Check[_Binding], ...]] = (report_data_is_bound,)


class EvidenceAppraiser:
    """Appraises evidence under one policy. Safe for use by several threads; a new policy is a new appraiser."""

    def __init__(
        self,
        policy: Policy | None,
        *,
        anchors: Sequence[TrustAnchor],
        endorsements: EndorsementSource,
        allow_simulated: bool = False,
        stages: Stages = untimed,
    ) -> None:
        """Without a policy, evidence that is genuine and safe by default is accepted, with no grants at all."""
        self._policy = policy
        self._stages = stages
        self._verifier = SnpVerifier(anchors, endorsements, stages)
        self._rules = _trust_rules(policy, allow_simulated=allow_simulated)

    @property
    def policy(self) -> Policy | None:
        return self._policy

    def with_policy(self, policy: Policy | None) -> EvidenceAppraiser:
        """The same anchors, endorsements and warm caches under another policy."""
        other = copy(self)
        other._policy = policy
        other._rules = _trust_rules(policy, allow_simulated=self._rules.allow_simulated)
        return other

    def appraise(self, evidence: Evidence, *, report_data: bytes | None, now: datetime) -> Verdict:
        """Runs all checks; see `Appraiser`. `now` has a time zone."""
        if evidence.type is not EvidenceType.SEV_SNP:
            return self._refuse(_type_refused(evidence.type), now)
        try:
            report = parse_report(evidence.report)
        except EvidenceError as error:
            return self._refuse(_unparsed(error), now)
        ask_for_crl = self._rules.revocation is not RevocationMode.OFF
        verified = self._verifier.verify(evidence, report, ask_for_crl=ask_for_crl)
        binding = run(BINDING_CHECKS, _Binding(report, report_data)) if report_data is not None else ()
        with self._stages("policy"):
            return self._judge(verified, (*verified.failures, *binding), now=now, appraised_at=now)

    def reappraise(self, verdict: Verdict, now: datetime) -> Verdict:
        """Judges kept evidence again by this policy and at this time, without verifying signatures again.

        A verdict without verified claims stays rejected. `appraised_at` stays that of the evidence.
        """
        facts = verdict.claims.facts if verdict.claims is not None else None
        if not isinstance(facts, Verified):
            return replace(verdict, accepted=False, identity=None, grants={}, policy_digest=self._digest)
        appraised_at = verdict.appraised_at or now
        unbound = tuple(one for one in verdict.failures if one.code == report_data_is_bound.code)
        limit = self._policy.max_evidence_age if self._policy is not None else None
        aged = run(SESSION_CHECKS, _Age(now - appraised_at, limit))
        return self._judge(facts, (*unbound, *aged), now=now, appraised_at=appraised_at)

    @property
    def _digest(self) -> str:
        return self._policy.digest if self._policy is not None else ""

    def _refuse(self, failure: Failure, now: datetime) -> Verdict:
        return Verdict(False, False, (failure,), None, appraised_at=now, policy_digest=self._digest)

    def _judge(
        self, verified: Verified, failures: tuple[Failure, ...], *, now: datetime, appraised_at: datetime
    ) -> Verdict:
        warnings: tuple[Failure, ...] = ()
        chain = verified.chain
        if chain is not None:
            subject = TrustSubject(chain, now, self._rules, verified.lists, verified.list_problems)
            failures += run(TRUST_CHECKS, subject)
            if self._rules.revocation is RevocationMode.HARD:
                failures += run(FRESHNESS_CHECKS, subject)
            elif self._rules.revocation is RevocationMode.SOFT:
                warnings = run(FRESHNESS_CHECKS, subject)
        judgement = judge_by_policy(self._policy, verified)
        failures += judgement.failures
        identity = judgement.identity if not failures else None
        return Verdict(
            accepted=not failures,
            simulated=chain is not None and chain.anchor is not None and chain.anchor.simulated,
            failures=failures,
            claims=None if verified.failures or chain is None else _claims(verified),
            identity=identity.name if identity is not None else None,
            grants=dict(identity.regions) if identity is not None else {},
            appraised_at=appraised_at,
            policy_digest=self._digest,
            warnings=warnings,
        )


def _trust_rules(policy: Policy | None, *, allow_simulated: bool) -> TrustRules:
    if policy is None:
        return TrustRules(allow_simulated=allow_simulated)
    return TrustRules(policy.clock_skew, policy.revocation.mode, policy.revocation.max_age, allow_simulated)


def judge_by_policy(policy: Policy | None, verified: Verified) -> _Judgement:
    """Holds a report against each identity; when none matches, all failures, the nearest identity's first."""
    if policy is None:
        return _Judgement(run(IDENTITY_CHECKS, _guest(verified, _SAFE_RULES)))
    common = run(POLICY_CHECKS, PolicySubject(verified.report, verified.product, policy))
    tried: list[tuple[Failure, ...]] = []
    for identity in policy.identities:
        failures = run(IDENTITY_CHECKS, _guest(verified, identity))
        if not failures:
            return _Judgement(common, identity if not common else None)
        tried.append(tuple(replace(one, field=f"{identity.name}: {one.field}") for one in failures))
    tried.sort(key=len)
    return _Judgement((*common, *(failure for failures in tried for failure in failures)))


def _guest(verified: Verified, rules: GuestRules) -> GuestSubject:
    return GuestSubject(verified.report, verified.product, verified.chain, rules)


def _claims(verified: Verified) -> Claims:
    report = verified.report
    guest = _guest(verified, _SAFE_RULES)
    return Claims(
        type=EvidenceType.SEV_SNP,
        measurement=report.measurement,
        host_data=report.host_data,
        report_data=report.report_data,
        platform_id=guest.chip_id.hex(),
        details=describe_report(report, verified.product, verified.chain)
        | {"revocation_list": _describe_list(verified.lists)},
        facts=verified,
    )


def _describe_list(lists: Sequence[RevocationList]) -> dict[str, str | None] | None:
    """Age and end of the newest list, for metrics and readiness; None when there is none."""
    newest = max(lists, key=lambda one: one.this_update, default=None)
    if newest is None:
        return None
    until = newest.next_update.isoformat() if newest.next_update is not None else None
    return {"this_update": newest.this_update.isoformat(), "next_update": until}


def _type_refused(found: EvidenceType) -> Failure:
    return Failure("EVIDENCE_TYPE_REFUSED", "evidence type", EvidenceType.SEV_SNP, found, "policy evidence_types")


def _unparsed(error: EvidenceError) -> Failure:
    return Failure(error.reason, "report", "a report that can be parsed", error.message, "56860, ATTESTATION_REPORT")
