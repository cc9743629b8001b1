"""`pagegate audit`: check, read and take away the audit log."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from pagegate.audit.entry import PUBLIC_KEY_BYTES, AuditEntry, SignedHead, format_time, parse_head_line
from pagegate.audit.log import AuditReader, default_head_path
from pagegate.audit.signing import HeadFile, read_public_key
from pagegate.audit.store import is_url
from pagegate.audit.verify import VerifyReport
from pagegate.cli import EXIT_REJECTED, EXIT_UNREADABLE
from pagegate.errors import AuditError

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_NOT_WHOLE = frozenset({"AUDIT_TAMPERED"})


@click.group()
def command() -> None:
    """Check, read and export the audit log.

    LOG is the log's SQLite file, a file made by `export`, or a postgresql:// URL.

    \b
    Examples:
      pagegate audit verify /var/lib/pagegate/audit.db
      pagegate audit verify --public-key 3b6a27bc... export.jsonl
      pagegate audit export /var/lib/pagegate/audit.db --output audit.jsonl
      pagegate audit show --last 20 --kind verdict /var/lib/pagegate/audit.db
    """


@command.command()
@click.argument("log")
@click.option("--key", type=_FILE, help="PEM file with the log's key, either half. Default: audit.key beside LOG.")
@click.option("--public-key", metavar="HEX", help="The log's public key, 32 bytes in hex, as `show` prints it.")
@click.option(
    "--head", "heads", type=_FILE, multiple=True, help="A signed head kept or published earlier. May be given often."
)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def verify(log: str, key: Path | None, public_key: str | None, heads: tuple[Path, ...], *, as_json: bool) -> None:
    """Walk the whole log and name the first bad entry.

    The key must not come from the log itself: whoever can rewrite the log could put another key
    there. When --key names the signing key, the head kept beside it (audit.key.head) is checked
    too, which is what shows a log rolled back to an earlier state of itself.

    \b
    Exit codes: 0 whole, 2 not whole, 3 cannot be read.

    \b
    Examples:
      pagegate audit verify --key /etc/pagegate/audit.key /var/lib/pagegate/audit.db
      pagegate audit verify --key audit.pub.pem --head january.head export.jsonl --json
    """
    with _unreadable_is_exit_3(as_json=as_json):
        pinned, known = _trust(log, key, public_key)
        known += [_read_head(path) for path in heads]
        report = AuditReader.open(log).verify(pinned, known)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else _describe(report, log))
    if not report.ok:
        raise click.exceptions.Exit(EXIT_REJECTED)


@command.command()
@click.argument("log")
@click.option(
    "--output", "-o", type=click.File("wb", lazy=False), default="-", help="Where to; default standard output."
)
def export(log: str, output: BinaryIO) -> None:
    """Write the log as JSON lines that `verify` reads.

    The first line names the log and its key, the last one is the signed head. Nothing is left out,
    so the file can be checked anywhere with no more than the public key.

    \b
    Example:
      pagegate audit export postgresql://pagegate@db/audit -o audit-2025-01.jsonl
    """
    with _unreadable_is_exit_3():
        count = AuditReader.open(log).export(output)
    click.echo(f"exported {count} entries", err=True)


@command.command()
@click.argument("log")
@click.option("--last", type=click.IntRange(min=0), default=20, show_default=True, help="How many entries; 0 for none.")
@click.option("--kind", help="Only entries of this kind.")
@click.option("--json", "as_json", is_flag=True, help="The entries as JSON.")
def show(log: str, last: int, kind: str | None, *, as_json: bool) -> None:
    """Show the log's key, head and last entries. Does not check them: `verify` does.

    \b
    Example:
      pagegate audit show --kind policy --last 5 /var/lib/pagegate/audit.db
    """
    with _unreadable_is_exit_3(as_json=as_json):
        reader = AuditReader.open(log)
        state = reader.state
        wanted = (entry for entry in reader.entries() if kind is None or entry.kind == kind)
        entries = deque(wanted, maxlen=last)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "log": state.log_id.hex(),
                    "public_key": state.public_key.hex(),
                    "head": json.loads(state.head.to_json()),
                    "entries": [{**json.loads(entry.body()), "hash": entry.hash.hex()} for entry in entries],
                },
                indent=2,
            )
        )
        return
    click.echo(f"log         {state.log_id.hex()}")
    click.echo(f"public key  {state.public_key.hex()}")
    click.echo(f"head        {state.head.seq} entries, {format_time(state.head.time)}, {state.head.hash.hex()}")
    for entry in entries:
        click.echo(_line(entry))


def _trust(log: str, key: Path | None, public_key: str | None) -> tuple[bytes, list[SignedHead]]:
    """The key to believe, and the head kept beside it."""
    if key is not None and public_key is not None:
        raise click.UsageError("give --key or --public-key, not both")
    if public_key is not None:
        try:
            value = bytes.fromhex(public_key)
        except ValueError as error:
            raise click.UsageError(f"--public-key is not hex: {error}") from error
        if len(value) != PUBLIC_KEY_BYTES:
            raise click.UsageError(f"--public-key has {len(value)} bytes, must have {PUBLIC_KEY_BYTES}")
        return value, []
    beside = None if is_url(log) else Path(log).with_name("audit.key")
    if key is None and beside is not None and beside.is_file():
        key = beside
    if key is None:
        raise click.UsageError(
            "no key to check the log by: give --key FILE or --public-key HEX. "
            "The key inside the log proves nothing, since whoever rewrites the log can change it too"
        )
    kept = HeadFile(default_head_path(key)).read()
    return read_public_key(key), [kept] if kept else []


def _read_head(path: Path) -> SignedHead:
    try:
        return parse_head_line(path.read_bytes()[:4096].strip())
    except (ValueError, OSError) as error:
        raise AuditError("AUDIT_UNREADABLE", f"{path} holds no signed head: {error}") from error


def _describe(report: VerifyReport, log: str) -> str:
    lines = [
        f"{'whole' if report.ok else 'NOT WHOLE'}: {log}",
        f"  log         {report.log_id.hex()}",
        f"  public key  {report.public_key.hex()}",
        f"  entries     {report.entries} good" + (f", first {format_time(report.first)}" if report.first else ""),
        f"  head        entry {report.head.seq}, {format_time(report.head.time)}",
    ]
    if not report.known_heads:
        lines.append("  note        no head from outside was given: a roll-back to an older state would not show")
    lines += [f"  {finding.code}: {finding.message}" for finding in report.findings]
    return "\n".join(lines)


def _line(entry: AuditEntry) -> str:
    details = " ".join(f"{name}={_value(value)}" for name, value in sorted(entry.details.items()))
    return f"{entry.seq:>8}  {format_time(entry.time)}  {entry.kind:<8}  {_value(entry.subject)}  {details}".rstrip()


def _value(value: object) -> str:
    """JSON escapes control characters, so a hostile entry cannot drive the terminal."""
    if isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value:
        return value
    return json.dumps(value)


@contextmanager
def _unreadable_is_exit_3(*, as_json: bool = False) -> Iterator[None]:
    try:
        yield
    except AuditError as error:
        if as_json:
            click.echo(json.dumps({"ok": False, "error": {"reason": error.reason, "message": error.message}}, indent=2))
        else:
            click.echo(f"pagegate: {error}", err=True)
        raise click.exceptions.Exit(EXIT_REJECTED if error.reason in _NOT_WHOLE else EXIT_UNREADABLE) from error
