"""Gauges and the status page's facts, read from a real server."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pagegate.client import Client
from pagegate.errors import HandshakeError
from pagegate.operate.gauges import Gauges
from pagegate.operate.housekeeping import Housekeeping
from pagegate.operate.reloads import Reloads
from pagegate.operate.source import EventMemory, ServerSource, Throughput
from pagegate.server import Server
from pagegate.status import ServerState
from pagegate.status.view import status_json
from pagegate.telemetry import NO_TELEMETRY, Telemetry
from support.pages import HandStream
from support.platforms import Guests


class Shown:
    """A server with everything that is shown of it."""

    def __init__(self, serve: Callable[..., Server], telemetry: Telemetry) -> None:
        self.memory = EventMemory()
        self.server = serve(observer=self.memory.observe, telemetry=telemetry)
        self.reloads = Reloads(telemetry)
        self.reloads.first("policy")
        self.throughput = Throughput(self.server)
        self.gauges = Gauges(self.server, self.reloads, telemetry, simulated_allowed=True)
        self.source = ServerSource(
            self.server,
            self.memory,
            self.throughput,
            self.reloads,
            policy="/etc/policy.yaml",
            policy_digest=lambda: "ab" * 32,
            listening=(self.server.address,),
        )


@pytest.fixture
def shown(serve: Callable[..., Server], telemetry: Telemetry) -> Shown:
    return Shown(serve, telemetry)


def test_status_when_a_peer_is_attested_then_tells_who_it_is(shown: Shown, connect: Callable[..., Client]) -> None:
    client = connect(shown.server)
    client.send("book", b"p" * 8192)
    client.read("book")
    status = shown.source.status()
    (session,) = status.sessions
    assert (session.id, session.identity) == (client.session.session_id.hex(), "client")
    assert (session.product, session.simulated, session.pages_in, session.pages_out) == ("Milan", True, 2, 256)
    assert set(session.tcb) >= {"bootloader", "tee", "snp", "microcode"}
    assert session.measurement == Guests.measurement("client").hex()
    assert {name: mode.value for name, mode in session.grants.items()} == {"book": "read-write", "disk": "read-write"}
    assert session.expires_at is not None
    assert (status.sessions_total, status.state, status.policy_digest) == (1, ServerState.SERVING, "ab" * 32)


def test_status_when_a_transfer_runs_then_tells_how_far_it_is(shown: Shown, connect: Callable[..., Client]) -> None:
    client = connect(shown.server)
    with HandStream(client, shown.server.address) as stream:
        stream.begin()
        stream.batch(8)
        stream.commit()
        list(stream.answers())
    with HandStream(client, shown.server.address) as stream:
        stream.begin()
        book = next(region for region in shown.source.status().regions if region.name == "book")
    assert (book.generation, book.staged_pages, book.expected_pages) == (1, 0, 8)
    assert book.backing.startswith("memfd")
    assert book.committed_at is not None


def test_status_when_evidence_is_rejected_then_has_every_failed_check_and_the_trace(
    shown: Shown, connect: Callable[..., Client], platform_for: Guests, telemetry: Telemetry
) -> None:
    with pytest.raises(HandshakeError):
        connect(shown.server, platform=platform_for("stranger")).attest()
    status = shown.source.status()
    (refusal,) = status.refusals
    assert (refusal.reason, status.refusals_total) == ("EVIDENCE_REJECTED", 1)
    assert {failure.code for failure in refusal.failures} == {"SNP_MEASUREMENT"}
    assert telemetry.recorder is not None
    assert telemetry.recorder.trace(refusal.trace_id) is not None


def test_status_when_a_session_is_closed_by_policy_then_tells_whose(
    shown: Shown, connect: Callable[..., Client]
) -> None:
    from dataclasses import replace

    connect(shown.server).attest()
    shown.server.reappraise(shown.server._appraiser, lambda verdict, _: replace(verdict, accepted=False))
    (refusal,) = shown.source.status().refusals
    assert (refusal.reason, refusal.identity) == ("POLICY_CHANGED", "client")
    assert refusal.message


def test_status_when_draining_then_says_so(shown: Shown) -> None:
    shown.server.drain()
    assert shown.source.status().state is ServerState.DRAINING


def test_status_when_made_into_json_then_can_be(shown: Shown) -> None:
    shown.reloads.first("tls")
    shown.reloads.refused("tls", HandshakeError("X", "why"))
    server = status_json(shown.source.status(), ())["server"]
    assert isinstance(server, dict)
    assert server["other_problems"] == ["tls: why [X]"]


def test_throughput_when_pages_crossed_then_points_add_up(shown: Shown, connect: Callable[..., Client]) -> None:
    client = connect(shown.server)
    shown.throughput.sample()
    client.send("book", b"p" * 8192)
    shown.throughput.sample()
    client.read("book")
    shown.throughput.sample()
    points = shown.throughput.points
    assert [(p.bytes_in, p.bytes_out) for p in points] == [(0, 0), (8192, 0), (0, 256 * 4096)]


def test_gauges_when_published_then_are_what_the_server_has(
    shown: Shown, connect: Callable[..., Client], scrape: Callable[[], list[str]]
) -> None:
    client = connect(shown.server)
    client.send("book", b"p" * 4096)
    shown.gauges.publish()
    found = scrape()
    for line in (
        'pagegate_sessions_live{pagegate_role="server",pagegate_simulated="true"} 1',
        "pagegate_sessions_limit 256",
        "pagegate_streams_live 0",
        "pagegate_flight_bytes 0",
        'pagegate_region_generation{pagegate_region="book"} 1',
        'pagegate_region_generation{pagegate_region="disk"} 0',
        'pagegate_region_pages{pagegate_region="book"} 256',
        "pagegate_policy_generation 1",
        "pagegate_simulated_allowed 1",
        "pagegate_server_draining 0",
    ):
        assert line in found
    assert any(line.startswith("pagegate_bridge_info{") and line.endswith(" 1") for line in found)
    shown.server.sessions.drop(client.session.session_id)
    shown.gauges.publish()
    assert 'pagegate_sessions_live{pagegate_role="server",pagegate_simulated="true"} 0' in scrape()


def test_calls_when_served_then_their_duration_is_measured_by_status(
    shown: Shown, connect: Callable[..., Client], scrape: Callable[[], list[str]]
) -> None:
    connect(shown.server).send("book", b"p" * 4096)
    assert any(
        'rpc_method="pagegate.v1.PageTransfer/TransferPages"' in line and 'status_code="OK"' in line
        for line in scrape()
        if line.startswith("rpc_server_call_duration_seconds_count")
    )


def test_housekeeping_when_a_chore_fails_then_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    ran = threading.Semaphore(0)

    def broken() -> None:
        raise RuntimeError("no")

    with Housekeeping((broken, ran.release), every_s=0.01):
        for _ in range(2):
            assert ran.acquire(timeout=20)
    assert "a chore failed" in caplog.text


def test_memory_when_an_event_is_neither_then_ignored() -> None:
    from pagegate.rpc.events import ServerEvent

    memory = EventMemory()
    memory.observe(ServerEvent("grant", "client", {}))
    assert memory.refusals() == (0, ())
    assert NO_TELEMETRY.extract(()) is None


def test_telemetry_when_pages_cross_then_every_listed_duration_is_fed(
    shown: Shown, connect: Callable[..., Client], telemetry: Telemetry, scrape: Callable[[], list[str]]
) -> None:
    client = connect(shown.server, telemetry=telemetry)
    client.send("book", b"p" * 4096)
    client.send_page("book", 1 << 32, b"q" * 4096)
    client.read("book")
    found = "\n".join(scrape())
    for name in (
        'pagegate_appraisal_duration_seconds_count{pagegate_evidence_type="sev-snp",pagegate_verdict="accepted"}',
        'pagegate_bridge_duration_seconds_count{pagegate_bridge_operation="open"}',
        'pagegate_bridge_duration_seconds_count{pagegate_bridge_operation="seal"}',
        'pagegate_commit_duration_seconds_count{pagegate_mode="replace",pagegate_region="book"}',
        'pagegate_handshake_duration_seconds_count{pagegate_outcome="ok",pagegate_role="server"}',
        'rpc_client_call_duration_seconds_count{rpc_method="pagegate.v1.PageTransfer/GetRegion"',
    ):
        assert name in found
