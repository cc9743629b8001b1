"""Runs every check against one machine and says how it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pagegate.evidence.model import Verdict
from pagegate.host.checks import ALL
from pagegate.host.machine import CannotSeeError, Machine
from pagegate.host.model import Check, Context, Finding, Outcome, Role, Side, Status, not_applicable, unknown
from pagegate.host.role import detect_role

_ORDER = tuple(Status)


@dataclass(frozen=True, slots=True)
class Report:
    """How a machine stands."""

    role: Role
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Status:
        """The worst status of all; a check that does not apply is as good as a pass."""
        worst = max((finding.status for finding in self.findings), key=_ORDER.index, default=Status.PASS)
        return Status.PASS if worst is Status.NOT_APPLICABLE else worst

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        count = {status.value: sum(f.status is status for f in self.findings) for status in Status}
        return {
            "role": self.role.value,
            "worst": self.worst.value,
            "count": count,
            "findings": [
                {
                    "id": f.id,
                    "title": f.title,
                    "status": f.status.value,
                    "found": f.found,
                    "expected": f.expected,
                    "fix": f.fix,
                    "matters_on": f.matters_on.value,
                    "source": f.source,
                }
                for f in self.findings
            ],
        }


def examine(
    machine: Machine,
    *,
    role: Role | None = None,
    cache: str | None = None,
    verdict: Callable[[], Verdict] | None = None,
    checks: Iterable[Check] = ALL,
) -> Report:
    """Runs the checks that matter on this role; the role is detected unless given.

    `verdict` appraises this machine's own evidence by a policy, for the TCB floor.
    """
    context = Context(machine, role or detect_role(machine), cache, verdict)
    return Report(context.role, tuple(_finding(check, _run(check, context)) for check in checks))


def _run(check: Check, context: Context) -> Outcome:
    here = Side.HOST if context.role is Role.HOST else Side.GUEST
    if check.side not in (Side.BOTH, here):
        return not_applicable(f"matters on a {check.side.value}, this is a {context.role.value}")
    try:
        return check.run(context)
    except CannotSeeError as blocked:
        return unknown(str(blocked))


def _finding(check: Check, outcome: Outcome) -> Finding:
    return Finding(
        check.id, check.title, outcome.status, outcome.found, check.expected, outcome.fix, check.side, check.source
    )
