"""The benchmark of what telemetry costs runs, both sides of it, and says what it found. Its figures are no test's."""

from __future__ import annotations

import json

import pytest

from pagegate.bench import telemetry
from pagegate.bench.telemetry import LIMIT, Overhead, main


def test_overhead_when_measured_briefly_then_both_sides_were_measured(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--restarts", "1", "--rounds", "2", "--mebibytes", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["rounds"], found["mebibytes"], found["limit"]) == (2, 1, LIMIT)
    for name in ("cpu_without", "cpu_with", "rate_without", "rate_with"):
        low, middle, high = found[name]
        assert 0 < low <= middle <= high
    assert code == (0 if found["met"] else 2)


@pytest.mark.parametrize(("added", "code"), [(0.01, 0), (0.05, 2)])
def test_overhead_when_shown_then_has_medians_with_their_spread_and_judges_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, added: float, code: int
) -> None:
    found = Overhead(8, 64, (1, 2, 3), (1, 2, 3), (1, 2, 3), (1, 2, 3), (0.0, added, 0.1), (0.0, 0.0, 0.0))
    monkeypatch.setattr(telemetry, "measure", lambda *_: found)
    assert main([]) == code
    assert "2.000 (1.000 to 3.000) s of processor a GiB" in capsys.readouterr().out
