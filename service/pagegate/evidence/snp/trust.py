"""What changes with time and with what the operator allows: dates, revocation, simulated roots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from pagegate.evidence.checks import Check, Finding, check
from pagegate.evidence.snp.chain import Chain
from pagegate.evidence.snp.revocation import RevocationList

_CRL = "57230, CRL; RFC 5280, 6.3"


class RevocationMode(StrEnum):
    """What happens when revocation cannot be checked."""

    HARD = "hard"
    """Without a fresh, verified list the evidence is refused."""
    SOFT = "soft"
    """Without one there is a warning; a certificate that a verified list names is refused all the same."""
    OFF = "off"
    """Lists are not asked for. One that the evidence brings is still obeyed."""


@dataclass(frozen=True, slots=True)
class TrustRules:
    """The operator's choices on dates, revocation and simulated platforms."""

    clock_skew: timedelta = timedelta(minutes=5)
    revocation: RevocationMode = RevocationMode.SOFT
    crl_max_age: timedelta | None = None
    allow_simulated: bool = False


@dataclass(frozen=True, slots=True)
class TrustSubject:
    """A chain at a time, with the lists that were found and are signed by its root."""

    chain: Chain
    now: datetime
    rules: TrustRules
    lists: tuple[RevocationList, ...] = ()
    problems: tuple[str, ...] = ()
    """Why a list is missing or not believed."""

    @property
    def newest_list(self) -> RevocationList | None:
        """The list made last; an attester must not be able to hide a newer one behind an old one."""
        return max(self.lists, key=lambda one: one.this_update, default=None)


@check("SIMULATED_EVIDENCE_REFUSED", "docs/verification.md, simulated platforms")
def simulated_is_allowed(subject: TrustSubject) -> Iterator[Finding]:
    """The root is hardware's, unless simulated platforms were allowed explicitly."""
    anchor = subject.chain.anchor
    if anchor is not None and anchor.simulated and not subject.rules.allow_simulated:
        yield Finding(
            "ARK",
            "the root of real hardware",
            f"{subject.chain.root.subject_name}, a SIMULATED root",
            "simulated evidence proves nothing; --allow-simulated accepts it for trials",
        )


@check("SNP_CERT_EXPIRED", "RFC 5280, 4.1.2.5")
def certificates_are_not_expired(subject: TrustSubject) -> Iterator[Finding]:
    """No certificate has ended, with the allowed clock skew."""
    for what, certificate, _ in subject.chain.links:
        over = subject.now - certificate.not_after
        if over > subject.rules.clock_skew:
            yield Finding(
                f"{what} validity",
                f"until {_text(certificate.not_after)}",
                f"ended {_span(over)} before {_text(subject.now)}",
                f"get a new one, or check the clock; skew allowed is {_span(subject.rules.clock_skew)}",
            )


@check("SNP_CERT_NOT_YET_VALID", "RFC 5280, 4.1.2.5")
def certificates_have_begun(subject: TrustSubject) -> Iterator[Finding]:
    """Every certificate has begun, with the allowed clock skew."""
    for what, certificate, _ in subject.chain.links:
        early = certificate.not_before - subject.now
        if early > subject.rules.clock_skew:
            yield Finding(
                f"{what} validity",
                f"from {_text(certificate.not_before)}",
                f"begins {_span(early)} after {_text(subject.now)}",
                f"this machine's clock may be behind; skew allowed is {_span(subject.rules.clock_skew)}",
            )


@check("SNP_CERT_REVOKED", _CRL)
def nothing_is_revoked(subject: TrustSubject) -> Iterator[Finding]:
    """No list signed by the root names the ASK, the ASVK or the leaf, in any mode."""
    for what, certificate, _ in subject.chain.links:
        since = [one.revoked[certificate.serial] for one in subject.lists if one.lists(certificate)]
        if since:
            found = f"serial {certificate.serial:#x} revoked since {_text(min(since))}"
            yield Finding(what, "not revoked", found, "take this chip or provider out of service")


@check("SNP_CRL_MISSING", _CRL)
def list_is_there(subject: TrustSubject) -> Iterator[Finding]:
    """There is a revocation list that the root signed."""
    if subject.newest_list is None:
        found = "; ".join(subject.problems) or "none"
        yield Finding("CRL", "a list signed by the root", found, "pagegate endorsements fetch gets one")


@check("SNP_CRL_STALE", _CRL)
def list_is_fresh(subject: TrustSubject) -> Iterator[Finding]:
    """The newest list has begun, has a nextUpdate that has not passed, and is not older than the policy allows."""
    newest = subject.newest_list
    if newest is None:
        return
    skew, hint = subject.rules.clock_skew, "pagegate endorsements fetch gets a new one; check the clock too"
    if newest.this_update - subject.now > skew:
        found = f"made {_span(newest.this_update - subject.now)} after {_text(subject.now)}"
        yield Finding("CRL thisUpdate", "in the past", found, hint)
    if newest.next_update is None:
        yield Finding("CRL nextUpdate", "present", "absent")
    elif subject.now - newest.next_update > skew:
        found = f"passed {_span(subject.now - newest.next_update)} before {_text(subject.now)}"
        yield Finding("CRL nextUpdate", "not passed", found, hint)
    limit = subject.rules.crl_max_age
    if limit is not None and subject.now - newest.this_update > limit:
        found = f"{_span(subject.now - newest.this_update)} old"
        yield Finding("CRL age", f"at most {_span(limit)}", found, hint)


TRUST_CHECKS: Final[tuple[Check[TrustSubject], ...]] = (
    simulated_is_allowed,
    certificates_are_not_expired,
    certificates_have_begun,
    nothing_is_revoked,
)
FRESHNESS_CHECKS: Final[tuple[Check[TrustSubject], ...]] = (list_is_there, list_is_fresh)
"""Failures under `hard`, warnings under `soft`, not run when `off`."""


def _text(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _span(duration: timedelta) -> str:
    """A duration a human reads at once: days, else the clock form."""
    if duration >= timedelta(days=2):
        return f"{duration.days} days"
    return str(timedelta(seconds=round(duration.total_seconds())))
