"""Two real processes, a real call between them, and a real OpenTelemetry Collector that saw one trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pagegate.telemetry.receiver import OtlpReceiver

pytestmark = pytest.mark.timeout(900)  # the first run builds the Collector

PEER = Path(__file__).with_name("peer.py")
CALL = "pagegate.v1.PageTransfer/TransferPages"
TREE = {
    # (service, span, kind): (service, span, kind) of its parent
    ("trading-service", "pagegate.client.send", 1): None,
    ("trading-service", "pagegate.client.seal", 1): ("trading-service", "pagegate.client.send", 1),
    ("trading-service", "pagegate.bridge.seal", 1): ("trading-service", "pagegate.client.seal", 1),
    ("trading-service", CALL, 3): ("trading-service", "pagegate.client.send", 1),
    ("pagegate-server", CALL, 2): ("trading-service", CALL, 3),
    ("pagegate-server", "pagegate.server.open", 1): ("pagegate-server", CALL, 2),
    ("pagegate-server", "pagegate.bridge.open", 1): ("pagegate-server", "pagegate.server.open", 1),
    ("pagegate-server", "pagegate.server.commit", 1): ("pagegate-server", CALL, 2),
}


def run_peers(endpoint: str, protocol: str, *, ratio: float = 1.0, refuse: bool = False) -> str:
    """Runs server and client to their ends; returns the id of the client's trace."""
    command = [sys.executable, str(PEER)]
    common = [endpoint, protocol, str(ratio)]
    with subprocess.Popen([*command, "server", *common], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        client = subprocess.run(
            [*command, "client", *common, port, "refuse" if refuse else "send"],
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        )
        assert server.wait(timeout=60) == 0
    return client.stdout.strip()


def tree(spans) -> dict:
    by_id = {span["spanId"]: (span["service"], span["name"], span["kind"]) for span in spans}
    return {by_id[span["spanId"]]: by_id.get(span.get("parentSpanId", "")) for span in spans}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_collector_when_two_processes_export_then_has_one_trace_with_both_ends(collector, protocol):
    trace_id = run_peers(collector.grpc if protocol == "grpc" else collector.http, protocol)
    assert tree(collector.wait_for_spans(trace_id, len(TREE))) == TREE
    assert "pagegate.pages" in collector.metrics()


def test_collector_when_bridge_time_is_measured_in_c_then_span_lasts_as_long(collector):
    trace_id = run_peers(collector.grpc, "grpc")
    spans = {span["name"]: span for span in collector.wait_for_spans(trace_id, len(TREE))}
    bridge = spans["pagegate.bridge.open"]
    assert int(bridge["endTimeUnixNano"]) - int(bridge["startTimeUnixNano"]) == 5_000


def test_collector_when_refused_and_sampled_out_then_whole_trace_comes_with_its_reason(collector):
    trace_id = run_peers(collector.grpc, "grpc", ratio=0.0, refuse=True)
    spans = collector.wait_for_spans(trace_id, len(TREE))
    assert tree(spans) == TREE
    (opened,) = [span for span in spans if span["name"] == "pagegate.server.open"]
    (event,) = opened["events"]
    assert event["name"] == "refused"
    assert {item["key"]: item["value"]["stringValue"] for item in event["attributes"]} == {
        "pagegate.reason": "TAMPERED",
        "pagegate.message": "the tag of page 1 does not verify",
    }


def test_collector_when_sampled_out_and_accepted_then_no_trace_comes(collector):
    dropped = run_peers(collector.grpc, "grpc", ratio=0.0)
    kept = run_peers(collector.grpc, "grpc")
    assert len(collector.wait_for_spans(kept, len(TREE))) == len(TREE)
    assert collector.spans(dropped) == []


def test_own_receiver_when_two_processes_export_then_has_the_same_trace():
    with OtlpReceiver() as receiver:
        trace = receiver.wait_for(run_peers(receiver.endpoint, "grpc"), len(TREE))
    assert trace is not None
    kinds = {"internal": 1, "server": 2, "client": 3}
    by_id = {span.span_id: (span.service, span.name, kinds[span.kind]) for span in trace.spans}
    assert {by_id[span.span_id]: by_id.get(span.parent_id or "") for span in trace.spans} == TREE
    assert trace.services == ("trading-service", "pagegate-server")
