"""Traces as facts: trees, bounds, drawing, JSON, held-back spans, the receiver's hostile input."""

from __future__ import annotations

import io
import json
from unittest import mock

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, AlwaysRecordSampler
from rich.console import Console

from pagegate.errors import ConfigError
from pagegate.telemetry import processors
from pagegate.telemetry.processors import RefusalKeeper
from pagegate.telemetry.receiver import MAX_SERIES, OtlpReceiver
from pagegate.telemetry.records import EventRecord, SpanRecord, TraceRecord, TraceRecorder
from pagegate.telemetry.tree import human_time, print_trace, trace_json

TRACE = "ab" * 16


def span(ident: str, parent: str | None = None, begin: int = 0, end: int = 100, **more: object) -> SpanRecord:
    known: dict[str, object] = {"name": ident, "kind": "internal", "service": "s", "trace_id": TRACE, **more}
    return SpanRecord(span_id=ident, parent_id=parent, start_ns=begin, end_ns=end, **known)  # type: ignore[arg-type]


def names(trace: TraceRecord) -> list[tuple[int, str]]:
    return [(depth, record.span_id) for root in trace.roots() for depth, record in root.walk()]


def test_roots_when_nested_then_children_are_in_order_of_start() -> None:
    trace = TraceRecord(TRACE, (span("c", "a", 50), span("a"), span("b", "a", 10), span("d", "b", 11)))
    assert names(trace) == [(0, "a"), (1, "b"), (2, "d"), (1, "c")]


def test_roots_when_parent_is_unknown_then_is_a_root() -> None:
    assert names(TraceRecord(TRACE, (span("b", "gone", 5), span("a")))) == [(0, "a"), (0, "b")]


def test_roots_when_parents_form_a_cycle_then_every_span_appears_once() -> None:
    trace = TraceRecord(TRACE, (span("a", "b"), span("b", "a", 1), span("c", "c", 2), span("d", "b", 3)))
    assert sorted(name for _, name in names(trace)) == ["a", "b", "c", "d"]


def test_roots_when_same_span_comes_twice_then_appears_once() -> None:
    assert names(TraceRecord(TRACE, (span("a"), span("a")))) == [(0, "a")]


def test_roots_when_very_deep_then_no_recursion_limit() -> None:
    spans = tuple(span(f"{i:05}", f"{i - 1:05}" if i else None, i) for i in range(1200))
    trace = TraceRecord(TRACE, spans)
    assert names(trace)[-1] == (1199, "01199")
    print_trace(trace, Console(file=io.StringIO(), width=100))


def test_recorder_when_too_many_traces_then_oldest_goes() -> None:
    recorder = TraceRecorder(max_traces=2)
    for trace in ("a", "b", "a", "c"):
        recorder.add(span("x", trace_id=trace))
    assert [trace.trace_id for trace in recorder.traces()] == ["c", "a"]
    assert recorder.trace("b") is None


def test_recorder_when_trace_is_too_long_then_details_go_and_are_counted() -> None:
    recorder = TraceRecorder(max_spans=3)
    for i in range(5):
        recorder.add(span(f"d{i}", "root"))
    recorder.add(span("bad", "root", error=True))
    recorder.add(span("root"))
    (trace,) = recorder.traces()
    assert {record.span_id for record in trace.spans} == {"d0", "bad", "root"}
    assert trace.dropped == 4


def test_recorder_when_it_would_keep_nothing_then_value_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        TraceRecorder(max_traces=0)


@pytest.mark.parametrize(
    ("nanoseconds", "shown"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1500, "1.5 µs"),
        (2_340_000, "2.34 ms"),
        (999_600, "1 ms"),
        (61_500_000_000, "61.50 s"),
    ],
)
def test_human_time_when_given_then_three_digits_and_a_unit(nanoseconds: int, shown: str) -> None:
    assert human_time(nanoseconds) == shown


def test_print_trace_when_drawn_then_bars_show_when_and_how_long() -> None:
    out = io.StringIO()
    trace = TraceRecord(
        TRACE,
        (
            span("a", None, 0, 1000, name="send", service="trader"),
            span("b", "a", 500, 1000, name="open", service="server", error=True, attributes={"error.type": "TAMPERED"}),
        ),
        dropped=4,
    )
    print_trace(trace, Console(file=out, width=100))
    heading, _, first, second, more = out.getvalue().splitlines()
    assert "trader → server" in heading
    assert first.endswith("█" * 20)
    assert "└─ open ✗ TAMPERED" in second
    assert second.endswith(" " * 10 + "█" * 10)
    assert "4 more spans" in more


def test_trace_json_when_made_then_is_json_with_times_from_the_start() -> None:
    event = EventRecord("refused", 150, {"pagegate.reason": "TAMPERED", "pagegate.failures": ("A",)})
    trace = TraceRecord(TRACE, (span("a", None, 100, 300, events=(event,), attributes={"pagegate.failures": ("A",)}),))
    data = json.loads(json.dumps(trace_json(trace)))
    assert data["refusals"] == ["TAMPERED"]
    (only,) = data["spans"]
    assert (only["start_ns"], only["duration_ns"], only["events"][0]["at_ns"]) == (0, 200, 50)


