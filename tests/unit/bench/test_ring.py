"""The ring's benchmark: what its program reports, and the plot made of it."""

import json
import xml.etree.ElementTree as ET

import pytest

from pagegate.bench import ring
from pagegate.errors import PagegateError

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def figures() -> ring.RingFigures:
    return ring.measure(2, 1)


def test_measure_when_run_reports_every_size_both_ways(figures):
    assert figures.sizes == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    for pages in figures.sizes:
        for reverse in (False, True):
            rates = figures.gbps(pages, reverse=reverse)
            assert len(rates) == 2
            assert min(rates) > 0


def test_latency_when_measured_is_in_order(figures):
    ordered = [figures.latency_us(name) for name in ("p25", "median", "p75", "p99", "p999")]
    for one_round in zip(*ordered, strict=True):
        assert one_round[0] > 0
        assert list(one_round) == sorted(one_round)


def test_json_when_made_holds_quartiles_and_load(figures):
    made = json.loads(json.dumps(figures.to_json()))
    assert made["rounds"] == 2
    assert {"median", "q1", "q3"} == set(made["one_page_us"]["p99"])
    row = made["throughput"][0]
    assert (row["pages"], row["from"]) == (1, "client")
    assert row["gbps"]["q1"] <= row["gbps"]["median"] <= row["gbps"]["q3"]
    assert 0 < row["cpu_receiver"] < 1.5


def test_plot_when_drawn_has_both_directions_inside_its_frame(figures):
    drawn = ET.fromstring(ring.plot(figures.to_json(), "a machine"))
    lines = [line for line in drawn.iter(f"{SVG}polyline") if len(line.get("points", "").split()) == 9]
    assert [line.get("class") for line in lines] == ["client", "server"]
    for line in lines:
        for point in line.get("points", "").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 640
            assert 0 <= y <= 360


def test_main_when_given_files_writes_json_and_plot(tmp_path):
    ring.main(["--rounds=1", "--mebibytes=1", f"--json={tmp_path / 'r.json'}", f"--plot={tmp_path / 'r.svg'}"])
    assert json.loads((tmp_path / "r.json").read_text())["machine"]["cpu"]
    assert (tmp_path / "r.svg").read_text().startswith("<svg")


def test_measure_when_the_program_fails_says_what_it_said():
    with pytest.raises(PagegateError, match="usage") as caught:
        ring.measure(0, 0)
    assert caught.value.reason == "BENCH_PROGRAM"
