"""Telemetry with OpenTelemetry's SDK behind the three verbs. Own providers: nothing global is set."""

from __future__ import annotations

import importlib.metadata
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import Token
from dataclasses import dataclass
from time import time_ns
from types import TracebackType
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram, NoOpMeterProvider, UpDownCounter
from opentelemetry.metrics import _Gauge as Gauge
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import AlwaysRecordSampler, ParentBasedTraceIdRatio
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pagegate.errors import ConfigError, PagegateError
from pagegate.telemetry import semconv
from pagegate.telemetry.api import Attributes, Metadata, Span, SpanKind, TraceContext
from pagegate.telemetry.exporters import OtlpProtocol, ScrapeServer, otlp_exporters, prometheus
from pagegate.telemetry.guard import MAX_ITEMS, Guard
from pagegate.telemetry.processors import RecorderProcessor, RefusalKeeper
from pagegate.telemetry.records import TraceRecorder

_KINDS: Final[Mapping[SpanKind, otel.SpanKind]] = {
    "internal": otel.SpanKind.INTERNAL,
    "server": otel.SpanKind.SERVER,
    "client": otel.SpanKind.CLIENT,
    "producer": otel.SpanKind.PRODUCER,
    "consumer": otel.SpanKind.CONSUMER,
}
_PROPAGATED: Final[Mapping[str, int]] = {"traceparent": 128, "tracestate": 512}
"""Metadata keys that are read, with the longest value believed (W3C Trace Context 3.3.1.5 asks for 512)."""


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """What goes where. The default sends nothing anywhere and remembers recent traces."""

    service_name: str
    otlp_endpoint: str | None = None
    """http://host:4317 (gRPC) or http://host:4318 (HTTP); https:// for TLS; None sends nothing."""
    otlp_protocol: OtlpProtocol = "grpc"
    sample_ratio: float = 1.0
    """Share of new traces that are exported; a caller's decision is followed; refusals always go out."""
    console_tree: bool = False
    """Prints each trace of this process as a tree on standard error when its root ends."""
    prometheus_port: int | None = None
    """Serves /metrics on this port; 0 takes a free one."""
    prometheus_host: str = "127.0.0.1"
    recent_traces: int = 64
    """How many traces the recorder remembers; 0 for none."""
    metrics_interval: float = 15.0
    """Seconds between two exports of metrics."""
    export_timeout: float = 5.0
    """Seconds one export may take."""
    strict: bool = False
    """Raises on a name that semconv does not list; for tests."""


