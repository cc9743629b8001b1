"""What a server learns of its own trust: metrics, warnings, readiness, rotation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pagegate.client import Client
from pagegate.endorsements import Cache
from pagegate.endorsements.content import parse_crl
from pagegate.errors import PlatformError
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.model import Evidence, EvidenceType, KeyKind
from pagegate.evidence.policy import Policy
from pagegate.operate.upkeep import Upkeep
from pagegate.platforms.simulated import SimulatedPlatform, SimulatedRoot
from pagegate.platforms.simulated.products import Tcb
from pagegate.rpc.events import ServerEvent
from pagegate.server import READINESS, Server
from pagegate.telemetry import Telemetry, TelemetrySettings
from support.appraiser import appraiser_for
from support.platforms import CLIENT, SERVER, Guests

RAISED = Tcb(5, 0, 25, 220)
HEALTH = health_pb2.HealthCheckResponse


class Gauges(dict[tuple[str, str], float]):
    """What was recorded, by metric and its one label."""

    def record(self, name: str, value: float, attributes: Any = None) -> None:
        self[name, next(iter((attributes or {}).values()), "")] = value


class Broken:
    """A platform whose firmware does not answer."""

    name, evidence_type, simulated = "broken", EvidenceType.SEV_SNP, True

    def attest(self, report_data: bytes) -> Evidence:
        raise PlatformError("FIRMWARE", "no answer")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    opened = Cache(tmp_path / "endorsements.sqlite", max_bytes=1 << 20)
    yield opened
    opened.close()


@pytest.fixture
def strict(appraiser: EvidenceAppraiser) -> EvidenceAppraiser:
    """Without a fresh CRL nothing is believed."""
    assert appraiser.policy is not None
    rules = appraiser.policy.model_dump(exclude_unset=True, mode="json") | {"revocation": {"mode": "hard"}}
    return appraiser.with_policy(Policy.model_validate(rules))


@pytest.fixture
def gauges() -> Gauges:
    return Gauges()


@pytest.fixture
def upkeep(platform_for: Guests, appraiser: EvidenceAppraiser, cache: Cache, gauges: Gauges) -> Callable[..., Upkeep]:
    def make(**kw: Any) -> Upkeep:
        platform = kw.pop("platform", None) or platform_for(SERVER)
        judged = kw.pop("appraiser", appraiser)
        return Upkeep(platform, lambda: judged, cache, gauges, **kw)  # type: ignore[arg-type]

    return make


def health(server: Server, service: str) -> int:
    with grpc.insecure_channel(server.address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status


def test_look_when_all_is_well_then_ready_and_measured(upkeep, server: Server, gauges: Gauges) -> None:
    upkeep().look(server)
    assert gauges["pagegate.ready", ""] == 1
    assert {label for name, label in gauges if name == "pagegate.own.remaining"} == {"ARK", "ASK", "VCEK", "CRL"}
    assert 6 * 365 * 86400 < gauges["pagegate.own.remaining", "VCEK"] < 7 * 365 * 86400
    assert health(server, READINESS) == HEALTH.SERVING


def test_look_when_the_cache_holds_parts_then_their_ages_and_ends_are_measured(
    upkeep, server: Server, gauges: Gauges, cache: Cache, simulated_root: SimulatedRoot
) -> None:
    now = time.time()
    cache.put(parse_crl(simulated_root.crl_der, KeyKind.VCEK), source="test", now=now, fetched_at=now - 500)
    upkeep().look(server)
    assert gauges["pagegate.endorsement.age", "crl"] == pytest.approx(500, abs=60)
    assert gauges["pagegate.endorsement.remaining", "crl"] > 86400
    assert ("pagegate.endorsement.age", "leaf") not in gauges


def test_look_when_policy_insists_on_a_crl_and_there_is_none_then_not_ready_but_serving(
    upkeep, server: Server, gauges: Gauges, strict: EvidenceAppraiser, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(SimulatedRoot, "crl_der", b"not a list")
    upkeep(appraiser=strict).look(server)
    assert gauges["pagegate.ready", ""] == 0
    assert health(server, READINESS) == HEALTH.NOT_SERVING
    assert health(server, "pagegate.v1.Attestation") == HEALTH.NOT_SERVING
    assert health(server, "pagegate.v1.PageTransfer") == HEALTH.SERVING
    assert health(server, "") == HEALTH.SERVING
    assert "SNP_CRL_MISSING" in caplog.text


def test_look_when_the_crl_comes_back_then_ready_again(upkeep, server: Server, strict, monkeypatch, caplog) -> None:
    watch = upkeep(appraiser=strict)
    with monkeypatch.context() as patched:
        patched.setattr(SimulatedRoot, "crl_der", b"not a list")
        watch.look(server)
    with caplog.at_level(logging.INFO):
        watch.look(server)
    assert health(server, READINESS) == HEALTH.SERVING
    assert "nothing is left to warn of" in caplog.text


def test_look_when_policy_only_wants_a_crl_and_there_is_none_then_warned_once_and_ready(
    upkeep, server: Server, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(SimulatedRoot, "crl_der", b"not a list")
    watch = upkeep()
    watch.look(server)
    watch.look(server)
    assert health(server, READINESS) == HEALTH.SERVING
    assert caplog.text.count("SNP_CRL_MISSING") == 1


def test_look_when_own_certificate_is_revoked_then_not_ready(
    upkeep, server: Server, tmp_path_factory: pytest.TempPathFactory, simulated_root: SimulatedRoot
) -> None:
    import shutil

    home = tmp_path_factory.mktemp("revoked") / "root"
    shutil.copytree(simulated_root._directory, home)
    root = SimulatedRoot.open_or_create(home, progress=lambda _: None)
    platform = Guests(root)(SERVER)
    root.revoke(platform.chip.certificates[0])
    believes = appraiser_for(root, {SERVER: {}})
    upkeep(platform=platform, appraiser=believes).look(server)
    assert health(server, READINESS) == HEALTH.NOT_SERVING


def test_look_when_own_policy_does_not_name_this_machine_then_ready(upkeep, server: Server, simulated_root) -> None:
    upkeep(appraiser=appraiser_for(simulated_root, {CLIENT: {}})).look(server)
    assert health(server, READINESS) == HEALTH.SERVING


def test_look_when_the_end_is_near_then_warned_before(upkeep, server: Server, caplog) -> None:
    upkeep(warn_before=timedelta(days=8 * 365)).look(server)
    assert "VCEK of this machine's own evidence ends in" in caplog.text
    assert health(server, READINESS) == HEALTH.SERVING


def test_look_when_the_platform_gives_no_evidence_then_not_ready(upkeep, server: Server, caplog) -> None:
    upkeep(platform=Broken()).look(server)
    assert health(server, READINESS) == HEALTH.NOT_SERVING
    assert "FIRMWARE" in caplog.text


@pytest.fixture
def updatable(simulated_root: SimulatedRoot) -> SimulatedPlatform:
    """The server's guest on a chip of its own, whose firmware can be updated."""
    chip = simulated_root.chip(f"updatable-{time.time_ns()}")
    return SimulatedPlatform(chip, measurement=Guests.measurement(SERVER), follow=simulated_root.as_it_runs)


