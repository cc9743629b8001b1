"""`pagegate doctor`: is this machine ready?"""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from pagegate.cli._options import OWN_EVIDENCE, config_options, settle
from pagegate.config import PeerConfig
from pagegate.connect import build_appraiser, build_platform
from pagegate.evidence.model import Verdict
from pagegate.evidence.snp.report import REPORT_DATA_BYTES
from pagegate.host.doctor import Report, examine
from pagegate.host.machine import Machine
from pagegate.host.model import Finding, Role, Status

_EXIT = {Status.PASS: 0, Status.UNKNOWN: 1, Status.WARN: 1, Status.FAIL: 2}
_SHOWN_FIRST = (Status.FAIL, Status.WARN, Status.UNKNOWN, Status.PASS, Status.NOT_APPLICABLE)
_COLOUR = {Status.FAIL: "red", Status.WARN: "yellow", Status.UNKNOWN: "cyan", Status.PASS: "green"}


@click.command()
@click.option("--role", type=click.Choice([role.value for role in Role]), help="What this machine is; else detected.")
@click.option("--cache", type=click.Path(), help="Endorsement cache folder to look at.")
@click.option("--root", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path("/"), hidden=True)
@click.option("--all", "show_all", is_flag=True, help="Also show what does not apply here.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON, always complete.")
@config_options(PeerConfig, OWN_EVIDENCE)
def command(role: str | None, cache: str | None, root: Path, *, show_all: bool, as_json: bool, **options: Any) -> None:
    """Look at this machine and say what keeps it from running pagegate well.

    Reads /proc, /sys, /dev and the kernel log; changes nothing. Works without root and then says
    what it could not see. Each finding names the value found, the one expected, the fix, and the
    document that asks for it. docs/host-setup.md explains the settings.

    With --policy an SNP guest also asks for its own report and holds firmware and TCB against the
    policy's floors: what a peer with that policy would say.

    \b
    Exit codes:
      0  everything that applies here passes
      1  warnings, or something could not be seen
      2  at least one check fails

    \b
    Examples:
      pagegate doctor
      sudo pagegate doctor --role host --json | jq '.findings[] | select(.status == "fail")'
      pagegate doctor --cache /var/lib/pagegate/endorsements
      sudo pagegate doctor --policy policy.yaml
    """
    config = settle(PeerConfig, options)
    report = examine(
        Machine(root),
        role=Role(role) if role else None,
        cache=cache,
        verdict=(lambda: _own_verdict(config)) if config.policy is not None else None,
    )
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print(report, show_all=show_all)
    raise click.exceptions.Exit(_EXIT[report.worst])


def _own_verdict(config: PeerConfig) -> Verdict:
    """What a peer with this policy would say of this machine. Raises PagegateError."""
    evidence = build_platform(config).attest(secrets.token_bytes(REPORT_DATA_BYTES))
    return build_appraiser(config).appraise(evidence, report_data=None, now=datetime.now(UTC))


def _print(report: Report, *, show_all: bool) -> None:
    click.echo(f"This machine is a {report.role.value}: worst finding is {report.worst.value}.\n")
    for status in _SHOWN_FIRST:
        if status is Status.NOT_APPLICABLE and not show_all:
            continue
        for finding in report.findings:
            if finding.status is status:
                _print_finding(finding)
    counts = {s: sum(f.status is s for f in report.findings) for s in _SHOWN_FIRST}
    click.echo("\n" + ", ".join(f"{count} {status.value}" for status, count in counts.items() if count))


def _print_finding(finding: Finding) -> None:
    label = click.style(f"{finding.status.value:<14}", fg=_COLOUR.get(finding.status))
    click.echo(f"{label} {finding.id:<22} {finding.title}: {_safe(finding.found)}")
    if finding.fix and finding.status in (Status.FAIL, Status.WARN, Status.UNKNOWN):
        click.echo(f"{'':<37} fix: {_safe(finding.fix)}")


def _safe(text: str) -> str:
    """Text from the machine must not drive the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
