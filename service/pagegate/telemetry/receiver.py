"""A small OTLP/gRPC receiver on loopback: gathers the spans and metrics of several processes.

`pagegate demo` runs it so that client and server, each exporting by real OTLP, are seen as one trace.
It is a viewer's ear, not a collector: no TLS, loopback only, bounded memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, NumberDataPoint
from opentelemetry.proto.trace.v1 import trace_pb2

from pagegate.errors import ConfigError
from pagegate.telemetry.api import Value
from pagegate.telemetry.records import EventRecord, SpanRecord, TraceRecord, TraceRecorder

MAX_MESSAGE: Final = 4 << 20
"""Longest export that is taken, bytes."""
MAX_SERIES: Final = 4096
"""Metric series remembered at most."""
MAX_EVENTS: Final = 64
"""Events and links remembered a span."""

SeriesKey = tuple[str, str, tuple[tuple[str, str], ...]]
"""Service, metric name, sorted attributes."""


class OtlpReceiver:
    """A running receiver; a context manager. Implements TraceSource."""

    def __init__(self, port: int = 0, *, recorder: TraceRecorder | None = None) -> None:
        """Listens on 127.0.0.1; port 0 takes a free one.

        Raises ConfigError TELEMETRY_RECEIVER when the port cannot be had."""
        self._recorder = recorder or TraceRecorder(max_traces=256, max_spans=4096)
        self._series: dict[SeriesKey, float] = {}
        self._changed = threading.Condition()
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=2, thread_name_prefix="otlp-receiver"),
            options=[("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.so_reuseport", 0)],
        )
        traces, metrics = trace_service_pb2, metrics_service_pb2
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "opentelemetry.proto.collector.trace.v1.TraceService",
                    {
                        "Export": grpc.unary_unary_rpc_method_handler(
                            self._take_traces,
                            request_deserializer=traces.ExportTraceServiceRequest.FromString,
                            response_serializer=traces.ExportTraceServiceResponse.SerializeToString,
                        )
                    },
                ),
                grpc.method_handlers_generic_handler(
                    "opentelemetry.proto.collector.metrics.v1.MetricsService",
                    {
                        "Export": grpc.unary_unary_rpc_method_handler(
                            self._take_metrics,
                            request_deserializer=metrics.ExportMetricsServiceRequest.FromString,
                            response_serializer=metrics.ExportMetricsServiceResponse.SerializeToString,
                        )
                    },
                ),
            )
        )
        try:
            self._port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        except RuntimeError as error:
            raise ConfigError(
                "TELEMETRY_RECEIVER", f"the OTLP receiver cannot listen on 127.0.0.1:{port}: choose a free port"
            ) from error
        self._server.start()

    @property
    def endpoint(self) -> str:
        """For TelemetrySettings.otlp_endpoint, protocol "grpc"."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def metrics(self) -> Mapping[SeriesKey, float]:
        """The newest value of each series: a sum, a gauge, or the count of a histogram."""
        with self._changed:
            return dict(self._series)

    def traces(self) -> tuple[TraceRecord, ...]:
        """What has arrived, newest first."""
        return self._recorder.traces()

    def wait_for(self, trace_id: str, spans: int, timeout: float = 10.0) -> TraceRecord | None:
        """Waits until at least `spans` spans of a trace are here; returns what is here after `timeout` seconds."""

        def arrived() -> bool:
            trace = self._recorder.trace(trace_id)
            return trace is not None and len(trace.spans) >= spans

        with self._changed:
            self._changed.wait_for(arrived, timeout)
        return self._recorder.trace(trace_id)

    def close(self) -> None:
        """Stops listening; what has arrived can still be read."""
        self._server.stop(grace=0.5).wait()

    def __enter__(self) -> OtlpReceiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_traces(
        self, request: trace_service_pb2.ExportTraceServiceRequest, _: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        good: list[SpanRecord] = []
        rejected = 0
        for group in request.resource_spans:
            service = _service(group.resource.attributes)
            for span in (span for scope in group.scope_spans for span in scope.spans):
                if len(span.trace_id) == 16 and len(span.span_id) == 8 and len(span.parent_span_id) in (0, 8):
                    good.append(_span(service, span))
                else:
                    rejected += 1
        with self._changed:
            for record in good:
                self._recorder.add(record)
            self._changed.notify_all()
        response = trace_service_pb2.ExportTraceServiceResponse()
        if rejected:
            response.partial_success.rejected_spans = rejected
            response.partial_success.error_message = "ids must be 16 bytes (trace) and 8 bytes (span)"
        return response

    def _take_metrics(
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, _: grpc.ServicerContext
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        values: dict[SeriesKey, float] = {}
        for group in request.resource_metrics:
            service = _service(group.resource.attributes)
            for metric in (metric for scope in group.scope_metrics for metric in scope.metrics):
                values.update(_series(service, metric))
        with self._changed:
            for key, value in values.items():
                if key in self._series or len(self._series) < MAX_SERIES:
                    self._series[key] = value
            self._changed.notify_all()
        return metrics_service_pb2.ExportMetricsServiceResponse()


def _span(service: str, span: trace_pb2.Span) -> SpanRecord:
    return SpanRecord(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        name=span.name,
        kind=_kind(span.kind),
        service=service,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events=tuple(
            EventRecord(event.name, event.time_unix_nano, _attributes(event.attributes))
            for event in span.events[:MAX_EVENTS]
        ),
        links=tuple(link.span_id.hex() for link in span.links[:MAX_EVENTS]),
        error=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        message=span.status.message,
    )


def _kind(kind: int) -> str:
    names = {number: name for name, number in trace_pb2.Span.SpanKind.items()}
    return names.get(trace_pb2.Span.SpanKind.ValueType(kind), "SPAN_KIND_INTERNAL").removeprefix("SPAN_KIND_").lower()


def _series(service: str, metric: Metric) -> dict[SeriesKey, float]:
    shape = metric.WhichOneof("data")
    if shape == "histogram":
        return {(service, metric.name, _labels(p.attributes)): float(p.count) for p in metric.histogram.data_points}
    points: Iterable[NumberDataPoint] = ()
    if shape == "sum":
        points = metric.sum.data_points
    elif shape == "gauge":
        points = metric.gauge.data_points
    return {
        (service, metric.name, _labels(p.attributes)): p.as_double if p.HasField("as_double") else float(p.as_int)
        for p in points
    }


def _labels(attributes: Iterable[KeyValue]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, str(value)) for key, value in _attributes(attributes).items()))


def _service(attributes: Iterable[KeyValue]) -> str:
    return str(_attributes(attributes).get("service.name", "unknown"))


def _attributes(attributes: Iterable[KeyValue]) -> dict[str, Value]:
    return {item.key: _value(item.value) for item in attributes}


def _value(value: AnyValue) -> Value:
    """Nothing of ours sends bytes or maps; from others they are named, not shown."""
    shape = value.WhichOneof("value")
    if shape == "string_value":
        return value.string_value
    if shape == "bool_value":
        return value.bool_value
    if shape == "int_value":
        return value.int_value
    if shape == "double_value":
        return value.double_value
    if shape == "array_value":
        return tuple(item.string_value for item in value.array_value.values)
    return f"({shape or 'empty'})"
