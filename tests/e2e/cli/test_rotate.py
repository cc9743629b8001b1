"""A firmware update under a running server: `pagegate rotate` beside real `pagegate serve`, with a KDS of our own."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from endorsement_support.kds import FakeKds
from endorsement_support.simulated import serve_root
from pagegate.audit import AuditReader
from pagegate.client import Client
from pagegate.config import PeerConfig, PlatformName
from pagegate.connect import connect
from pagegate.demo.run import CLIENT_WORKLOAD
from pagegate.platforms.simulated import SimulatedRoot
from pagegate.platforms.simulated.products import Tcb
from support.certificates import self_signed

RAISED = Tcb(5, 0, 25, 220)


@pytest.fixture
def kds() -> Iterator[FakeKds]:
    with FakeKds() as server:
        yield server


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def readiness(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        return int(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="readiness")).status)


def test_rotate_when_firmware_is_updated_under_a_server_then_sessions_attest_again_and_go_on(
    site, serving, pagegate, kds: FakeKds, simulated_root: SimulatedRoot
) -> None:
    chip = f"server-{time.time_ns()}"
    serve_root(kds, simulated_root, simulated_root.chip(chip))
    online = [flag for flag in site.flags if flag != "--offline"] + [f"--kds-url={kds.url}", f"--simulated-chip={chip}"]
    flags = [flag for flag in site.server_flags() if flag != "--offline"] + online
    server = serving(*flags)
    config = PeerConfig(
        platform=PlatformName.SIMULATED,
        allow_simulated=True,
        simulated_root=simulated_root._directory,
        simulated_workload=CLIENT_WORKLOAD,
        policy=site.policy,
        state_dir=site.directory / "client",
    )
    with connect(server.address, config, {"book": "write"}) as client:
        client.send("book", b"a" * 4096)
        before = client.session
        old_tcb = _tcb(client)
        # The watch has looked once: from now on it knows which certificate endorsed this machine.
        wait_for(lambda: kds.requests != [], server.log)
        simulated_root.update_firmware(chip, RAISED)
        serve_root(kds, simulated_root, simulated_root.chip(chip))
        done = pagegate("rotate", "endorsements", *online)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: "must attest again" in server.log.read_text(), server.log)
        assert client.send("book", b"b" * 4096).generation == 2
        assert client.session.session_id != before.session_id
        assert _tcb(client) != old_tcb
        assert readiness(server.address) == health_pb2.HealthCheckResponse.SERVING
    log = AuditReader.open(str(site.directory / "state" / "audit.sqlite"))
    rotations = [entry for entry in log.entries() if entry.kind == "rotation"]
    assert [entry.details["closed"] for entry in rotations] == [1]


def _tcb(client: Client) -> object:
    claims = client.session.peer.claims
    assert claims is not None
    return claims.details["reported_tcb"]


def test_serve_when_policy_insists_on_a_crl_that_is_not_to_be_had_then_is_not_ready(site, serving) -> None:
    site.policy.write_text(site.policy.read_text() + "revocation:\n  mode: hard\n")
    server = serving(*site.server_flags())
    wait_for(lambda: readiness(server.address) == health_pb2.HealthCheckResponse.NOT_SERVING, server.log)
    assert "SNP_CRL_MISSING" in server.log.read_text()


def test_serve_when_hung_up_on_then_looks_at_its_own_evidence_at_once(
    site, serving, simulated_root: SimulatedRoot
) -> None:
    chip = f"server-{time.time_ns()}"
    server = serving(*site.server_flags(), f"--simulated-chip={chip}")
    wait_for((simulated_root._directory / "chips" / chip).exists, server.log)
    wait_for(lambda: "SNP_CRL_MISSING" in server.log.read_text(), server.log)
    simulated_root.update_firmware(chip, RAISED)
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "must attest again" in server.log.read_text(), server.log)
    entries = AuditReader.open(str(site.directory / "state" / "audit.sqlite")).entries()
    assert json.loads(next(e for e in entries if e.kind == "rotation").body())["details"]["closed"] == 0


def test_rotate_tls_when_a_server_runs_then_new_connections_see_the_new_certificate(
    site, serving, pagegate, tmp_path: Path
) -> None:
    for name in ("tls", "new"):
        certificate, key = self_signed()
        (tmp_path / f"{name}.pem").write_bytes(certificate)
        (tmp_path / f"{name}.key").write_bytes(key)
    installed = [f"--tls-cert={tmp_path / 'tls.pem'}", f"--tls-key={tmp_path / 'tls.key'}"]
    server = serving(*site.server_flags(), *installed)

    def send() -> int:
        pinned = f"--tls-server-cert={tmp_path / 'new.pem'}"
        return pagegate("send", server.address, "book", "-", pinned, *site.client_flags, stdin=b"x").returncode

    assert send() == 1
    new = [str(tmp_path / "new.pem"), str(tmp_path / "new.key")]
    assert pagegate("rotate", "tls", *new, *installed).returncode == 0
    wait_for(lambda: "new connections get it" in server.log.read_text(), server.log)
    assert send() == 0
