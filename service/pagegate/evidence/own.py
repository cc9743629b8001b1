"""This machine's own evidence, appraised by itself: what would keep every peer from believing it, and how long it lasts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from pagegate.evidence.appraisal import BINDING_CHECKS, SESSION_CHECKS
from pagegate.evidence.model import Failure, Verdict
from pagegate.evidence.snp.acceptance import IDENTITY_CHECKS, POLICY_CHECKS
from pagegate.evidence.snp.verifier import Verified

_BY_POLICY: Final = (
    frozenset(check.code for check in IDENTITY_CHECKS)
    | frozenset(check.code for check in POLICY_CHECKS)
    | frozenset(check.code for check in BINDING_CHECKS)
    | frozenset(check.code for check in SESSION_CHECKS)
)


def hindrances(verdict: Verdict) -> tuple[Failure, ...]:
    """The failures that no policy of a peer could mend: signature, chain, dates, revocation, endorsements not found.

    Whom a policy names is left out: our own need not name ourselves.
    """
    return tuple(failure for failure in verdict.failures if failure.code not in _BY_POLICY)


def leaf_of(verdict: Verdict) -> bytes | None:
    """The VCEK or VLEK (DER) that endorsed the evidence; None when it does not verify."""
    facts = _facts(verdict)
    return None if facts is None or facts.chain is None else facts.chain.leaf.raw


def expiries(verdict: Verdict) -> Mapping[str, datetime]:
    """When each certificate of the evidence's chain and the newest CRL end, by "ARK", "ASK", "VCEK", ..., "CRL"."""
    facts = _facts(verdict)
    if facts is None or facts.chain is None:
        return {}
    ends = {what: certificate.not_after for what, certificate, _ in facts.chain.links}
    newest = max(facts.lists, key=lambda one: one.this_update, default=None)
    if newest is not None and newest.next_update is not None:
        ends["CRL"] = newest.next_update
    return ends


def _facts(verdict: Verdict) -> Verified | None:
    facts = verdict.claims.facts if verdict.claims is not None else None
    return facts if isinstance(facts, Verified) else None
