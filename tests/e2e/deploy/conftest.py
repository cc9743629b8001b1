"""Tools that `.ci/deploy` brings, and what they make of deploy/."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pagegate.platforms.simulated import SimulatedRoot

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "pagegate"
VALUES = DEPLOY / "helm" / "values"
TOOLS = ROOT / "build" / "tools"
KUBERNETES = "1.34"

Helm = Callable[..., subprocess.CompletedProcess[str]]
Manifest = dict[str, Any]


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder of tools; a machine without them skips, CI fails."""
    if not (TOOLS / "bin" / "helm.version").exists():
        message = "helm, promtool and the schemas are missing: run .ci/deploy"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return TOOLS


@pytest.fixture(scope="session")
def tool(tools: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """tool(name, *arguments): runs one of them."""

    def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [tools / "bin" / name, *arguments], capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.fixture(scope="session")
def helm(tool: Callable[..., subprocess.CompletedProcess[str]]) -> Helm:
    """helm(*arguments): `helm template` of the chart as release `t` in namespace `ns`."""

    def template(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return tool("helm", "template", "t", CHART, "--namespace=ns", f"--kube-version={KUBERNETES}.0", *arguments)

    return template


@pytest.fixture(scope="session")
def render(helm: Helm) -> Callable[..., list[Manifest]]:
    """render(*arguments): the manifests."""

    def manifests(*arguments: str | Path) -> list[Manifest]:
        done = helm(*arguments)
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    return manifests


@pytest.fixture(scope="session")
def custom_schemas(tools: Path) -> dict[tuple[str, str], Manifest]:
    """(apiVersion, kind) of each custom resource: its own operator's schema, closed to unknown fields."""
    found = {}
    for file in sorted((tools / "schemas").glob("*.yaml")):
        for crd in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            for version in crd["spec"]["versions"]:
                key = f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]
                schema = version["schema"]["openAPIV3Schema"]
                schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                found[key] = _closed(schema)
    return found


def _closed(schema: Any) -> Any:
    """Refuses unknown fields, as the API server does for CRDs in strict mode; honours int-or-string."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if "(?i)" in str(closed.get("pattern")):  # Go allows flags inside, Python at the start only
        closed["pattern"] = "(?i)" + closed["pattern"].replace("(?i)", "")
    if closed.get("x-kubernetes-int-or-string"):
        closed["type"] = ["integer", "string"]
    if (
        isinstance(closed.get("properties"), dict)
        and closed.get("type") == "object"
        and "additionalProperties" not in closed
        and not closed.get("x-kubernetes-preserve-unknown-fields")
    ):
        closed["additionalProperties"] = False
    return closed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ConfigMapVolume:
    """A ConfigMap volume as kubelet writes it: files are links through `..data`, which one rename swaps."""

    def __init__(self, directory: Path, content: dict[str, str]) -> None:
        self.directory = directory
        directory.mkdir()
        self._versions = 0
        self.update(content)
        for name in content:
            (directory / name).symlink_to(Path("..data") / name)

    def update(self, content: dict[str, str]) -> None:
        """The new content in a new directory, the link renamed over, the former directory removed."""
        self._versions += 1
        new = self.directory / f"..2026_11_23_{self._versions:09d}"
        new.mkdir()
        for name, text in content.items():
            (new / name).write_text(text)
        data, fresh = self.directory / "..data", self.directory / "..data_tmp"
        former = data.resolve() if data.is_symlink() else None
        fresh.symlink_to(new.name)
        fresh.rename(data)
        if former is not None:
            shutil.rmtree(former)


@dataclass
class Pod:
    """A server started by the chart's own configuration for values `plain`, its paths and ports moved here."""

    process: subprocess.Popen[str]
    address: str
    metrics: str
    health: str
    log: Path
    policy: ConfigMapVolume

    def scrape(self) -> str:
        with urllib.request.urlopen(self.metrics, timeout=10) as answer:
            return str(answer.read().decode())

    def wait_for_log(self, text: str) -> None:
        _wait_for(text, self.log.read_text)

    def wait_for_metric(self, line: str) -> None:
        _wait_for(f"\n{line}\n", self.scrape)


def _wait_for(text: str, read: Callable[[], str]) -> None:
    deadline = time.monotonic() + 30
    while text not in read():
        assert time.monotonic() < deadline, read()
        time.sleep(0.05)


@contextlib.contextmanager
def running_pod(manifests: list[Manifest], directory: Path, root: Path, policy: str, **more: Any) -> Iterator[Pod]:
    """A server by the options in `manifests` and `more`; ended by SIGTERM, which must end it in order."""
    maps = [manifest["data"] for manifest in manifests if manifest["kind"] == "ConfigMap"]
    options = yaml.safe_load(next(data for data in maps if "serve.yaml" in data)["serve.yaml"])
    assert options["policy"] == "/etc/pagegate/policy/policy.yaml"
    volume = ConfigMapVolume(directory / "policy", {"policy.yaml": policy})
    options |= {
        "listen": "127.0.0.1:0",
        "health_listen": f"127.0.0.1:{free_port()}",
        "prometheus_host": "127.0.0.1",
        "prometheus_port": free_port(),
        "policy": str(volume.directory / "policy.yaml"),
        "state_dir": str(directory / "state"),
        "simulated_root": str(root),
        **more,
    }
    file, log = directory / "serve.yaml", directory / "serve.log"
    file.write_text(yaml.safe_dump(options))
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "pagegate", "serve", "--config", str(file)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on "), log.read_text()
            metrics = f"http://127.0.0.1:{options['prometheus_port']}/metrics"
            address = line.strip().removeprefix("listening on ")
            yield Pod(process, address, metrics, options["health_listen"], log, volume)
        finally:
            process.terminate()
            ended = process.wait(timeout=60)
        assert ended == 0, log.read_text()


@pytest.fixture
def pod(
    render: Callable[..., list[Manifest]], simulated_root: SimulatedRoot, tmp_path: Path
) -> Iterator[Callable[[str], Pod]]:
    """pod(policy): a running server as the chart starts it for values `plain`."""
    with contextlib.ExitStack() as stack:
        manifests = render("-f", VALUES / "plain.yaml")
        yield lambda policy: stack.enter_context(running_pod(manifests, tmp_path, simulated_root._directory, policy))
