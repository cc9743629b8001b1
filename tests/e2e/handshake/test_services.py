"""What a load balancer and a curious operator ask a server."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from pagegate.server import Server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A plain channel to the server."""
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def _health(channel: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=20).status


@pytest.mark.parametrize("service", ["", "pagegate.v1.Attestation", "pagegate.v1.PageTransfer"])
def test_health_when_started_then_serving(channel: grpc.Channel, service: str) -> None:
    assert _health(channel, service) == SERVING


def test_health_when_draining_then_not_serving(channel: grpc.Channel, server: Server) -> None:
    server.drain()
    assert _health(channel, "pagegate.v1.Attestation") == NOT_SERVING


def test_health_when_the_service_is_unknown_then_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        _health(channel, "pagegate.v1.Nothing")
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_when_asked_for_services_then_all_are_named(channel: grpc.Channel) -> None:
    ask = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask, timeout=20)
    assert {service.name for service in answer.list_services_response.service} == {
        "pagegate.v1.Attestation",
        "pagegate.v1.PageTransfer",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