class Telemetry:
    """The three verbs, with exporters behind them. Make it with `start`; end it with `shutdown`."""

    def __init__(
        self,
        tracers: TracerProvider,
        meters: MeterProvider,
        recorder: TraceRecorder | None,
        scrape: ScrapeServer | None,
        *,
        strict: bool,
    ) -> None:
        self._tracers = tracers
        self._meters = meters
        self._recorder = recorder
        self._scrape = scrape
        self._guard = Guard(strict=strict)
        self._tracer = tracers.get_tracer("pagegate")
        self._instruments = _instruments(meters)
        self._propagator = TraceContextTextMapPropagator()
        self._stopped = False

    @classmethod
    def start(cls, settings: TelemetrySettings) -> Telemetry:
        """Raises ConfigError (TELEMETRY_*) when a setting is not usable. An endpoint that does not
        answer is no error: spans are dropped, with a warning in the log, and calls go on."""
        if not 0.0 <= settings.sample_ratio <= 1.0:
            raise ConfigError(
                "TELEMETRY_SAMPLE_RATIO", f"the sample ratio is {settings.sample_ratio}: it is from 0 to 1"
            )
        resource = _resource(settings.service_name)
        tracers = TracerProvider(
            sampler=AlwaysRecordSampler(ParentBasedTraceIdRatio(settings.sample_ratio)),
            resource=resource,
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_events=MAX_ITEMS, max_links=MAX_ITEMS, max_attributes=MAX_ITEMS),
            meter_provider=NoOpMeterProvider(),
        )
        readers: list[MetricReader] = []
        if settings.otlp_endpoint is not None:
            exporters = otlp_exporters(settings.otlp_endpoint, settings.otlp_protocol, settings.export_timeout)
            tracers.add_span_processor(RefusalKeeper(BatchSpanProcessor(exporters.spans, schedule_delay_millis=1000)))
            readers.append(
                PeriodicExportingMetricReader(
                    exporters.metrics,
                    export_interval_millis=settings.metrics_interval * 1000,
                    export_timeout_millis=settings.export_timeout * 1000,
                )
            )
        scrape = None
        if settings.prometheus_port is not None:
            reader, scrape = prometheus(settings.prometheus_host, settings.prometheus_port)
            readers.append(reader)
        recorder = TraceRecorder(settings.recent_traces) if settings.recent_traces else None
        if recorder is not None:
            tracers.add_span_processor(RecorderProcessor(recorder))
        if settings.console_tree:
            from pagegate.telemetry.tree import TreePrinter  # noqa: PLC0415 - rich is slow to import

            tracers.add_span_processor(TreePrinter(sys.stderr))
        meters = MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
        return cls(tracers, meters, recorder, scrape, strict=settings.strict)

    @property
    def recorder(self) -> TraceRecorder | None:
        """Recent traces of this process; None when recent_traces is 0."""
        return self._recorder

    @property
    def prometheus_port(self) -> int | None:
        """The port /metrics is served on; None when it is not."""
        return None if self._scrape is None else self._scrape.port

    def span(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        kind: SpanKind = "internal",
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
    ) -> AbstractContextManager[Span]:
        """See Tracing.span. An exception that leaves the block marks the hop as failed: by reason and
        message if it is one of pagegate's, else by its class alone, for a message may quote data."""
        self._guard.span(name)
        started = self._tracer.start_span(
            name,
            context=None if parent is None else _to_otel(parent),
            kind=_KINDS[kind],
            attributes=self._guard.attributes(attributes),
            links=_links(links),
        )
        return _LiveSpan(started, self._guard)

    def timed_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        nanoseconds: int,
        parent: TraceContext | None = None,
        links: Sequence[TraceContext] = (),
    ) -> None:
        """See Tracing.timed_span."""
        self._guard.span(name)
        end = time_ns()
        self._tracer.start_span(
            name,
            context=None if parent is None else _to_otel(parent),
            attributes=self._guard.attributes(attributes),
            links=_links(links),
            start_time=end - max(0, nanoseconds),
        ).end(end)

    def count(self, name: str, value: int = 1, attributes: Attributes | None = None) -> None:
        """See Tracing.count."""
        row = self._guard.metric(name, "count", semconv.Instrument.COUNTER, semconv.Instrument.UP_DOWN_COUNTER)
        instrument = None if row is None else self._instruments[name]
        if row is not None and isinstance(instrument, Counter | UpDownCounter):
            instrument.add(value, self._guard.labels(row, attributes))

    def record(self, name: str, value: float, attributes: Attributes | None = None) -> None:
        """See Tracing.record."""
        row = self._guard.metric(name, "record", semconv.Instrument.HISTOGRAM, semconv.Instrument.GAUGE)
        if row is None:
            return
        instrument = self._instruments[name]
        if isinstance(instrument, Histogram):
            instrument.record(value, self._guard.labels(row, attributes))
        elif isinstance(instrument, Gauge):
            instrument.set(value, self._guard.labels(row, attributes))

    def metadata(self) -> Metadata:
        """See Tracing.metadata."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return tuple(carrier.items())

    def extract(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> TraceContext | None:
        """See Tracing.extract. A repeated, oversized or malformed header is as good as none."""
        carrier: dict[str, str] = {}
        for key, value in metadata or ():
            if key not in _PROPAGATED or not isinstance(value, str):
                continue
            if key in carrier or len(value) > _PROPAGATED[key]:
                return None
            carrier[key] = value
        found = otel.get_current_span(self._propagator.extract(carrier, context=Context())).get_span_context()
        return _from_otel(found) if found.is_valid else None

    def flush(self, timeout: float = 5.0) -> bool:
        """See Tracing.flush."""
        if self._stopped:
            return True
        milliseconds = int(timeout * 1000)
        spans = self._tracers.force_flush(milliseconds)
        return self._meters.force_flush(milliseconds) and spans

    def shutdown(self) -> None:
        """See Tracing.shutdown."""
        if self._stopped:
            return
        self._stopped = True
        self._tracers.shutdown()
        self._meters.shutdown()
        if self._scrape is not None:
            self._scrape.stop()


class _LiveSpan:
    """Span of the SDK behind our Span; its own context manager, which makes it the current one."""

    __slots__ = ("_guard", "_span", "_token")

    def __init__(self, span: otel.Span, guard: Guard) -> None:
        self._span = span
        self._guard = guard
        self._token: Token[Context] | None = None

    def __enter__(self) -> _LiveSpan:
        self._token = otel_context.attach(otel.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            otel_context.detach(self._token)
        if isinstance(error, PagegateError):
            self.error(error.reason, error.message)
        elif error is not None and not isinstance(error, GeneratorExit):
            self.error(type(error).__name__)
        self._span.end()

    @property
    def context(self) -> TraceContext:
        return _from_otel(self._span.get_span_context())

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(self._guard.attributes(attributes))

    def event(self, name: str, attributes: Attributes | None = None) -> None:
        checked = self._guard.attributes(attributes)
        if self._guard.event(name):
            self._span.add_event(name, checked)

    def refused(self, reason: str, message: str = "") -> None:
        self.event(semconv.REFUSED, {"pagegate.reason": reason, "pagegate.message": message})
        self.error(reason, message)

    def error(self, reason: str, message: str = "") -> None:
        self.set({"error.type": reason})
        self._span.set_status(Status(StatusCode.ERROR, f"{message} [{reason}]" if message else reason))


def _resource(service_name: str) -> Resource:
    return Resource.create(
        {
            "service.name": service_name,
            "service.version": importlib.metadata.version("pagegate"),
            "service.instance.id": str(uuid.uuid4()),
        }
    )


def _instruments(meters: MeterProvider) -> Mapping[str, object]:
    meter = meters.get_meter("pagegate")
    made: dict[str, object] = {}
    for row in semconv.METRICS.values():
        if row.instrument is semconv.Instrument.COUNTER:
            made[row.name] = meter.create_counter(row.name, row.unit, row.meaning)
        elif row.instrument is semconv.Instrument.UP_DOWN_COUNTER:
            made[row.name] = meter.create_up_down_counter(row.name, row.unit, row.meaning)
        elif row.instrument is semconv.Instrument.GAUGE:
            made[row.name] = meter.create_gauge(row.name, row.unit, row.meaning)
        else:
            made[row.name] = meter.create_histogram(
                row.name, row.unit, row.meaning, explicit_bucket_boundaries_advisory=row.boundaries
            )
    return made


def _links(links: Sequence[TraceContext]) -> list[otel.Link]:
    return [otel.Link(_span_context(link)) for link in links[:MAX_ITEMS]]


def _span_context(context: TraceContext) -> SpanContext:
    return SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        is_remote=context.remote,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([context.trace_state]) if context.trace_state else None,
    )


def _to_otel(context: TraceContext) -> Context:
    return otel.set_span_in_context(NonRecordingSpan(_span_context(context)))


def _from_otel(context: SpanContext) -> TraceContext:
    return TraceContext(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        sampled=context.trace_flags.sampled,
        trace_state=context.trace_state.to_header(),
        remote=context.is_remote,
    )
