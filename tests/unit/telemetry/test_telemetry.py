"""The three verbs, seen at a real OTLP receiver and in the recorder."""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from pagegate.errors import ConfigError, HandshakeError
from pagegate.telemetry import NO_TELEMETRY, Telemetry, TelemetrySettings, TraceContext, Tracing, rpc_attributes
from pagegate.telemetry.guard import MAX_TEXT, TelemetryMisuseError
from pagegate.telemetry.receiver import OtlpReceiver
from pagegate.telemetry.records import SpanRecord

SEND = "pagegate.client.send"
SEAL = "pagegate.client.evidence"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    started = Telemetry.start(TelemetrySettings("test", strict=True))
    yield started
    started.shutdown()


def recorded(telemetry: Telemetry) -> dict[str, SpanRecord]:
    assert telemetry.recorder is not None
    return {span.name: span for trace in telemetry.recorder.traces() for span in trace.spans}


def test_span_when_nested_then_is_a_child_of_the_current(telemetry: Telemetry) -> None:
    with telemetry.span(SEND), telemetry.span(SEAL):
        pass
    spans = recorded(telemetry)
    assert spans[SEAL].parent_id == spans[SEND].span_id
    assert spans[SEND].parent_id is None


def test_span_when_parent_is_given_from_another_thread_then_is_its_child(telemetry: Telemetry) -> None:
    def work(parent: TraceContext | None) -> None:
        with telemetry.span(SEAL, parent=parent):
            pass

    with telemetry.span(SEND) as span:
        thread = threading.Thread(target=work, args=(span.context,))
        thread.start()
        thread.join()
    spans = recorded(telemetry)
    assert spans[SEAL].parent_id == spans[SEND].span_id


def test_span_when_linked_then_names_the_other_span(telemetry: Telemetry) -> None:
    with telemetry.span(SEND) as transfer:
        assert transfer.context is not None
    with telemetry.span("pagegate.bridge.open", links=[transfer.context]):
        pass
    assert recorded(telemetry)["pagegate.bridge.open"].links == (transfer.context.span_id,)


def test_span_when_set_and_event_then_both_are_recorded(telemetry: Telemetry) -> None:
    with telemetry.span(SEND, {"pagegate.region": "book"}, kind="client") as span:
        span.set({"pagegate.pages": 16, "pagegate.failures": ["A", "B"]})
        span.event("retry", {"pagegate.attempt": 2})
    record = recorded(telemetry)[SEND]
    assert record.attributes == {"pagegate.region": "book", "pagegate.pages": 16, "pagegate.failures": ("A", "B")}
    assert record.kind == "client"
    assert [(event.name, event.attributes["pagegate.attempt"]) for event in record.events] == [("retry", 2)]


def test_span_when_pagegate_error_leaves_then_carries_reason_and_message(telemetry: Telemetry) -> None:
    with pytest.raises(HandshakeError), telemetry.span(SEND):
        raise HandshakeError("STALE", "evidence is 400 s old, the limit is 300 s")
    record = recorded(telemetry)[SEND]
    assert record.error
    assert record.attributes["error.type"] == "STALE"
    assert record.message == "evidence is 400 s old, the limit is 300 s [STALE]"


def test_span_when_another_error_leaves_then_carries_its_class_only(telemetry: Telemetry) -> None:
    with pytest.raises(ValueError, match="secret"), telemetry.span(SEND):
        raise ValueError("secret page bytes")
    record = recorded(telemetry)[SEND]
    assert (record.error, record.message, record.events) == (True, "ValueError", ())


def test_span_when_generator_is_closed_then_is_no_error(telemetry: Telemetry) -> None:
    def stream() -> Iterator[int]:
        with telemetry.span(SEND):
            yield 1

    running = stream()
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert not recorded(telemetry)[SEND].error


def test_refused_when_called_then_is_event_and_error(telemetry: Telemetry) -> None:
    with telemetry.span("pagegate.server.commit") as span:
        span.refused("TAMPERED", "tag of page 3 does not verify")
    record = recorded(telemetry)["pagegate.server.commit"]
    assert record.refusals == ("TAMPERED",)
    assert record.error


