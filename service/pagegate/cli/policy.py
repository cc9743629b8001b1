"""`pagegate policy`: check a policy, see what it says of a report, try a new one."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import click

from pagegate.cli import EXIT_NO_ENDORSEMENTS, EXIT_REJECTED, lacks_endorsements
from pagegate.cli._evidence import (
    UnreadableError,
    anchors_with,
    endorsements_from,
    evidence_options,
    read_evidence,
    read_file,
)
from pagegate.errors import EvidenceError, PolicyError
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.policy import Policy, load_policy
from pagegate.evidence.policy.explain import Explained, compare, explain, unverified
from pagegate.evidence.policy.schema import schema_text
from pagegate.evidence.snp.report import parse_report
from pagegate.evidence.snp.verifier import Verified

_FILE = click.Path(path_type=Path)
_MAX_AUDIT_BYTES = 256 * 1024 * 1024


class UnusablePolicyError(PolicyError):
    """A policy file that cannot be used: exit code 3."""

    exit_code = 3


@click.group("policy")
def command() -> None:
    """Check, explain and try policies: who is believed, and what each may do."""


@command.command("check")
@click.argument("policy", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(policy: Path, as_json: bool) -> None:
    """Check POLICY. Unknown, repeated and unused keys are errors, each with its line.

    \b
    Example: pagegate policy check policy.yaml
    Exit codes: 0 usable, 3 not.
    """
    loaded = _load(policy)
    names = [identity.name for identity in loaded.identities]
    if as_json:
        click.echo(json.dumps({"usable": True, "digest": loaded.digest, "identities": names}, indent=2))
    else:
        click.echo(f"{policy}: usable; {len(names)} identities ({', '.join(names)}); sha256 {loaded.digest}")


@command.command("schema")
def schema() -> None:
    """Print the JSON Schema of policies, for editors.

    \b
    Example: pagegate policy schema > pagegate-policy.schema.json
    """
    click.echo(schema_text(), nl=False)


@command.command("explain")
@click.argument("report", type=_FILE)
@click.option("--policy", "policy_path", type=_FILE, required=True, help="The policy to ask.")
@evidence_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def explain_command(
    report: Path,
    policy_path: Path,
    certs: tuple[Path, ...],
    chains: tuple[Path, ...],
    table: Path | None,
    crl: Path | None,
    offline: bool,
    allow_simulated: bool,
    simulated_root: Path | None,
    as_json: bool,
) -> None:
    """Say check by check what a policy thinks of REPORT, for each identity; those that hold too.

    With --cert the report is verified first, and the answer is the verdict's. Without, the report is taken at its
    word, which is good enough to write a policy and for nothing else.

    \b
    Examples:
      pagegate policy explain report.bin --policy policy.yaml
      pagegate policy explain report.bin --policy policy.yaml --cert vcek.der --offline
    Exit codes: 0 an identity matches, 2 none does, 3 input unreadable, 4 endorsements not to be had.
    """
    policy = _load(policy_path)
    verified = _unverified(read_file(report), str(report))
    genuine: bool | None = None
    unendorsed = False
    if certs or table is not None:
        appraiser = EvidenceAppraiser(
            policy,
            anchors=anchors_with(simulated_root),
            endorsements=endorsements_from(crl, offline=offline),
            allow_simulated=allow_simulated,
        )
        evidence = read_evidence(report, certs, chains, table)
        verdict = appraiser.appraise(evidence, report_data=None, now=datetime.now(UTC))
        claims, unendorsed = verdict.claims, lacks_endorsements(verdict)
        genuine = claims is not None
        if claims is not None and isinstance(claims.facts, Verified):
            verified = claims.facts
    rows = list(explain(policy, verified))
    matching = compare(None, policy, verified).after
    if as_json:
        click.echo(json.dumps({"genuine": genuine, "identity": matching, "checks": list(map(_row, rows))}, indent=2))
    else:
        _print_rows(rows)
        said = {None: "taken at its word", True: "genuine", False: "NOT genuine: see pagegate verify"}[genuine]
        click.echo(f"\nThe report is {said}. It matches: {matching or 'no identity'}.")
    if unendorsed:
        raise click.exceptions.Exit(EXIT_NO_ENDORSEMENTS)
    if matching is None or genuine is False:
        raise click.exceptions.Exit(EXIT_REJECTED)


@command.command("try")
@click.argument("new", type=_FILE)
@click.option("--against", type=_FILE, multiple=True, required=True, help="Reports: files, directories, or JSON lines.")
@click.option("--current", type=_FILE, help="The policy in force, to compare with.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def try_command(new: Path, against: tuple[Path, ...], current: Path | None, as_json: bool) -> None:
    """Dry run: say whom the policy NEW would let in or throw out, on reports seen before.

    Reports are taken at their word: nothing is verified again, nothing is changed. A directory is searched for
    report.bin and *.report; a file of JSON lines has the report as hex or base64 under "report" in each line.

    \b
    Example:
      pagegate policy try new.yaml --current policy.yaml --against /var/lib/pagegate/reports
    Exit codes: 0 nobody is thrown out, 2 somebody is, 3 input unreadable.
    """
    new_policy = _load(new)
    current_policy = _load(current) if current is not None else None
    tried = [(name, compare(current_policy, new_policy, one)) for name, one in _reports(against)]
    if not tried:
        raise UnreadableError("NO_REPORTS", "no report found; name files, or directories with report.bin or *.report")
    if as_json:
        rows = [
            {
                "report": name,
                "outcome": one.outcome,
                "before": one.before,
                "after": one.after,
                "failures": [f"{failure.code} {failure.field}" for failure in one.failures],
            }
            for name, one in tried
        ]
        click.echo(json.dumps(rows, indent=2))
    else:
        for name, one in tried:
            change = f"{one.before or 'nobody'} -> {one.after or 'nobody'}"
            click.echo(f"{one.outcome:10}  {name}  ({change})")
            for failure in one.failures:
                click.echo(f"            {failure.code}  {failure.field}: expected {failure.expected}")
    if any(one.outcome == "thrown out" for _, one in tried):
        raise click.exceptions.Exit(EXIT_REJECTED)


def _load(path: Path) -> Policy:
    try:
        return load_policy(path)
    except PolicyError as error:
        raise UnusablePolicyError(error.reason, error.message) from error


def _unverified(data: bytes, name: str) -> Verified:
    try:
        return unverified(parse_report(data))
    except EvidenceError as error:
        raise UnreadableError(error.reason, f"{name}: {error.message}") from error


def _reports(paths: tuple[Path, ...]) -> Iterator[tuple[str, Verified]]:
    for path in paths:
        if path.is_dir():
            for found in sorted((*path.rglob("report.bin"), *path.rglob("*.report"))):
                yield str(found), _unverified(read_file(found), str(found))
            continue
        data = read_file(path, _MAX_AUDIT_BYTES)
        if data.lstrip()[:1] == b"{":
            for number, line in enumerate(data.splitlines(), start=1):
                if line.strip():
                    yield f"{path}:{number}", _unverified(_report_of(line, f"{path}:{number}"), f"{path}:{number}")
        else:
            yield str(path), _unverified(data, str(path))


def _report_of(line: bytes, name: str) -> bytes:
    try:
        text = json.loads(line)["report"]
        try:
            return bytes.fromhex(text)
        except ValueError:
            return b64decode(text, validate=True)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnreadableError("REPORT_MISSING", f'{name}: not a JSON object with "report" as hex or base64') from None


def _row(one: Explained) -> dict[str, object]:
    return {
        "identity": one.identity or None,
        "code": one.code,
        "demands": one.summary,
        "holds": one.holds,
        "failures": [
            {"field": failure.field, "expected": failure.expected, "found": failure.found} for failure in one.failures
        ],
    }


def _print_rows(rows: list[Explained]) -> None:
    for identity, group in groupby(rows, key=lambda one: one.identity):
        click.echo(f"identity {identity}" if identity else "all identities")
        for one in group:
            click.echo(f"  {'holds' if one.holds else 'FAILS':6} {one.code:28} {one.summary}")
            for failure in one.failures:
                click.echo(f"         {failure.field}: expected {failure.expected}, found {failure.found}")
