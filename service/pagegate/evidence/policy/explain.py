"""What a policy says of a report, check by check, and how two policies differ on many reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pagegate.evidence.appraisal import judge_by_policy
from pagegate.evidence.checks import run
from pagegate.evidence.model import Failure
from pagegate.evidence.policy.model import Policy
from pagegate.evidence.snp.acceptance import IDENTITY_CHECKS, POLICY_CHECKS, GuestSubject, PolicySubject
from pagegate.evidence.snp.product import Product, candidate_products, product_of_cpuid
from pagegate.evidence.snp.report import Report
from pagegate.evidence.snp.structure import CPUID_VERSION
from pagegate.evidence.snp.verifier import Verified


@dataclass(frozen=True, slots=True)
class Explained:
    """One check of one identity (or of the policy as a whole, identity "") and what it says."""

    identity: str
    code: str
    summary: str
    failures: tuple[Failure, ...]

    @property
    def holds(self) -> bool:
        return not self.failures


def unverified(report: Report) -> Verified:
    """A report taken at its word: for asking what a policy would say, never for a decision.

    A version 2 report does not say its product: Turin if its chip id is short, else Milan, as nearly all are.
    """
    product: Product | None = product_of_cpuid(report.cpuid_family, report.cpuid_model)
    if report.version < CPUID_VERSION:
        product = candidate_products(report.chip_id)[0]
    return Verified(report, product, None, (), (), ())


def explain(policy: Policy, verified: Verified) -> Iterator[Explained]:
    """Every check of every identity, those that hold too."""
    common = PolicySubject(verified.report, verified.product, policy)
    for policy_check in POLICY_CHECKS:
        yield Explained("", policy_check.code, policy_check.summary, run((policy_check,), common))
    for identity in policy.identities:
        guest = GuestSubject(verified.report, verified.product, verified.chain, identity)
        for one in IDENTITY_CHECKS:
            yield Explained(identity.name, one.code, one.summary, run((one,), guest))


@dataclass(frozen=True, slots=True)
class Tried:
    """What two policies say of one report: the identity each finds, None when it refuses."""

    before: str | None
    after: str | None
    failures: tuple[Failure, ...]
    """Why the new policy refuses."""

    @property
    def outcome(self) -> str:
        """One of: let in, thrown out, moved (to another identity), kept, kept out."""
        if self.before == self.after:
            return "kept" if self.after is not None else "kept out"
        if self.before is None:
            return "let in"
        return "thrown out" if self.after is None else "moved"


def compare(current: Policy | None, new: Policy, verified: Verified) -> Tried:
    """Holds a report against two policies; without a current one, everything is kept out before."""
    after = judge_by_policy(new, verified)
    before = judge_by_policy(current, verified) if current is not None else None
    return Tried(
        before.identity.name if before is not None and before.identity is not None else None,
        after.identity.name if after.identity is not None else None,
        after.failures,
    )
