"""A whole handshake over real gRPC."""

from __future__ import annotations

from pagegate.client import Client
from pagegate.evidence.model import AccessMode
from pagegate.server import Server


def test_attest_when_both_sides_are_believed_then_both_hold_one_session(client: Client, server: Server) -> None:
    established = client.attest()
    live = server.sessions.get(established.session_id)
    assert live.verdict.identity == "client"
    assert established.peer.identity == "server"
    assert live.established.suite == established.suite


def test_attest_when_granted_then_the_regions_are_those_of_the_server(client: Client, server: Server) -> None:
    regions = client.attest().regions
    assert {(r.name, r.base_gpa, r.pages, r.mode) for r in regions.values()} == {
        ("book", 1 << 32, 256, AccessMode.READ_WRITE),
        ("disk", 1 << 33, 256, AccessMode.READ_WRITE),
    }


def test_attest_when_evidence_is_simulated_then_both_sides_say_so(client: Client, server: Server) -> None:
    established = client.attest()
    assert established.simulated
    assert server.sessions.get(established.session_id).established.simulated
