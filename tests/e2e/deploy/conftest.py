"""Tools that `.ci/deploy` brings, and what they make of deploy/."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

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
