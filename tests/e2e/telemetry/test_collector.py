"""A trading service, a real server, a real transfer between them, and a real OpenTelemetry Collector that saw one trace."""

from __future__ import annotations

from typing import Any

import pytest

from pagegate.telemetry.receiver import OtlpReceiver

from .conftest import BATCHES, Publish

pytestmark = pytest.mark.timeout(900)  # the first run builds the Collector

ATTEST, PAGES = "pagegate.v1.Attestation/Attest", "pagegate.v1.PageTransfer/TransferPages"
INTERNAL, SERVER, CLIENT = 1, 2, 3
OURS, TRADING, THEIRS = "pagegate-client", "trading-service", "pagegate-server"
STAGES = ("endorsements", "chain", "signature", "policy")

ROOT = (TRADING, "publish order book", INTERNAL)
SEND = (OURS, "pagegate.client.send", INTERNAL)
HANDSHAKE = (OURS, "pagegate.client.attest", INTERNAL)
ASKED, ANSWERED = (OURS, ATTEST, CLIENT), (THEIRS, ATTEST, SERVER)
JUDGED, JUDGES = (THEIRS, "pagegate.server.appraise", INTERNAL), (OURS, "pagegate.client.appraise", INTERNAL)
SENT, TAKEN = (OURS, PAGES, CLIENT), (THEIRS, PAGES, SERVER)
HANDSHAKE_TREE = {
    # (service, span, kind): (service, span, kind) of its parent
    HANDSHAKE: SEND,
    ASKED: HANDSHAKE,
    ANSWERED: ASKED,
    (THEIRS, "pagegate.server.evidence", INTERNAL): ANSWERED,
    JUDGES: ASKED,
    **{(OURS, f"pagegate.appraise.{stage}", INTERNAL): JUDGES for stage in STAGES},
    (OURS, "pagegate.client.evidence", INTERNAL): ASKED,
    JUDGED: ANSWERED,
    **{(THEIRS, f"pagegate.appraise.{stage}", INTERNAL): JUDGED for stage in STAGES},
}
TREE = {
    ROOT: None,
    SEND: ROOT,
    **HANDSHAKE_TREE,
    SENT: SEND,
    (OURS, "pagegate.bridge.seal", INTERNAL): SENT,
    TAKEN: SENT,
    (THEIRS, "pagegate.bridge.open", INTERNAL): TAKEN,
    (THEIRS, "pagegate.server.commit", INTERNAL): TAKEN,
}
REFUSED_TREE = {SEND: ROOT, **HANDSHAKE_TREE}
# Each side looks at the chain twice (certificates, then the list); a batch is a span on each side.
SPANS = len(TREE) + 2 + 2 * (BATCHES - 1)


def tree(spans: list[dict[str, Any]]) -> dict[Any, Any]:
    by_id = {span["spanId"]: (span["service"], span["name"], span["kind"]) for span in spans}
    return {by_id[span["spanId"]]: by_id.get(span.get("parentSpanId", "")) for span in spans}


def texts(attributes: list[dict[str, Any]]) -> dict[str, str]:
    return {item["key"]: item["value"].get("stringValue", "") for item in attributes}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_collector_when_a_service_publishes_then_has_one_trace_from_its_own_span_to_the_commit(
    collector, publish: Publish, protocol: str
) -> None:
    endpoint = collector.grpc if protocol == "grpc" else collector.http
    trace_id = publish(collector.grpc, endpoint, protocol)
    assert tree(collector.wait_for_spans(trace_id, SPANS)) == TREE
    assert {"pagegate.pages", "pagegate.ready", "rpc.server.call.duration"} <= collector.metrics()


def test_collector_when_batches_cross_then_each_is_linked_to_its_transfer_and_timed_in_c(
    collector, publish: Publish
) -> None:
    spans = collector.wait_for_spans(publish(collector.grpc), SPANS)
    ids = {(span["service"], span["name"], span["kind"]): span["spanId"] for span in spans}
    for name, transfer in (("pagegate.bridge.seal", SEND), ("pagegate.bridge.open", TAKEN)):
        batches = [span for span in spans if span["name"] == name]
        assert len(batches) == BATCHES
        assert [[link["spanId"] for link in span["links"]] for span in batches] == [[ids[transfer]]] * BATCHES
        assert all(int(span["endTimeUnixNano"]) > int(span["startTimeUnixNano"]) for span in batches)


def test_collector_when_latencies_are_exported_then_their_exemplars_name_the_trace(collector, publish: Publish) -> None:
    trace_id = publish(collector.grpc)
    collector.wait_for_spans(trace_id, SPANS)
    exemplars = collector.exemplars()
    for metric in (
        "pagegate.handshake.duration",
        "pagegate.appraisal.duration",
        "pagegate.bridge.duration",
        "rpc.server.call.duration",
        "rpc.client.call.duration",
    ):
        assert trace_id in exemplars.get(metric, set()), metric


def test_collector_when_refused_and_sampled_out_then_whole_trace_comes_with_every_reason(
    collector, publish: Publish
) -> None:
    trace_id = publish(collector.grpc, ratio=0.0, workload="stranger")
    # The trading service's own span is its own to sample; the chain is looked at twice.
    spans = collector.wait_for_spans(trace_id, len(REFUSED_TREE) + 2)
    assert tree(spans) == {**REFUSED_TREE, SEND: None}
    (judged,) = [span for span in spans if span["name"] == "pagegate.server.appraise"]
    refusals = [texts(event["attributes"]) for event in judged["events"] if event["name"] == "refused"]
    # Two identities, neither of which is the stranger's.
    assert [one["pagegate.reason"] for one in refusals] == ["SNP_MEASUREMENT"] * 2
    assert all("found" in one["pagegate.message"] for one in refusals)
    (answered,) = [span for span in spans if span["name"] == ATTEST and span["kind"] == SERVER]
    assert texts(answered["attributes"])["rpc.response.status_code"] == "PERMISSION_DENIED"
    assert [texts(event["attributes"])["pagegate.reason"] for event in answered["events"]] == ["EVIDENCE_REJECTED"]


def test_collector_when_sampled_out_and_accepted_then_no_trace_comes(collector, publish: Publish) -> None:
    dropped = publish(collector.grpc, ratio=0.0)
    kept = publish(collector.grpc)
    assert len(collector.wait_for_spans(kept, SPANS)) == SPANS
    assert collector.spans(dropped) == []


def test_own_receiver_when_a_service_publishes_then_has_the_same_trace(publish: Publish) -> None:
    with OtlpReceiver() as receiver:
        trace = receiver.wait_for(publish(receiver.endpoint), SPANS)
    assert trace is not None
    kinds = {"internal": INTERNAL, "server": SERVER, "client": CLIENT}
    by_id = {span.span_id: (span.service, span.name, kinds[span.kind]) for span in trace.spans}
    assert {by_id[span.span_id]: by_id.get(span.parent_id or "") for span in trace.spans} == TREE
    assert set(trace.services) == {TRADING, OURS, THEIRS}
