"""`pagegate verify`: is this report genuine, and does the policy accept it?"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from pagegate.cli import EXIT_NO_ENDORSEMENTS, EXIT_REJECTED, EXIT_UNREADABLE, exit_code, lacks_endorsements
from pagegate.cli._evidence import (
    UnreadableError,
    anchors_with,
    endorsements_from,
    evidence_options,
    parse_time,
    read_evidence,
    read_file,
)
from pagegate.errors import PagegateError
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.model import Verdict
from pagegate.evidence.policy import load_policy
from pagegate.evidence.snp.acceptance import IDENTITY_CHECKS
from pagegate.evidence.snp.report import REPORT_DATA_BYTES
from pagegate.evidence.snp.trust import certificates_are_not_expired
from pagegate.evidence.verdict import render_verdict, verdict_to_dict

_EAR_LIFETIME = timedelta(hours=1)
_NO_POLICY = "No --policy: this says that the report is genuine, not that its guest is one to trust."


@click.command("verify")
@click.option(
    "--report", type=click.Path(path_type=Path), required=True, help='The report, 1184 bytes; "-" reads stdin.'
)
@evidence_options
@click.option("--policy", "policy_path", type=click.Path(path_type=Path), help="Policy that must accept the guest.")
@click.option("--at", callback=parse_time, metavar="TIME", help="Verify as of this time (ISO 8601). Default: now.")
@click.option("--report-data", metavar="HEX", help="The 64 bytes that REPORT_DATA must be.")
@click.option("--ear-key", type=click.Path(path_type=Path), help="P-384 private key (PEM) that signs --ear.")
@click.option("--ear", type=click.Path(path_type=Path), help="Write a signed attestation result (EAR, JWT) here.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def command(
    report: Path,
    certs: tuple[Path, ...],
    chains: tuple[Path, ...],
    table: Path | None,
    crl: Path | None,
    offline: bool,
    allow_simulated: bool,
    simulated_root: Path | None,
    policy_path: Path | None,
    at: datetime | None,
    report_data: str | None,
    ear_key: Path | None,
    ear: Path | None,
    as_json: bool,
) -> None:
    """Verify an SEV-SNP attestation report: its signature, chain, TCB, chip, revocation, and a policy.

    Every check runs, and every failed one is listed with its reason code, what was expected and found, and the
    specification that asks for it. AMD's roots are built in, so with --offline only the VCEK or VLEK is needed.

    Without --policy the question is only whether the report is genuine. What a policy would refuse by default
    (debug, firmware that can be rolled back, a VLEK of any provider), and a leaf that has expired since, are then
    warnings. With --policy they are failures; an expired leaf is one with --at too.

    \b
    Examples:
      pagegate verify --report report.bin --cert vcek.der --offline
      pagegate verify --report report.bin --policy policy.yaml --json
      pagegate verify --report report.bin --cert vlek.der --offline --at 2025-01-31T12:00:00Z
      pagegate verify --report report.bin --cert vcek.pem --chain sim/ask.pem --chain sim/ark.pem \\
          --allow-simulated --simulated-root sim --offline

    \b
    Exit codes: 0 accepted, 2 rejected, 3 input unreadable, 4 endorsements not to be had.
    """
    if (ear is None) != (ear_key is None):
        raise click.UsageError("--ear and --ear-key go together")
    expected = _parse_report_data(report_data)
    try:
        policy = load_policy(policy_path) if policy_path is not None else None
        evidence = read_evidence(report, certs, chains, table)
        appraiser = EvidenceAppraiser(
            policy,
            anchors=anchors_with(simulated_root),
            endorsements=endorsements_from(crl, offline=offline),
            allow_simulated=allow_simulated,
        )
        verdict = appraiser.appraise(evidence, report_data=expected, now=at or datetime.now(UTC))
        if policy is None:
            verdict = _as_inspection(verdict, at_given=at is not None)
        if ear is not None and ear_key is not None:
            _write_ear(verdict, ear, ear_key)
    except PagegateError as error:
        raise _stop(error, as_json=as_json) from error
    if as_json:
        click.echo(
            json.dumps({**verdict_to_dict(verdict), "policy": str(policy_path) if policy_path else None}, indent=2)
        )
    else:
        click.echo(render_verdict(verdict))
        if policy is None:
            click.echo(f"\n{_NO_POLICY}")
    raise click.exceptions.Exit(_exit_code(verdict))


def _parse_report_data(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise click.UsageError("--report-data is not hexadecimal") from None
    if len(data) != REPORT_DATA_BYTES:
        raise click.UsageError(f"--report-data has {len(data)} bytes, REPORT_DATA has {REPORT_DATA_BYTES}")
    return data


def _as_inspection(verdict: Verdict, *, at_given: bool) -> Verdict:
    """Without a policy, what only a policy decides is a warning; so is the expiry of a stored report's leaf."""
    advisory = {check.code for check in IDENTITY_CHECKS}

    def only_advises(code: str, field: str) -> bool:
        leaf_expired = code == certificates_are_not_expired.code and field.startswith(("VCEK", "VLEK"))
        return code in advisory or (leaf_expired and not at_given)

    failures = tuple(one for one in verdict.failures if not only_advises(one.code, one.field))
    advice = tuple(one for one in verdict.failures if only_advises(one.code, one.field))
    return replace(verdict, accepted=not failures, failures=failures, warnings=(*advice, *verdict.warnings))


def _write_ear(verdict: Verdict, path: Path, key_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    from pagegate.evidence.ear import sign_result  # noqa: PLC0415 - only this option needs it

    try:
        key = load_pem_private_key(read_file(key_path), password=None)
    except (ValueError, TypeError) as error:
        raise UnreadableError("EAR_KEY_UNSUITABLE", f"{key_path} is not an unencrypted PEM private key") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise UnreadableError("EAR_KEY_UNSUITABLE", f"{key_path} is not an EC key; make one on P-384")
    token = sign_result(verdict, key, now=datetime.now(UTC), lifetime=_EAR_LIFETIME)
    try:
        path.write_text(token + "\n")
    except OSError as error:
        raise PagegateError("FILE_UNWRITABLE", f"cannot write {path}: {error.strerror}") from error


def _exit_code(verdict: Verdict) -> int:
    codes = {failure.code for failure in verdict.failures}
    if "SNP_REPORT_SIZE" in codes:
        return EXIT_UNREADABLE
    if lacks_endorsements(verdict):
        return EXIT_NO_ENDORSEMENTS
    return 0 if verdict.accepted else EXIT_REJECTED


def _stop(error: PagegateError, *, as_json: bool) -> click.exceptions.Exit:
    if as_json:
        click.echo(
            json.dumps({"accepted": False, "error": {"reason": error.reason, "message": error.message}}, indent=2)
        )
    click.echo(f"pagegate: {error}", err=True)
    return click.exceptions.Exit(EXIT_UNREADABLE if error.reason.startswith("POLICY_") else exit_code(error))
