"""One of two real processes: `peer.py server ENDPOINT PROTOCOL RATIO` serves one gRPC call and prints its port;
`peer.py client ENDPOINT PROTOCOL RATIO PORT REFUSE` calls it and prints the trace id."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc

from pagegate.telemetry import Telemetry, TelemetrySettings, rpc_attributes

METHOD = "/pagegate.v1.PageTransfer/TransferPages"


def start(name: str, endpoint: str, protocol: str, ratio: str) -> Telemetry:
    settings = TelemetrySettings(
        name,
        otlp_endpoint=endpoint,
        otlp_protocol=protocol,  # type: ignore[arg-type]
        sample_ratio=float(ratio),
        strict=True,
    )
    return Telemetry.start(settings)


def serve(telemetry: Telemetry) -> None:
    served = threading.Event()

    def transfer(request: bytes, context: grpc.ServicerContext) -> bytes:
        parent = telemetry.extract(context.invocation_metadata())
        with telemetry.span(METHOD[1:], rpc_attributes(METHOD), kind="server", parent=parent) as call:
            with telemetry.span("pagegate.server.open", {"pagegate.pages": 2}) as span:
                telemetry.timed_span("pagegate.bridge.open", nanoseconds=5_000)
                if request == b"refuse":
                    span.refused("TAMPERED", "the tag of page 1 does not verify")
                    call.set({"rpc.response.status_code": "DATA_LOSS"})
                    call.error("TAMPERED")
                    telemetry.count("pagegate.refusals", 1, {"pagegate.reason": "TAMPERED", "pagegate.role": "server"})
            with telemetry.span("pagegate.server.commit"):
                telemetry.count("pagegate.pages", 2, {"pagegate.direction": "in", "pagegate.region": "book"})
        served.set()
        return b"refused" if request == b"refuse" else b"ok"

    handler = grpc.unary_unary_rpc_method_handler(transfer)
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("pagegate.v1.PageTransfer", {"TransferPages": handler}),)
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    served.wait(30)
    server.stop(grace=5).wait()


def call(telemetry: Telemetry, port: str, refuse: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, telemetry.span("pagegate.client.send") as root:
        assert root.context is not None
        print(root.context.trace_id, flush=True)
        with telemetry.span("pagegate.client.seal"):
            telemetry.timed_span("pagegate.bridge.seal", nanoseconds=4_000)
        with telemetry.span(METHOD[1:], rpc_attributes(METHOD), kind="client") as span:
            answer = channel.unary_unary(METHOD)(refuse.encode(), metadata=telemetry.metadata(), timeout=20)
            if answer == b"refused":
                span.refused("TAMPERED")


if __name__ == "__main__":
    role, endpoint, protocol, ratio, *rest = sys.argv[1:]
    name = "pagegate-server" if role == "server" else "trading-service"
    telemetry = start(name, endpoint, protocol, ratio)
    if role == "server":
        serve(telemetry)
    else:
        call(telemetry, *rest)
    telemetry.shutdown()
