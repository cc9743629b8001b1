"""`pagegate demo` and `pagegate bench` do what the README says."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[bytes]]
_PATIENCE = 240
"""Seconds after which a benchmark is taken to hang: one takes ten, and many times that where its processes, which wait awake,
have to share two cores with other tests."""


def names(trace: dict) -> set[str]:
    return {span["name"] for span in trace["spans"]}


def test_demo_when_run_moves_the_heap_and_refuses_every_attack(pagegate: Run):
    done = pagegate("demo", "--json", "--mib", "4")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["passed"]
    assert result["simulated"]
    assert result["transfer"]["sha256_client"] == result["transfer"]["sha256_server"]
    assert [a["reason"] for a in result["attacks"]] == [
        "TAMPERED",
        "REPLAYED",
        "SESSION_UNKNOWN",
        "EVIDENCE_REJECTED:SNP_MEASUREMENT",
        "EVIDENCE_REJECTED:SNP_REPORT_DATA",
    ]


def test_demo_when_run_shows_one_trace_over_both_processes(pagegate: Run):
    trace = json.loads(pagegate("demo", "--json", "--mib", "1").stdout)["trace"]
    assert set(trace["services"]) == {"pagegate-client", "pagegate-server"}
    assert {
        "pagegate.send",
        "pagegate.client.attest",
        "pagegate.client.appraise",
        "pagegate.server.appraise",
        "pagegate.client.send",
        "pagegate.bridge.seal",
        "pagegate.v1.PageTransfer/TransferPages",
        "pagegate.bridge.open",
        "pagegate.server.commit",
    } <= names(trace)
    roots = [span for span in trace["spans"] if span["depth"] == 0]
    assert [root["name"] for root in roots] == ["pagegate.send"]


def test_demo_when_for_a_person_says_simulated_and_shows_the_tables(pagegate: Run, tmp_path: Path):
    done = pagegate("demo", "--mib", "1", "--directory", str(tmp_path / "kept"))
    text = done.stdout.decode()
    assert done.returncode == 0, text
    assert "SIMULATED" in text
    assert "a tampered page" in text
    assert "All as it should be." in text
    assert (tmp_path / "kept" / "policy.yaml").exists()


def test_bench_when_quick_reports_every_series_and_target(pagegate: Run, tmp_path: Path):
    done = pagegate("bench", "--quick", "--json", "--out", str(tmp_path / "bench.json"), patience=_PATIENCE)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "bench.json").read_text())
    assert {"stream_sealed", "stream_unsealed", "stream_tls", "unary_sealed", "unary_bare", "handshake_cpu"} <= set(
        result["series"]
    )
    assert {"stream_ring", "ring_one_page", "ring_one_page_p99", "ring_to_server", "ring_to_client"} <= set(
        result["series"]
    )
    assert {"stream_isolated", "stream_ring_isolated", "load_stream_sealed", "kernel_openssl_seal"} <= set(
        result["series"]
    )
    assert len(result["targets"]) == 12
    assert all(series["median"] > 0 for series in result["series"].values())


def test_bench_of_isolation_when_quick_reports_every_way(pagegate: Run):
    done = pagegate("bench", "--quick", "--json", "--isolation", patience=_PATIENCE)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["series"]) - {"line_turn"} == {
        f"{operation}_{pages}_{way}"
        for pages in (1, 64, 256)
        for way in ("in_process", "in_process_alone", "isolated")
        for operation in ("open", "seal_from", "seal")
    } | {f"open_{pages}_after_pause_{way}" for pages in (1, 64, 256) for way in ("in_process_alone", "isolated")}
    assert ("line_turn" in result["series"]) == (len(os.sched_getaffinity(0)) > 1)
    assert len(result["targets"]) == 6
    assert all(series["median"] > 0 for series in result["series"].values())


def test_bench_of_files_when_quick_reports_every_way_to_read_and_write(pagegate: Run, tmp_path: Path):
    done = pagegate("bench", "--quick", "--json", "--files", str(tmp_path), patience=_PATIENCE)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    series = report["series"]
    for way in ("io_uring", "pread", "mapping"):
        for state in ("cold", "warm"):
            assert series[f"read {state}: {way}"]["unit"] == "GB/s"
            assert series[f"read {state}: {way}"]["median"] > 0
            assert series[f"read {state}: {way}, CPU"]["rounds"] == 3
    assert {name for name in series if name.endswith("after fsync")} == {
        "write: pwrite, sent to the disk by the way, after fsync",
        "write: pwrite, all left to fsync, after fsync",
        "write: mapping, after fsync",
    }
    assert not report["simulated"]
    assert report["targets"] == []
    assert list(tmp_path.iterdir()) == []