def test_timed_span_when_made_then_ended_now_and_lasted_what_c_measured(telemetry: Telemetry) -> None:
    with telemetry.span("pagegate.server.commit"):
        telemetry.timed_span("pagegate.bridge.open", {"pagegate.pages": 256}, nanoseconds=123_456)
    spans = recorded(telemetry)
    timed = spans["pagegate.bridge.open"]
    assert timed.duration_ns == 123_456
    assert timed.parent_id == spans["pagegate.server.commit"].span_id
    assert timed.end_ns <= spans["pagegate.server.commit"].end_ns + 1_000_000


def test_start_when_used_then_sets_nothing_global(telemetry: Telemetry) -> None:
    from opentelemetry import metrics, trace

    with telemetry.span(SEND):
        telemetry.count("pagegate.pages", 1)
    assert type(trace.get_tracer_provider()).__module__ == "opentelemetry.trace"
    assert "sdk" not in type(metrics.get_meter_provider()).__module__


def test_import_when_only_no_telemetry_is_named_then_sdk_is_not_loaded() -> None:
    script = (
        "import sys; from pagegate.telemetry import NO_TELEMETRY; print(any('opentelemetry' in m for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- the list of names ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"key", bytearray(b"key"), memoryview(b"key"), [b"key"], {"a": 1}, object(), None])
@pytest.mark.parametrize("strict", [True, False])
def test_attribute_when_bytes_or_object_then_refused_in_every_mode(value: object, strict: bool) -> None:
    telemetry = Telemetry.start(TelemetrySettings("test", strict=strict))
    with telemetry.span(SEND) as span, pytest.raises(TelemetryMisuseError):
        span.set({"pagegate.region": value})  # type: ignore[dict-item]
    telemetry.shutdown()


def test_names_when_unlisted_and_strict_then_raise(telemetry: Telemetry) -> None:
    with pytest.raises(TelemetryMisuseError, match="span"), telemetry.span("pagegate.nonsense"):
        pass
    with telemetry.span(SEND) as span:
        with pytest.raises(TelemetryMisuseError, match="attribute"):
            span.set({"pagegate.key": "x"})
        with pytest.raises(TelemetryMisuseError, match="event"):
            span.event("nonsense")
    with pytest.raises(TelemetryMisuseError, match="metric for count"):
        telemetry.count("pagegate.handshake.duration", 1)
    with pytest.raises(TelemetryMisuseError, match="metric for record"):
        telemetry.record("pagegate.pages", 1.0)
    with pytest.raises(TelemetryMisuseError, match="attribute of metric"):
        telemetry.count("pagegate.pages", 1, {"pagegate.session.id": "aa"})


def test_names_when_unlisted_and_not_strict_then_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry.start(TelemetrySettings("test"))
    for _ in range(3):
        with telemetry.span(SEND, {"pagegate.key": "x", "pagegate.region": "book"}) as span:
            span.event("nonsense")
        telemetry.count("pagegate.nonsense", 1)
        telemetry.record("pagegate.nonsense.too", 1)
    record = recorded(telemetry)[SEND]
    assert (record.attributes, record.events) == ({"pagegate.region": "book"}, ())
    assert len(caplog.records) == 4
    telemetry.shutdown()


def test_attribute_when_text_is_long_then_cut(telemetry: Telemetry) -> None:
    with telemetry.span(SEND, {"pagegate.message": "x" * 5000}):
        pass
    cut = recorded(telemetry)[SEND].attributes["pagegate.message"]
    assert isinstance(cut, str)
    assert len(cut) == MAX_TEXT


def test_rpc_attributes_when_given_a_method_then_follow_the_conventions(telemetry: Telemetry) -> None:
    with telemetry.span(
        "pagegate.v1.Attestation/Attest", rpc_attributes("/pagegate.v1.Attestation/Attest"), kind="server"
    ):
        pass
    attributes = recorded(telemetry)["pagegate.v1.Attestation/Attest"].attributes
    assert attributes == {"rpc.system.name": "grpc", "rpc.method": "pagegate.v1.Attestation/Attest"}


# -- W3C trace context ---------------------------------------------------------------------------


def test_metadata_when_in_a_span_then_extracts_to_its_context(telemetry: Telemetry) -> None:
    with telemetry.span(SEND) as span:
        found = telemetry.extract(telemetry.metadata())
    assert found is not None
    assert span.context is not None
    assert (found.trace_id, found.span_id, found.sampled, found.remote) == (
        span.context.trace_id,
        span.context.span_id,
        True,
        True,
    )


def test_metadata_when_outside_a_span_then_empty(telemetry: Telemetry) -> None:
    assert telemetry.metadata() == ()


def test_metadata_when_caller_has_baggage_then_it_does_not_leave(telemetry: Telemetry) -> None:
    from opentelemetry import baggage, context

    token = context.attach(baggage.set_baggage("account", "42"))
    with telemetry.span(SEND):
        keys = [key for key, _ in telemetry.metadata()]
    context.detach(token)
    assert keys == ["traceparent"]


def test_extract_when_tracestate_is_given_then_it_is_passed_on(telemetry: Telemetry) -> None:
    parent = telemetry.extract([("user-agent", "x"), ("traceparent", TRACEPARENT), ("tracestate", "vendor=1")])
    with telemetry.span(SEND, parent=parent):
        passed = dict(telemetry.metadata())
    assert passed["tracestate"] == "vendor=1"
    assert passed["traceparent"].split("-")[1] == TRACE


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        [("traceparent", "")],
        [("traceparent", "nonsense")],
        [("traceparent", f"ff-{TRACE}-{SPAN}-01")],
        [("traceparent", f"00-{'0' * 32}-{SPAN}-01")],
        [("traceparent", f"00-{TRACE}-{'0' * 16}-01")],
        [("traceparent", f"00-{TRACE}-{SPAN}")],
        [("traceparent", TRACEPARENT.encode())],
        [("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)],
        [("traceparent", TRACEPARENT + "-" + "0" * 200)],
        [("traceparent", TRACEPARENT), ("tracestate", "a=" + "x" * 600)],
    ],
)
def test_extract_when_absent_or_hostile_then_none(
    telemetry: Telemetry, metadata: list[tuple[str, str | bytes]] | None
) -> None:
    assert telemetry.extract(metadata) is None


# -- sampling ------------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as running:
        yield running


def exporting(receiver: OtlpReceiver, **more: object) -> Telemetry:
    return Telemetry.start(
        TelemetrySettings("pagegate-server", otlp_endpoint=receiver.endpoint, strict=True, **more)  # type: ignore[arg-type]
    )


def test_sampling_when_ratio_is_zero_then_nothing_is_sent(receiver: OtlpReceiver) -> None:
    telemetry = exporting(receiver, sample_ratio=0.0)
    with telemetry.span(SEND), telemetry.span(SEAL):
        pass
    telemetry.shutdown()
    assert receiver.traces() == ()


def test_sampling_when_refused_then_whole_trace_is_sent_though_sampled_out(receiver: OtlpReceiver) -> None:
    telemetry = exporting(receiver, sample_ratio=0.0)
    with telemetry.span(SEND):
        with telemetry.span(SEAL):
            pass
        with telemetry.span("pagegate.server.commit") as span:
            span.event("refused", {"pagegate.reason": "TAMPERED"})
        with telemetry.span("pagegate.client.receive"):
            pass
    telemetry.shutdown()
    (trace,) = receiver.traces()
    assert {span.name for span in trace.spans} == {SEND, SEAL, "pagegate.server.commit", "pagegate.client.receive"}
    assert trace.refusals == ("TAMPERED",)


def test_sampling_when_caller_did_not_sample_then_neither_do_we(receiver: OtlpReceiver) -> None:
    telemetry = exporting(receiver, sample_ratio=1.0)
    with telemetry.span(SEND, parent=TraceContext(TRACE, SPAN, sampled=False, remote=True)):
        pass
    telemetry.shutdown()
    assert receiver.traces() == ()


def test_sampling_when_caller_sampled_then_so_do_we(receiver: OtlpReceiver) -> None:
    telemetry = exporting(receiver, sample_ratio=0.0)
    with telemetry.span(SEND, parent=TraceContext(TRACE, SPAN, sampled=True, remote=True)):
        pass
    telemetry.shutdown()
    assert [trace.trace_id for trace in receiver.traces()] == [TRACE]


# -- metrics and exporters -----------------------------------------------------------------------


def test_metrics_when_exported_then_arrive_with_their_attributes(receiver: OtlpReceiver) -> None:
    telemetry = exporting(receiver)
    telemetry.count("pagegate.pages", 16, {"pagegate.direction": "in", "pagegate.region": "book"})
    telemetry.count("pagegate.sessions.live", 1, {"pagegate.role": "server"})
    telemetry.count("pagegate.sessions.live", -1, {"pagegate.role": "server"})
    telemetry.record("pagegate.handshake.duration", 0.012, {"pagegate.role": "server"})
    assert telemetry.flush()
    metrics = receiver.metrics
    service = "pagegate-server"
    assert metrics[service, "pagegate.pages", (("pagegate.direction", "in"), ("pagegate.region", "book"))] == 16
    assert metrics[service, "pagegate.sessions.live", (("pagegate.role", "server"),)] == 0
    assert metrics[service, "pagegate.handshake.duration", (("pagegate.role", "server"),)] == 1
    telemetry.shutdown()


def test_histogram_when_in_a_sampled_span_then_has_an_exemplar_of_it() -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider

    reader = InMemoryMetricReader()
    telemetry = Telemetry(
        TracerProvider(shutdown_on_exit=False), MeterProvider([reader], shutdown_on_exit=False), None, None, strict=True
    )
    with telemetry.span(SEND) as span:
        telemetry.record("pagegate.handshake.duration", 0.012)
        assert span.context is not None
    data = reader.get_metrics_data()
    assert data is not None
    (point,) = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert f"{point.exemplars[0].span_id:016x}" == span.context.span_id
    telemetry.shutdown()


def test_prometheus_when_asked_for_then_serves_the_metrics() -> None:
    telemetry = Telemetry.start(TelemetrySettings("test", prometheus_port=0, strict=True))
    telemetry.count("pagegate.refusals", 3, {"pagegate.reason": "TAMPERED"})
    port = telemetry.prometheus_port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    assert 'pagegate_refusals_total{pagegate_reason="TAMPERED"} 3.0' in text
    with pytest.raises(ConfigError, match="cannot listen"):
        Telemetry.start(TelemetrySettings("test", prometheus_port=port))
    telemetry.shutdown()
    assert Telemetry.start(TelemetrySettings("test")).prometheus_port is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (TelemetrySettings("x", sample_ratio=1.5), "TELEMETRY_SAMPLE_RATIO"),
        (TelemetrySettings("x", sample_ratio=float("nan")), "TELEMETRY_SAMPLE_RATIO"),
        (TelemetrySettings("x", otlp_endpoint="localhost:4317"), "TELEMETRY_ENDPOINT"),
        (TelemetrySettings("x", otlp_endpoint="http://"), "TELEMETRY_ENDPOINT"),
        (TelemetrySettings("x", otlp_endpoint="http://h:99999"), "TELEMETRY_ENDPOINT"),
        (TelemetrySettings("x", otlp_endpoint="http://h:1", otlp_protocol="json"), "TELEMETRY_PROTOCOL"),  # type: ignore[arg-type]
    ],
)
def test_start_when_setting_is_unusable_then_config_error(settings: TelemetrySettings, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Telemetry.start(settings)
    assert caught.value.reason == reason


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_shutdown_when_endpoint_is_dead_then_returns_and_calls_never_fail(protocol: str) -> None:
    telemetry = Telemetry.start(
        TelemetrySettings("x", otlp_endpoint="http://127.0.0.1:9", otlp_protocol=protocol, export_timeout=0.5)  # type: ignore[arg-type]
    )
    with telemetry.span(SEND):
        telemetry.count("pagegate.pages", 1)
    telemetry.shutdown()
    telemetry.shutdown()
    with telemetry.span(SEND):
        telemetry.count("pagegate.pages", 1)
    assert telemetry.flush()


def test_console_tree_when_on_then_prints_each_trace(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry = Telemetry.start(TelemetrySettings("trader", console_tree=True, recent_traces=0))
    assert telemetry.recorder is None
    with telemetry.span(SEND), telemetry.span(SEAL):
        pass
    printed = capsys.readouterr().err
    assert f"└─ {SEAL}" in printed
    telemetry.shutdown()


def test_no_telemetry_when_called_then_does_nothing() -> None:
    nothing: Tracing = NO_TELEMETRY
    with nothing.span("anything", {"any": "thing"}) as span:
        span.set({})
        span.event("x")
        span.refused("X")
        span.error("X")
        assert span.context is None
        nothing.timed_span("x", nanoseconds=1)
        nothing.count("x")
        nothing.record("x", 1.0)
    assert nothing.metadata() == ()
    assert nothing.extract([("traceparent", TRACEPARENT)]) is None
    assert nothing.flush()
    nothing.shutdown()


def test_no_telemetry_when_error_leaves_then_lets_it_go() -> None:
    with pytest.raises(KeyError), NO_TELEMETRY.span("x"):
        raise KeyError
