"""A running server as kubelet treats it: its ConfigMap changed, its health asked, told to stop, with pages on their way."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import enclave_bridge as eb
from pagegate.client import Client
from pagegate.errors import HandshakeError, TransferError
from support.appraiser import appraiser_for
from support.platforms import Guests

SERVER, STAYS, GOES = "page-server", "stays", "goes"
PAGES = 4096


def policy(*identities: str) -> str:
    lines = ["version: 1", "identities:"]
    for name in identities:
        lines += [f"  - name: {name}", f"    measurements: ['{Guests.measurement(name).hex()}']"]
        lines += ["    regions: {book: read-write}"]
    return "\n".join(lines) + "\n"


class HeldBack:
    """Pages that stop half-way until they are let go."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.pages = len(data) // eb.PAGE_SIZE
        self.half_way, self.go_on = threading.Event(), threading.Event()

    def read(self, first: int, count: int) -> bytes:
        if first + count > self.pages // 2:
            self.half_way.set()
            assert self.go_on.wait(60)
        return self._data[first * eb.PAGE_SIZE : (first + count) * eb.PAGE_SIZE]


@pytest.fixture
def client_of(simulated_root, platform_for):
    """client_of(pod, label): a client that believes the server and asks for the region."""

    def make(pod, label: str) -> Client:
        believes = appraiser_for(simulated_root, {SERVER: {"*": "read-write"}})
        return Client(
            pod.address, platform=platform_for(label), appraiser=believes, regions={"book": "read-write"}, max_resumes=0
        )

    return make


def test_policy_change_when_a_transfer_is_running_is_in_force_and_the_transfer_commits(pod, client_of):
    running = pod(policy(STAYS, GOES))
    with client_of(running, GOES) as removed_later:
        assert removed_later.session.peer.accepted

    data = bytes(range(256)) * (PAGES * eb.PAGE_SIZE // 256)
    source, result = HeldBack(data), []
    with client_of(running, STAYS) as client:
        sending = threading.Thread(target=lambda: result.append(client.send("book", source)))
        sending.start()
        try:
            assert source.half_way.wait(60)
            running.policy.update({"policy.yaml": policy(STAYS)})
            running.wait_for_log("policy reloaded")
            running.wait_for_metric("pagegate_policy_generation 2.0")
            with client_of(running, GOES) as removed, pytest.raises(HandshakeError, match="SNP_MEASUREMENT"):
                _ = removed.session
            assert not result, "the transfer was to be under way while the policy changed"
        finally:
            source.go_on.set()
            sending.join(60)
        (sent,) = result
        assert (sent.pages, sent.generation, sent.resumed) == (PAGES, 1, 0)
        stored, _ = client.read("book")
    assert stored[: len(data)] == data


def test_policy_change_when_the_new_one_is_broken_leaves_the_former_in_force(pod, client_of):
    running = pod(policy(STAYS))
    running.policy.update({"policy.yaml": "version: 1\nidentites: []\n"})
    running.wait_for_log("the former one stays in force")
    running.wait_for_metric('pagegate_reload_ok{pagegate_reload="policy"} 0.0')
    with client_of(running, STAYS) as client:
        assert client.send("book", bytes(eb.PAGE_SIZE)).generation == 1


def test_open_session_when_its_identity_is_removed_is_closed(pod, client_of):
    running = pod(policy(STAYS, GOES))
    with client_of(running, GOES) as client:
        assert client.send("book", bytes(eb.PAGE_SIZE)).generation == 1
        running.policy.update({"policy.yaml": policy(STAYS)})
        running.wait_for_log("1 sessions closed")
        with pytest.raises(TransferError, match="SESSION_UNKNOWN"):
            client.send("book", bytes(eb.PAGE_SIZE))


def health(pod, service: str) -> str:
    with grpc.insecure_channel(pod.health) as channel:
        asked = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=20, wait_for_ready=True)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def test_pod_when_told_to_stop_is_not_ready_and_finishes_what_is_under_way(pod, client_of):
    running = pod(policy(STAYS))
    assert health(running, "readiness") == "SERVING"
    source, result = HeldBack(bytes(PAGES * eb.PAGE_SIZE)), []
    with client_of(running, STAYS) as client:
        sending = threading.Thread(target=lambda: result.append(client.send("book", source)))
        sending.start()
        try:
            assert source.half_way.wait(60)
            running.process.terminate()
            deadline = time.monotonic() + 20
            while health(running, "readiness") == "SERVING":
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            source.go_on.set()
            sending.join(60)
    assert [sent.generation for sent in result] == [1]
    assert running.process.wait(60) == 0


@pytest.mark.parametrize("service", ["", "readiness"])
def test_health_port_when_asked_as_kubelet_does_answers_and_nothing_else(pod, service):
    running = pod(policy(STAYS))
    assert health(running, service) == "SERVING"
    with grpc.insecure_channel(running.health) as channel:
        attest = channel.stream_stream("/pagegate.v1.Attestation/Attest")
        with pytest.raises(grpc.RpcError) as refused:
            list(attest(iter([b""]), timeout=20))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def children_of(process: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = stat.read_text().rpartition(")")[2].split()[1]
            found += [int(stat.parent.name)] if parent == str(process) else []
    return found


def test_pod_when_its_bridge_is_killed_counts_it_and_serves_on(pod, client_of):
    running = pod(policy(STAYS))
    running.wait_for_metric("pagegate_bridge_replaced_total 0.0")
    (bridge,) = children_of(running.process.pid)
    os.kill(bridge, signal.SIGKILL)
    running.wait_for_metric("pagegate_bridge_replaced_total 1.0")
    with client_of(running, STAYS) as client:
        assert client.send("book", bytes(eb.PAGE_SIZE)).generation == 1
