"""A protected file-backed region after SIGKILL at every single change of a file, and in the middle of every write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "kill_at.so"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", library, HERE / "kill_at.c", "-ldl"], check=True)
    return library


@pytest.mark.parametrize(("torn", "at_least"), [(0, 80), (1, 20)], ids=["before a change", "in the middle of a write"])
def test_restart_when_killed_anywhere_has_each_acknowledged_write_and_nothing_half(
    shim: Path, tmp_path: Path, torn: int, at_least: int
):
    done = subprocess.run(
        [sys.executable, HERE / "crasher.py", tmp_path, str(torn)],
        env=os.environ | {"LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    deaths = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(deaths) > at_least
    assert deaths[-1]["acknowledged"] == 5
    for death in deaths:
        assert (death["protection"], death["bad"], death["bad_after"]) == ("page MACs", 0, 0), death
        assert death["state"] in (death["acknowledged"], death["acknowledged"] + 1), death
        assert death["files"] == ["current", "gen", "gen"], death
