"""`pagegate endorsements` as an operator runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from endorsement_support import vectors
from endorsement_support.kds import FakeKds, Reply
from endorsement_support.pki import Hierarchy
from pagegate.cli import EXIT_FAILED, EXIT_NO_ENDORSEMENTS, EXIT_UNREADABLE, EXIT_USAGE, run
from pagegate.endorsements import chain_part, crl_part, leaf_part
from pagegate.evidence.model import KeyKind

REPORT = str(vectors.sev_snp() / "milan-v3-oak-cb" / "report.bin")
VLEK_REPORT = str(vectors.sev_snp() / "milan-v3-vlek-trustee" / "report.bin")
OLD_REPORT = str(vectors.sev_snp() / "milan-v2-go-sev-guest" / "report.bin")


@pytest.fixture
def milan(kds: FakeKds) -> Hierarchy:
    """A made-up Milan, CRLs included, in place of the real chain."""
    made = Hierarchy("Milan")
    for kind in KeyKind:
        kds.add(chain_part("Milan", kind), made.chain_pem(kind))
        kds.add(crl_part("Milan", kind), made.crl())
    kds.add_leaf(made.leaf())
    return made


@pytest.fixture
def command(kds: FakeKds, cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a subcommand against the test's KDS and cache."""
    monkeypatch.setenv("PAGEGATE_ENDORSEMENT_CACHE", str(cache_path))
    monkeypatch.setenv("PAGEGATE_KDS_URL", kds.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return lambda *arguments: run(["endorsements", *map(str, arguments)])


def tcb_and_chip(milan: Hierarchy) -> list[str]:
    return ["--chip-id", milan.request().chip_id.hex(), "--tcb", "bl=4,tee=0,snp=24,ucode=219"]


def test_fetch_when_all_is_to_be_had_exits_0(
    command: Any, milan: Hierarchy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("fetch", "--product", "Milan", *tcb_and_chip(milan)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["fetched"] * 3
    assert lines[-1].startswith("[3/3]")


def test_fetch_when_cached_says_so_and_does_not_ask(
    command: Any, milan: Hierarchy, kds: FakeKds, capsys: pytest.CaptureFixture[str]
) -> None:
    command("fetch", "--product", "milan")
    asked = len(kds.requests)
    capsys.readouterr()
    assert command("fetch", "--product", "milan", "--json") == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert {part["result"] for part in parts} == {"cached"}
    assert len(kds.requests) == asked == 4


def test_fetch_when_reports_are_given_fetches_their_leaves(
    command: Any, kds: FakeKds, capsys: pytest.CaptureFixture[str]
) -> None:
    other = vectors.sev_snp() / "turin-v5-oak" / "report.bin"
    assert command("fetch", REPORT, other, "--json", "--interval", "0", "--timeout", "2s") == EXIT_NO_ENDORSEMENTS
    parts = json.loads(capsys.readouterr().out)["parts"]
    failed = [part for part in parts if part["result"] == "failed"]
    assert {part["key"] for part in failed} == {"vcek/Milan/crl", "vcek/Turin/crl"}
    assert {part["reason"] for part in failed} == {"ENDORSEMENT_NOT_FOUND"}
    assert len([part for part in parts if "/leaf/" in part["key"] and part["result"] == "fetched"]) == 2


def test_fetch_when_the_report_is_version_2_asks_for_the_product(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("fetch", OLD_REPORT) == EXIT_UNREADABLE
    assert "name it: Milan or Genoa" in capsys.readouterr().err
    command("fetch", OLD_REPORT, "--product", "Milan", "--json", "--timeout", "1s")
    assert "3ac3fe21" in capsys.readouterr().out


def test_fetch_when_the_report_is_vleks_keeps_chain_and_says_where_the_leaf_is(
    command: Any, milan: Hierarchy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("fetch", VLEK_REPORT) == EXIT_NO_ENDORSEMENTS
    out = capsys.readouterr().out
    assert out.count("fetched") == 2
    assert "ENDORSEMENT_VLEK_NOT_SERVED" in out
    assert command("fetch", "--no-leaf", VLEK_REPORT) == 0


def test_fetch_when_the_queue_makes_it_wait_says_so(
    command: Any, kds: FakeKds, milan: Hierarchy, capsys: pytest.CaptureFixture[str]
) -> None:
    kds.fail(leaf_part(milan.request()), Reply(429, headers={"Retry-After": "1"}))
    assert command("fetch", "--product", "Milan", *tcb_and_chip(milan), "--interval", "0") == 0
    assert "waiting for a turn at KDS" in capsys.readouterr().err


def test_fetch_when_the_reports_chip_is_masked_keeps_chain_and_says_where_the_leaf_is(
    command: Any, milan: Hierarchy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = bytearray(Path(REPORT).read_bytes())
    report[0x1A0:0x1E0] = bytes(64)
    (tmp_path / "masked.bin").write_bytes(report)
    assert command("fetch", tmp_path / "masked.bin", "--json") == EXIT_NO_ENDORSEMENTS
    results = json.loads(capsys.readouterr().out)["parts"]
    assert [item.get("reason", item["result"]) for item in results] == ["ENDORSEMENT_CHIP_MASKED", "fetched", "fetched"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "name a report file, or --product"),
        (["--product", "Rome"], "Rome"),
        (["--product", "Milan", "--tcb", "bl=1"], "go together"),
        (["--product", "Milan", "--tcb", "bl=1", "--chip-id", "01" * 64], "bl=N,tee=N,snp=N,ucode=N"),
        (["--product", "Milan", "--tcb", "bl=1,tee=0,snp=999,ucode=1", "--chip-id", "01" * 64], "N 0..255"),
        (["--product", "Milan", "--tcb", "04" * 8, "--chip-id", "0x"], "not hex"),
        (["--product", "Milan", "--tcb", "04" * 8, "--chip-id", "01"], "1 bytes; Milan has 64"),
        (["--product", "Milan", "--tcb", "04" * 8, "--chip-id", "01" * 64], "reserved bytes"),
        ([REPORT, "--kind", "vcek"], "either REPORTS"),
        (["--product", "Milan", "--kds-url", "gopher://x"], "kds_url"),
        (["--product", "Milan", "--timeout", "soon"], "not a time"),
    ],
)
def test_fetch_when_the_command_line_is_wrong_exits_64(
    command: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
) -> None:
    assert command("fetch", *arguments) == EXIT_USAGE
    assert why in capsys.readouterr().err


def test_fetch_when_the_report_is_no_report_exits_3(command: Any, tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(bytes(10))
    assert command("fetch", tmp_path / "short.bin") == EXIT_UNREADABLE


def test_fetch_when_the_cache_cannot_be_made_exits_1(command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert command("fetch", "--product", "Milan", "--cache", tmp_path / "file" / "x.db") == EXIT_FAILED


def test_site_without_a_network_when_prepared_by_tar_has_it_all(
    command: Any, milan: Hierarchy, kds: FakeKds, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("fetch", "--product", "Milan", *tcb_and_chip(milan))
    assert command("export", tmp_path / "out") == 0
    with tarfile.open(tmp_path / "out.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "out", "out")
    asked = len(kds.requests)
    there = ("--cache", tmp_path / "there.db")
    assert command("import", tmp_path / "out.tar.gz", *there) == 0
    capsys.readouterr()
    assert command("list", "--json", *there) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [part["kind"] for part in listed["parts"]] == ["chain", "crl", "leaf"]
    assert listed["oldest_crl_age"] > 0
    assert len(kds.requests) == asked


def test_import_when_nothing_is_of_use_exits_3(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    assert command("import", tmp_path / "readme.txt") == EXIT_UNREADABLE
    assert "readme.txt: neither a certificate" in capsys.readouterr().err


def test_import_when_the_tar_is_cut_off_exits_3(command: Any, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tgz", "w:gz") as archive:
        archive.add(vectors.sev_snp() / "certs", "certs")
    data = (tmp_path / "t.tgz").read_bytes()
    (tmp_path / "t.tgz").write_bytes(data[: len(data) // 2])
    assert command("import", tmp_path / "t.tgz") == EXIT_UNREADABLE


def test_import_when_asked_for_json_tells_taken_and_refused(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("import", vectors.sev_snp() / "negative-vcek-certs", vectors.sev_snp() / "certs", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["taken"]) == 6
    assert sum("signature is not of" in why for why in result["refused"]) == 2


def test_list_when_something_has_expired_shows_it(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command("import", vectors.sev_snp() / "milan-v3-vlek-trustee")
    capsys.readouterr()
    assert command("list") == 0
    assert "EXPIRED" in capsys.readouterr().out
    assert command("list", "--expired", "--json") == 0
    assert [part["key_kind"] for part in json.loads(capsys.readouterr().out)["parts"]] == ["vlek"]


def test_list_when_the_cache_is_empty_says_so(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("list") == 0
    assert "nothing cached" in capsys.readouterr().out


def test_export_when_the_cache_is_empty_says_so(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("export", tmp_path / "out") == 0
    assert "nothing cached" in capsys.readouterr().out


def test_export_when_the_place_cannot_be_made_exits_1(command: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert command("export", tmp_path / "file" / "out") == EXIT_FAILED


def test_export_when_asked_for_json_names_the_files(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("import", vectors.sev_snp() / "turin-v5-oak")
    capsys.readouterr()
    assert command("export", tmp_path / "out", "--json") == 0
    files = [Path(item["file"]).name for item in json.loads(capsys.readouterr().out)["files"]]
    assert files == ["vcek-turin-chain.pem", "vcek-turin-3b42092f69c656d3-0001000200000047.der"]


def test_prune_when_dry_keeps_and_when_not_drops(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command("import", vectors.sev_snp() / "milan-v3-vlek-trustee")
    assert command("prune", "--expired", "--dry-run") == 0
    assert "would drop  Milan VLEK" in capsys.readouterr().out
    assert command("prune", "--expired", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["dropped"]) == 1
    assert command("prune", "--expired") == 0
    assert "0 of the cache's parts" in capsys.readouterr().out


def test_prune_when_by_size_drops_leaves_first(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command("import", vectors.sev_snp())
    capsys.readouterr()
    assert command("prune", "--max-size", "20K", "--json") == 0
    keys = [item["key"] for item in json.loads(capsys.readouterr().out)["dropped"]]
    assert keys
    assert all("/leaf/" in key for key in keys)


def test_prune_when_by_use_or_all_drops(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command("import", vectors.sev_snp() / "turin-v5-oak")
    assert command("prune", "--unused-for", "0s") == 0
    assert "1 of the cache's parts were dropped" in capsys.readouterr().out
    assert command("prune", "--unused-for", "90d") == 0
    assert command("prune", "--all") == 0
    assert "1 of the cache's parts were dropped" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--max-size", "lots"], ["--unused-for", "1y"]])
def test_prune_when_not_told_what_exits_64(command: Any, arguments: list[str]) -> None:
    assert command("prune", *arguments) == EXIT_USAGE


@pytest.mark.parametrize("name", ["fetch", "import", "list", "prune", "export"])
def test_help_when_asked_for_shows_an_example(command: Any, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert command(name, "--help") == 0
    assert f"pagegate endorsements {name}" in capsys.readouterr().out


def test_program_when_run_for_real_fetches_in_its_own_process(kds: FakeKds, milan: Hierarchy, cache_path: Path) -> None:
    program = Path(sys.executable).parent / "pagegate"
    environment = {**os.environ, "PAGEGATE_KDS_URL": kds.url, "NO_PROXY": "127.0.0.1"}
    arguments = ["endorsements", "fetch", "--product", "Milan", "--kind", "vcek", "--cache", str(cache_path)]
    done = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("fetched") == 2