# -- held-back spans -----------------------------------------------------------------------------


def keeping(max_waiting: int) -> tuple[TracerProvider, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=AlwaysRecordSampler(ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(RefusalKeeper(SimpleSpanProcessor(exporter), max_waiting))
    return provider, exporter


def test_keeper_when_full_then_forgets_the_oldest_spans_only() -> None:
    provider, exporter = keeping(max_waiting=2)
    tracer = provider.get_tracer("t")
    with tracer.start_as_current_span("root") as root:
        for i in range(4):
            tracer.start_span(f"s{i}").end()
        root.add_event("refused")
    assert [s.name for s in exporter.get_finished_spans()] == ["s2", "s3", "root"]
    assert all(s.context.trace_flags.sampled for s in exporter.get_finished_spans())


def test_keeper_when_many_traces_wait_then_memory_is_bounded() -> None:
    provider, exporter = keeping(max_waiting=8)
    tracer = provider.get_tracer("t")
    for _ in range(100):
        tracer.start_span("unsampled").end()
    (keeper,) = provider._active_span_processor._span_processors
    assert isinstance(keeper, RefusalKeeper)
    assert (len(keeper._waiting), keeper._waiting_spans) == (8, 8)
    assert exporter.get_finished_spans() == ()


def test_keeper_when_many_traces_are_promoted_then_memory_is_bounded() -> None:
    provider, exporter = keeping(max_waiting=8)
    tracer = provider.get_tracer("t")
    with mock.patch.object(processors, "MAX_PROMOTED", 4):
        for _ in range(10):
            with tracer.start_as_current_span("refused") as refused:
                refused.add_event("refused")
    (keeper,) = provider._active_span_processor._span_processors
    assert isinstance(keeper, RefusalKeeper)
    assert len(keeper._promoted) == 4
    assert len(exporter.get_finished_spans()) == 10


# -- the receiver --------------------------------------------------------------------------------


def export_spans(
    receiver: OtlpReceiver, request: trace_service_pb2.ExportTraceServiceRequest
) -> trace_service_pb2.ExportTraceServiceResponse:
    with grpc.insecure_channel(receiver.endpoint.removeprefix("http://")) as channel:
        call = channel.unary_unary(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            request_serializer=trace_service_pb2.ExportTraceServiceRequest.SerializeToString,
            response_deserializer=trace_service_pb2.ExportTraceServiceResponse.FromString,
        )
        return call(request, timeout=10)  # type: ignore[no-any-return]


def test_receiver_when_ids_have_wrong_length_then_rejects_those_spans_and_says_so() -> None:
    request = trace_service_pb2.ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"short", span_id=b"x" * 8, name="bad")
    good = spans.add(trace_id=b"t" * 16, span_id=b"x" * 8, name="good", kind=99)
    for key, value in {"int_value": 1, "double_value": 0.5, "bool_value": True, "bytes_value": b"secret"}.items():
        setattr(good.attributes.add(key=key).value, key, value)
    good.attributes.add(key="list").value.array_value.values.add(string_value="a")
    good.attributes.add(key="none")
    with OtlpReceiver() as receiver:
        response = export_spans(receiver, request)
        (trace,) = receiver.traces()
    assert response.partial_success.rejected_spans == 1
    (record,) = trace.spans
    assert (record.name, record.kind, record.service) == ("good", "internal", "unknown")
    assert record.attributes == {
        "int_value": 1,
        "double_value": 0.5,
        "bool_value": True,
        "bytes_value": "(bytes_value)",
        "list": ("a",),
        "none": "(empty)",
    }


def test_receiver_when_message_is_too_long_then_refused_and_goes_on() -> None:
    request = trace_service_pb2.ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(name="x" * (5 << 20))
    with OtlpReceiver() as receiver:
        with pytest.raises(grpc.RpcError) as caught:
            export_spans(receiver, request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert export_spans(receiver, trace_service_pb2.ExportTraceServiceRequest()).partial_success.rejected_spans == 0


def test_receiver_when_many_series_then_memory_is_bounded() -> None:
    request = metrics_service_pb2.ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    metrics.add(name="summary").summary.data_points.add(count=1)
    metrics.add(name="gauge").gauge.data_points.add(as_double=2.5)
    for i in range(MAX_SERIES + 10):
        metrics.add(name=f"m{i}").sum.data_points.add(as_int=i)
    with OtlpReceiver() as receiver:
        with grpc.insecure_channel(receiver.endpoint.removeprefix("http://")) as channel:
            channel.unary_unary("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export")(
                request.SerializeToString(), timeout=20
            )
        series = receiver.metrics
    assert len(series) == MAX_SERIES
    assert series["unknown", "gauge", ()] == 2.5


def test_receiver_when_spans_do_not_come_then_wait_ends_with_what_is_here() -> None:
    with OtlpReceiver() as receiver:
        assert receiver.wait_for(TRACE, 1, timeout=0.05) is None


def test_receiver_when_port_is_taken_then_config_error() -> None:
    with OtlpReceiver() as receiver:
        with pytest.raises(ConfigError) as caught:
            OtlpReceiver(int(receiver.endpoint.rpartition(":")[2]))
        assert caught.value.reason == "TELEMETRY_RECEIVER"
