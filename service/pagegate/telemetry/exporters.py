"""The ways out: OTLP by gRPC or HTTP, and a Prometheus endpoint. Imported only when one is asked for."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIServer

from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader
from opentelemetry.sdk.trace.export import SpanExporter

from pagegate.errors import ConfigError

OtlpProtocol = Literal["grpc", "http/protobuf"]


@dataclass(frozen=True, slots=True)
class OtlpExporters:
    """The two exporters for one endpoint."""

    spans: SpanExporter
    metrics: MetricExporter


class ScrapeServer(Protocol):
    """A running Prometheus endpoint."""

    @property
    def port(self) -> int:
        """TCP port it listens on."""
        ...

    def stop(self) -> None:
        """Closes the port."""
        ...


def otlp_exporters(endpoint: str, protocol: OtlpProtocol, timeout: float) -> OtlpExporters:
    """Exporters to `endpoint` (http:// is plain text, https:// is TLS); `timeout` in seconds an export.

    Raises ConfigError TELEMETRY_ENDPOINT for anything that is not such a URL, TELEMETRY_PROTOCOL
    for an unknown protocol.
    """
    _check_endpoint(endpoint)
    if protocol == "grpc":
        return _grpc_exporters(endpoint, timeout)
    if protocol == "http/protobuf":
        return _http_exporters(endpoint.rstrip("/"), timeout)
    raise ConfigError(
        "TELEMETRY_PROTOCOL", f"the OTLP protocol is {protocol!r}: use 'grpc' (port 4317) or 'http/protobuf' (4318)"
    )


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            "TELEMETRY_ENDPOINT",
            f"the OTLP endpoint is {endpoint!r}: give a URL such as http://127.0.0.1:4317, or https:// for TLS",
        )


def _grpc_exporters(endpoint: str, timeout: float) -> OtlpExporters:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    return OtlpExporters(
        OTLPSpanExporter(endpoint=endpoint, timeout=timeout), OTLPMetricExporter(endpoint=endpoint, timeout=timeout)
    )


def _http_exporters(endpoint: str, timeout: float) -> OtlpExporters:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    return OtlpExporters(
        OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", timeout=timeout),
        OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics", timeout=timeout),
    )


def prometheus(host: str, port: int) -> tuple[MetricReader, ScrapeServer]:
    """A reader and its scrape endpoint; port 0 takes a free one.

    Raises ConfigError TELEMETRY_PROMETHEUS when the extra is not installed or the port is taken.
    """
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader  # noqa: PLC0415
        from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "TELEMETRY_PROMETHEUS", "the Prometheus endpoint needs the extra: pip install 'pagegate[prometheus]'"
        ) from error
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(registry=registry, scope_info_enabled=False)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        reader.shutdown()
        raise ConfigError(
            "TELEMETRY_PROMETHEUS", f"the Prometheus endpoint cannot listen on {host}:{port}: {error.strerror}"
        ) from error
    return reader, _Scrape(server, thread)


class _Scrape:
    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        return self._server.server_port

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
