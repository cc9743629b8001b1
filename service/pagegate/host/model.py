"""The nouns of a health report. Pure data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pagegate.evidence.model import Verdict
from pagegate.host.machine import Machine


class Status(StrEnum):
    """How a check ended, best first."""

    PASS = "pass"  # noqa: S105 - not a password
    NOT_APPLICABLE = "not-applicable"
    UNKNOWN = "unknown"
    """The machine would not show it: not the same as fine."""
    WARN = "warn"
    FAIL = "fail"


class Side(StrEnum):
    """Where a check matters."""

    HOST = "host"
    GUEST = "guest"
    BOTH = "both"


class Role(StrEnum):
    """What this machine is."""

    HOST = "host"
    SNP_GUEST = "snp-guest"
    GUEST = "guest"
    """A virtual machine whose memory its host can read."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check saw."""

    status: Status
    found: str
    fix: str = ""
    """What to do; empty when there is nothing to do."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a check may look at."""

    machine: Machine
    role: Role
    cache: str | None = None
    """Endorsement cache folder, None when none was named."""
    verdict: Callable[[], Verdict] | None = None
    """Appraises this machine's own evidence by a policy; None when no policy was given."""


@dataclass(frozen=True, slots=True)
class Check:
    """One question about the machine. `run` may raise CannotSeeError."""

    id: str
    title: str
    side: Side
    expected: str
    source: str
    """Document that asks for it."""
    run: Callable[[Context], Outcome]


@dataclass(frozen=True, slots=True)
class Finding:
    """A check and its answer."""

    id: str
    title: str
    status: Status
    found: str
    expected: str
    fix: str
    matters_on: Side
    source: str


def passed(found: str) -> Outcome:
    return Outcome(Status.PASS, found)


def warned(found: str, fix: str) -> Outcome:
    return Outcome(Status.WARN, found, fix)


def failed(found: str, fix: str) -> Outcome:
    return Outcome(Status.FAIL, found, fix)


def unknown(found: str, fix: str = "") -> Outcome:
    return Outcome(Status.UNKNOWN, found, fix)


def not_applicable(found: str) -> Outcome:
    return Outcome(Status.NOT_APPLICABLE, found)
