"""`pagegate show`: a report, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from pagegate.cli._evidence import UnreadableError, read_file
from pagegate.errors import EvidenceError
from pagegate.evidence.checks import run
from pagegate.evidence.snp.describe import describe_report
from pagegate.evidence.snp.product import product_of_cpuid
from pagegate.evidence.snp.report import parse_report
from pagegate.evidence.snp.structure import STRUCTURE_CHECKS, ReportSubject

_VERIFIES_NOTHING = "Decoded, not verified: nothing here is to be believed before `pagegate verify`."


@click.command("show")
@click.argument("report", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the fields as JSON.")
def command(report: Path, as_json: bool) -> None:
    """Decode an SEV-SNP attestation report field by field. REPORT is a file of 1184 bytes, or "-" for stdin.

    Nothing is verified; fields that no genuine report can have are pointed out.

    \b
    Examples:
      pagegate show report.bin
      pagegate show report.bin --json | jq .measurement

    \b
    Exit codes: 0 decoded, 3 not a report.
    """
    try:
        parsed = parse_report(read_file(report))
    except EvidenceError as error:
        raise UnreadableError(error.reason, f"{report}: {error.message}") from error
    product = product_of_cpuid(parsed.cpuid_family, parsed.cpuid_model)
    oddities = run(STRUCTURE_CHECKS, ReportSubject(parsed, product))
    described = describe_report(parsed)
    if as_json:
        odd = [{"code": one.code, "field": one.field, "expected": one.expected, "found": one.found} for one in oddities]
        click.echo(json.dumps({**described, "verified": False, "oddities": odd}, indent=2))
        return
    for line in _lines(described):
        click.echo(line)
    for one in oddities:
        click.echo(f"odd: {one.code}  {one.field}: expected {one.expected}, found {one.found}")
    click.echo(f"\n{_VERIFIES_NOTHING}")


def _lines(fields: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}{name}.")
        else:
            yield f"{prefix + name:34}  {_word(value)}"


def _word(value: object) -> str:
    if value is None:
        return "not told"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
