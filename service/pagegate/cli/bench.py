"""`pagegate bench`: what attestation and sealing cost, side by side with the same work without them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pagegate.bench import files as bench_files
from pagegate.bench import isolation as bench_isolation
from pagegate.bench.run import Results, run
from pagegate.cli import EXIT_REJECTED
from pagegate.cli._options import warn_simulated


@click.command("bench")
@click.option("--quick", is_flag=True, help="Three rounds of 16 MiB instead of nine of 128 MiB.")
@click.option(
    "--files",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Measure files in this directory instead: io_uring, pread and mappings, cold and warm.",
)
@click.option(
    "--isolation", is_flag=True, help="Measure the isolated bridge against the one in process instead, call by call."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON to this file too.")
@click.option("--check", is_flag=True, help="Exit with 2 when a target is not met.")
@click.pass_context
def command(
    context: click.Context,
    quick: bool,
    files: Path | None,
    isolation: bool,
    as_json: bool,
    out: Path | None,
    check: bool,
) -> None:
    """Measure sealing, streaming, single pages and handshakes on this machine.

    All contenders run interleaved in one run; figures are medians with quartiles, targets are judged by the ratio of
    neighbouring rounds. The platform is SIMULATED: that changes where evidence comes from, not what is verified.

    \b
    Examples:
      pagegate bench --quick
      pagegate bench --check --out bench.json
      pagegate bench --files /var/lib/pagegate --out files.json
      pagegate bench --isolation --out isolation.json
    """
    console = Console(stderr=as_json)
    rounds, size = (3, 16) if quick else (9, 128)
    if files is not None:
        results = bench_files.run(files, rounds, size, _say)
    elif isolation:
        results = bench_isolation.run(rounds, size, _say)
    else:
        warn_simulated("this benchmark")
        with tempfile.TemporaryDirectory(prefix="pagegate-bench-") as temporary:
            results = run(Path(temporary), rounds, size, _say)
    text = json.dumps(results.to_json(), indent=2)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        click.echo(text)
    else:
        _show(console, results)
    if check and not all(target.met for target in results.targets):
        context.exit(EXIT_REJECTED)


def _say(line: str) -> None:
    click.echo(f"· {line}", err=True)


def _show(console: Console, results: Results) -> None:
    console.print(", ".join(f"{key} {value}" for key, value in results.machine.items()), style="dim", highlight=False)
    figures = Table(title="Measured", title_justify="left")
    for column in ("what", "median", "quartiles", "unit"):
        figures.add_column(column, justify="left" if column in ("what", "unit") else "right")
    for name, series in results.series.items():
        low, high = series.spread
        figures.add_row(name.replace("_", " "), f"{series.median:.2f}", f"{low:.2f} to {high:.2f}", series.unit)
    console.print(figures)
    if not results.targets:
        return
    targets = Table(title="Targets", title_justify="left")
    for column in ("what", "found", "target", "met"):
        targets.add_column(column)
    for target in results.targets:
        bound = f"at {'most' if target.at_most else 'least'} {target.limit:g}"
        targets.add_row(
            target.name, f"{target.value:.2f}", bound, "[green]yes[/green]" if target.met else "[red]no[/red]"
        )
    console.print(targets)
