"""Pages through shared memory between two processes: seal to verified write, acknowledged.

The measuring is done in C (enclave_bridge/bench/bench_ring.c says what is in a figure); this module runs it,
summarises its rounds and draws the plot of the documentation:

    python -m pagegate.bench.ring --rounds 9 --mebibytes 256 --json docs/benchmarks/ring.json --plot docs/img/ring.svg
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import enclave_bridge as eb
from pagegate.bench import program

_PROGRAM = "pagegate-bench-ring"
MEDIAN_LIMIT_US, P99_LIMIT_US, GBPS_LIMIT = 10.0, 38.0, 20.0
"""What this project has promised; the rate is for batches of 1 MiB, each way."""


def _summary(values: Sequence[float]) -> dict[str, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": statistics.median(values), "q1": low, "q3": high}


@dataclass(frozen=True, slots=True)
class RingFigures:
    """All rounds of one run."""

    realtime: bool
    """True when the processes ran at real-time priority, so that other work on the machine counts less."""
    latency: Sequence[Mapping[str, float]]
    throughput: Sequence[Mapping[str, Any]]

    def latency_us(self, quantile: str) -> list[float]:
        """A quantile ("median", "p99") of one page's round trip, a round each, in microseconds."""
        return [round_[f"{quantile}_ns"] / 1e3 for round_ in self.latency]

    def gbps(self, pages: int, *, reverse: bool) -> list[float]:
        """Plaintext rate in messages of so many pages, a round each; reverse is from server to client."""
        return [float(r["gbps"]) for r in self._of(pages, reverse=reverse)]

    def _of(self, pages: int, *, reverse: bool) -> list[Mapping[str, Any]]:
        return [r for r in self.throughput if (r["pages"], r["reverse"]) == (pages, reverse)]

    @property
    def sizes(self) -> list[int]:
        """Pages a message, ascending."""
        return sorted({int(r["pages"]) for r in self.throughput})

    def to_json(self) -> dict[str, Any]:
        """The figures with their spread over rounds."""
        return {
            "realtime": self.realtime,
            "rounds": len(self.latency),
            "one_page_us": {name: _summary(self.latency_us(name)) for name in ("p25", "median", "p75", "p99", "p999")},
            "one_page_cpu": {
                side: _summary([r[side] for r in self.latency]) for side in ("cpu_sender", "cpu_receiver")
            },
            "throughput": [
                {
                    "pages": pages,
                    "from": "server" if reverse else "client",
                    "gbps": _summary(self.gbps(pages, reverse=reverse)),
                    **{
                        side: statistics.median(r[side] for r in self._of(pages, reverse=reverse))
                        for side in ("cpu_sender", "cpu_receiver")
                    },
                }
                for reverse in (False, True)
                for pages in self.sizes
            ],
        }


def measure(rounds: int, mebibytes: int) -> RingFigures:
    """Runs the program. Raises PagegateError BENCH_PROGRAM when it fails."""
    found = program.measure(_PROGRAM, str(rounds), str(mebibytes))
    return RingFigures(found["realtime"], found["latency"], found["throughput"])


# ---- plot ---------------------------------------------------------------------------------

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 40, 48
_STYLE = """\
text { font: 13px sans-serif; fill: #24292f } .title { font-size: 15px; font-weight: bold }
.grid { stroke: #d0d7de } .goal { stroke: #cf222e; stroke-dasharray: 6 4 } .client { stroke: #0969da; fill: #0969da }
.server { stroke: #1a7f37; fill: #1a7f37 } polyline { stroke-width: 2; fill: none !important } .spread { stroke-width: 1 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .grid { stroke: #444c56 } }
"""


def plot(figures: Mapping[str, Any], machine: str) -> str:
    """An SVG of `RingFigures.to_json`: rate by pages a message, each way, quartiles as bars."""
    rows = figures["throughput"]
    sizes = sorted({row["pages"] for row in rows})
    top = 10 * (1 + int(max([GBPS_LIMIT] + [row["gbps"]["q3"] for row in rows]) // 10))
    x = _scale(0, max(len(sizes) - 1, 1), _LEFT, _WIDTH - _RIGHT)
    y = _scale(0, top, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="20">Sealed pages through the shared-memory ring, Gbps of plaintext</text>',
    ]
    for value in range(0, top + 1, 10):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value)}" y2="{y(value)}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{value}</text>')
    for index, pages in enumerate(sizes):
        parts.append(f'<text x="{x(index)}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{pages}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 8}">4 KiB pages a message; {machine}</text>')
    goal = y(GBPS_LIMIT)
    parts.append(f'<line class="goal" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{goal}" y2="{goal}"/>')
    for number, side in enumerate(("client", "server")):
        of_side = {row["pages"]: row["gbps"] for row in rows if row["from"] == side}
        points = " ".join(f"{x(index)},{y(of_side[pages]['median'])}" for index, pages in enumerate(sizes))
        parts.append(f'<polyline class="{side}" points="{points}"/>')
        for index, pages in enumerate(sizes):
            low, high = y(of_side[pages]["q1"]), y(of_side[pages]["q3"])
            parts.append(f'<line class="{side} spread" x1="{x(index)}" x2="{x(index)}" y1="{low}" y2="{high}"/>')
        parts.append(f'<text x="{_WIDTH - 150}" y="{_HEIGHT - _BOTTOM - 34 + 18 * number}">from the {side}</text>')
        at = _HEIGHT - _BOTTOM - 38 + 18 * number
        parts.append(f'<polyline class="{side}" points="{_WIDTH - 180},{at} {_WIDTH - 158},{at}"/>')
    return "\n".join([*parts, "</svg>", ""])


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: round(start + (value - low) * (end - start) / (high - low), 1)


def main(arguments: Sequence[str]) -> None:
    """The command of the module's text."""
    from pagegate.bench.run import describe_machine  # noqa: PLC0415 - it imports this module

    parser = argparse.ArgumentParser(prog="python -m pagegate.bench.ring", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    with eb.Bridge(max_sessions=1, max_handshakes=1) as bridge:
        machine = describe_machine(bridge.info)
    figures = {"machine": machine, **measure(options.rounds, options.mebibytes).to_json()}
    options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        options.plot.write_text(plot(figures, f"{machine['cpu']}, {machine['kernel']}"), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
