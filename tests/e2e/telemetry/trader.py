"""A trading service: its own OpenTelemetry SDK and its own span, around pagegate's public client.

`trader.py GRPC ENDPOINT PROTOCOL RATIO ADDRESS REGION BYTES WORKLOAD STATE ROOT POLICY` sends BYTES bytes and prints the id of
the trace; exits with 1 when it was refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from pagegate.client import Client
from pagegate.config import PeerConfig, PlatformName
from pagegate.connect import build_appraiser, build_platform
from pagegate.errors import PagegateError
from pagegate.telemetry import Telemetry, TelemetrySettings


def main() -> int:
    grpc_endpoint, endpoint, protocol, ratio, address, region, size, workload, state, root, policy = sys.argv[1:]
    own = TracerProvider(
        sampler=ParentBasedTraceIdRatio(float(ratio)), resource=Resource.create({"service.name": "trading-service"})
    )
    own.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=grpc_endpoint)))
    telemetry = Telemetry.start(
        TelemetrySettings(
            "pagegate-client",
            otlp_endpoint=endpoint,
            otlp_protocol=protocol,  # type: ignore[arg-type]
            sample_ratio=float(ratio),
            strict=True,
        )
    )
    config = PeerConfig(
        platform=PlatformName.SIMULATED,
        allow_simulated=True,
        simulated_root=Path(root),
        simulated_workload=workload,
        policy=Path(policy),
        state_dir=Path(state),
    )
    refused = False
    with own.get_tracer("trader").start_as_current_span("publish order book") as span:
        print(f"{span.get_span_context().trace_id:032x}", flush=True)
        with Client(
            address,
            platform=build_platform(config),
            appraiser=build_appraiser(config, telemetry=telemetry),
            regions={region: "write"},
            telemetry=telemetry,
        ) as client:
            try:
                client.send(region, bytes(int(size)))
            except PagegateError:
                refused = True
    own.shutdown()
    telemetry.shutdown()
    return int(refused)


if __name__ == "__main__":
    sys.exit(main())
