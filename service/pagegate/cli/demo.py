"""`pagegate demo`: everything pagegate is for, on one machine, in a minute."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pagegate.cli import EXIT_FAILED
from pagegate.cli._options import warn_simulated
from pagegate.demo.run import Report, run
from pagegate.telemetry.tree import print_trace


@click.command("demo")
@click.option(
    "--mib", default=64, show_default=True, type=click.IntRange(1, 1024), help="Size of the heap that is moved."
)
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Keep everything here. [default: a temporary directory]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(context: click.Context, mib: int, directory: Path | None, as_json: bool) -> None:
    """Two attested peers move a live process's memory; then five attacks are refused.

    A market process trades in a heap of order-book entries, a server and a client attest to each other on the
    SIMULATED platform (it proves nothing), the heap crosses, and its digest is compared. Exit code 1 when the
    memory differs or an attack gets through.
    """
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console = Console(stderr=as_json, width=132)
    warn_simulated("this demo")
    with tempfile.TemporaryDirectory(prefix="pagegate-demo-") as temporary:
        home = directory or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        report = run(home, mib, lambda line: console.print(f"[dim]·[/dim] {line}", highlight=False))
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        _show(console, report)
    if not report.passed:
        context.exit(EXIT_FAILED)


def _show(console: Console, report: Report) -> None:
    if report.trace is not None:
        console.print()
        print_trace(report.trace, console)
    attacks = Table(title="The gate", title_justify="left")
    for column in ("attack", "answer", "refused"):
        attacks.add_column(column)
    for attack in report.attacks:
        attacks.add_row(
            attack.name, attack.reason, "[green]yes[/green]" if attack.refused else "[bold red]NO[/bold red]"
        )
    console.print(attacks)
    same = report.digest_client == report.digest_server
    summary = Table(title="The transfer (SIMULATED platform: proves nothing)", title_justify="left", show_header=False)
    summary.add_row("moved", f"{report.bytes >> 20} MiB, {report.pages:,} pages, {report.orders:,} orders")
    summary.add_row("rate", f"{report.bytes / report.seconds / 1e6:.0f} MB/s ({report.seconds:.2f} s)")
    summary.add_row("sha256 at the client", report.digest_client)
    summary.add_row(
        "sha256 at the server", report.digest_server + ("  [green]equal[/green]" if same else "  [red]DIFFERS[/red]")
    )
    summary.add_row("server resident", f"{report.resident_server >> 20} MiB")
    console.print(summary)
    console.print(
        "[green]All as it should be.[/green]" if report.passed else "[bold red]Something got through.[/bold red]"
    )
