"""The Compose file for a laptop: valid by the Compose specification, and its two peers really talk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import yaml

from .conftest import DEPLOY, free_port

HOME = DEPLOY / "compose"
COMPOSE = yaml.safe_load((HOME / "compose.yaml").read_text())


def test_compose_file_when_checked_is_valid_by_the_specification(tools: Path):
    schema = json.loads((tools / "schemas" / "compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(COMPOSE)


def test_compose_file_when_read_says_that_it_is_simulated():
    assert (HOME / "compose.yaml").read_text().startswith("# SIMULATED")
    assert "simulated" in COMPOSE["name"]


def test_compose_file_when_it_mounts_files_names_real_ones():
    mounts = [volume.split(":") for service in COMPOSE["services"].values() for volume in service["volumes"]]
    for source, *_ in mounts:
        assert source in COMPOSE["volumes"] or (HOME / source).is_file(), source


def test_peers_when_run_as_the_file_says_move_pages(simulated_root, tmp_path: Path):
    port = free_port()
    ours = {
        "PAGEGATE_LISTEN": f"127.0.0.1:{port}",
        "PAGEGATE_HEALTH_LISTEN": f"127.0.0.1:{free_port()}",
        "PAGEGATE_PROMETHEUS_PORT": str(free_port()),
        "PAGEGATE_PROMETHEUS_HOST": "127.0.0.1",
        "PAGEGATE_POLICY": str(HOME / "policy.yaml"),
        "PAGEGATE_STATE_DIR": str(tmp_path),
        "PAGEGATE_SIMULATED_ROOT": str(simulated_root._directory),
    }

    def peer(name: str) -> tuple[list[str], dict[str, str]]:
        service = COMPOSE["services"][name]
        said = {key: value for key, value in service["environment"].items() if key != "PAGEGATE_OTLP_ENDPOINT"}
        command = [word.replace("server:7443", f"127.0.0.1:{port}") for word in service["command"]]
        return [sys.executable, "-m", "pagegate", *command], {**os.environ, **said, **ours, "PYTHONUNBUFFERED": "1"}

    command, environment = peer("server")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("listening on ")
            command, environment = peer("client")
            client = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
            assert client.returncode == 0, client.stderr
            assert "committed to book as generation 1" in client.stdout
        finally:
            server.terminate()