def test_look_when_firmware_was_updated_then_sessions_attest_again(
    upkeep, serve, connect, updatable: SimulatedPlatform, simulated_root: SimulatedRoot
) -> None:
    events: list[ServerEvent] = []
    server: Server = serve(platform=updatable)
    client: Client = connect(server)
    watch: Upkeep = upkeep(platform=updatable, observer=events.append)
    watch.look(server)
    first = client.session.session_id
    simulated_root.update_firmware(updatable.chip.name, RAISED)
    watch.look(server, anew=True)
    assert [(event.kind, event.details["closed"]) for event in events] == [("rotation", 1)]
    assert len(server.sessions) == 0
    assert client.send("book", bytes(4096)).pages == 1
    assert client.session.session_id != first
    tcb = client.session.peer.claims.details["reported_tcb"]  # type: ignore[union-attr]
    assert "220" in str(tcb)


def test_look_when_nothing_changed_then_sessions_stay(upkeep, server: Server, client: Client) -> None:
    watch: Upkeep = upkeep()
    watch.look(server)
    client.attest()
    watch.look(server, anew=True)
    assert len(server.sessions) == 1


def test_look_when_a_new_revocation_list_came_then_sessions_attest_again_under_it(
    upkeep, server: Server, client: Client, cache: Cache, simulated_root: SimulatedRoot
) -> None:
    events: list[ServerEvent] = []
    watch: Upkeep = upkeep(observer=events.append)
    first = parse_crl(simulated_root.crl_der, KeyKind.VCEK)
    cache.put(first, source="test", now=time.time())
    watch.look(server)
    client.attest()
    watch.look(server)
    assert len(server.sessions) == 1
    cache.put(replace(first, made_at=first.made_at + timedelta(hours=1)), source="test", now=time.time())
    watch.look(server)
    assert len(server.sessions) == 0
    assert [dict(event.details) for event in events] == [{"crl": "Milan vcek", "closed": 1}]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_watch_when_asked_then_makes_new_evidence(
    upkeep, serve, connect, updatable: SimulatedPlatform, simulated_root: SimulatedRoot, gauges: Gauges
) -> None:
    server: Server = serve(platform=updatable)
    client: Client = connect(server)
    watch: Upkeep = upkeep(platform=updatable, notice_s=0.02)
    watch.start(server)
    try:
        wait_until(lambda: ("pagegate.ready", "") in gauges)
        client.attest()
        simulated_root.update_firmware(updatable.chip.name, RAISED)
        watch.ask()
        wait_until(lambda: len(server.sessions) == 0)
    finally:
        watch.stop()


def test_watch_when_a_look_fails_then_goes_on(upkeep, server: Server, gauges: Gauges, monkeypatch, caplog) -> None:
    watch: Upkeep = upkeep(notice_s=0.02, every_s=0.02)
    real, failures = watch.look, [RuntimeError("once")]

    def look(server: Server, *, anew: bool = False) -> None:
        if failures:
            raise failures.pop()
        real(server, anew=anew)

    monkeypatch.setattr(watch, "look", look)
    watch.start(server)
    try:
        wait_until(lambda: ("pagegate.ready", "") in gauges)
    finally:
        watch.stop()
    assert "trying again" in caplog.text


def test_gauges_when_recorded_by_real_telemetry_then_their_names_are_listed(
    platform_for: Guests, appraiser: EvidenceAppraiser, cache: Cache, server: Server, simulated_root: SimulatedRoot
) -> None:
    cache.put(parse_crl(simulated_root.crl_der, KeyKind.VCEK), source="test", now=datetime.now(UTC).timestamp())
    telemetry = Telemetry.start(TelemetrySettings("test", strict=True))
    try:
        Upkeep(platform_for(SERVER), lambda: appraiser, cache, telemetry).look(server)
    finally:
        telemetry.shutdown()
