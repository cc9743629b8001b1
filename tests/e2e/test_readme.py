"""The client example of the README, run as printed against a real server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagegate.demo.run import POLICY
from pagegate.platforms.simulated import measurement_of

README = Path(__file__).resolve().parents[2] / "README.md"


def example() -> str:
    """The only fenced Python block of the README."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(code)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where server and example run: it holds policy.yaml and, once the server runs, state/."""
    server, client = (measurement_of(label).hex() for label in (b"page-server", b"trading-engine"))
    (tmp_path / "policy.yaml").write_text(POLICY.format(server=server, client=client, region="book"), encoding="utf-8")
    return tmp_path


@pytest.fixture
def target(directory: Path) -> Iterator[str]:
    """Address of a server started with the README's options."""
    command = [sys.executable, "-m", "pagegate", "serve", "--platform=simulated", "--allow-simulated", "--offline"]
    options = ["--simulated-workload=page-server", "--state-dir=state", "--policy=policy.yaml", "--region=book=1MiB"]
    with (directory / "server.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, *options, "--listen=127.0.0.1:0"], cwd=directory, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on "), (directory / "server.log").read_text(encoding="utf-8")
            yield line.removeprefix("listening on ").strip()
        finally:
            process.terminate()
            process.communicate(timeout=30)


def test_client_example_of_the_readme_when_run_as_printed_moves_a_page(directory: Path, target: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", example(), target],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "generation 1: 1 page sent, first bytes b'bid 101.25 x 300'\n"


def test_client_example_of_the_readme_when_counted_has_about_ten_lines() -> None:
    assert len([line for line in example().splitlines() if line]) <= 11


def test_links_of_the_readme_when_followed_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
