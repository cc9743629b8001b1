"""docs/telemetry.md is made from the list of names, and says what is really exported."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from pagegate.telemetry import Telemetry, TelemetrySettings, semconv
from pagegate.telemetry.reference import main, prometheus_name, rewritten

DOCUMENT = Path(__file__).parents[3] / "docs" / "telemetry.md"


def test_document_when_checked_then_is_up_to_date() -> None:
    assert main(["--check", str(DOCUMENT)]) == 0, f"run python -m pagegate.telemetry.reference {DOCUMENT}"


def test_check_when_out_of_date_then_fails_and_rewriting_repairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "telemetry.md"
    stale.write_text(
        DOCUMENT.read_text(encoding="utf-8").replace("`pagegate.pages`", "`pagegate.sheets`", 1), encoding="utf-8"
    )
    assert main(["--check", str(stale)]) == 1
    assert "out of date" in capsys.readouterr().err
    assert main([str(stale)]) == 0
    assert main(["--check", str(stale)]) == 0


def test_rewrite_when_marks_are_missing_then_says_which() -> None:
    with pytest.raises(ValueError, match="lacks the marks"):
        rewritten("# nothing here")


def test_main_when_used_wrongly_then_says_how() -> None:
    assert main([]) == 64


def test_prometheus_names_when_every_metric_is_fed_then_are_those_exported() -> None:
    telemetry = Telemetry.start(TelemetrySettings("test", prometheus_port=0, strict=True))
    for metric in semconv.METRICS.values():
        if metric.instrument in (semconv.Instrument.COUNTER, semconv.Instrument.UP_DOWN_COUNTER):
            telemetry.count(metric.name, 1)
        else:
            telemetry.record(metric.name, 1.0)
    with urllib.request.urlopen(f"http://127.0.0.1:{telemetry.prometheus_port}/metrics", timeout=10) as response:
        families = {line.split()[2] for line in response.read().decode().splitlines() if line.startswith("# TYPE")}
    telemetry.shutdown()
    assert families - {"target_info"} == {prometheus_name(metric) for metric in semconv.METRICS.values()}


def test_metrics_when_listed_then_split_only_by_listed_attributes() -> None:
    assert {key for metric in semconv.METRICS.values() for key in metric.attributes} <= set(semconv.ATTRIBUTES)
