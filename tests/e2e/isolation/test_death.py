"""The bridge process is killed under a working server: nothing hangs, nothing false becomes visible."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import enclave_bridge as eb
from pagegate.client import Client
from pagegate.errors import BridgeError, HandshakeError, TransferError
from pagegate.handshake.model import Limits
from pagegate.platforms.sealing import file_key
from pagegate.server import Server
from pagegate.transfer.keeper import BridgeKeeper, BridgeKind
from pagegate.transfer.region import RegionSpec

PAGES = 256
SIZE = PAGES * 4096


@pytest.fixture
def bridge_kind() -> BridgeKind:
    return BridgeKind.ISOLATED


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """One that takes many small batches, so that there is time to die in."""
    return serve(limits=Limits(3600, 4, 4))


def kill(server: Server) -> int:
    pid = server.bridge.info.process
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def restarted(server: Server, former: int) -> bool:
    try:
        return server.bridge.info.process != former
    except (TransferError, eb.BridgeStatusError):
        return False


def content(server: Server, region: str) -> bytes:
    fd = server.regions.by_name(region).open_current()
    try:
        return os.pread(fd, SIZE, 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize("region", ["book", "disk"])
@pytest.mark.parametrize("at", [1, 100, 240])
def test_send_when_the_bridge_is_killed_in_it_attests_again_and_arrives_whole(
    client: Client, server: Server, region: str, at: int
) -> None:
    data, killed = os.urandom(SIZE), []

    def progress(done: int, _total: int) -> None:
        if done >= at and not killed:
            killed.append(kill(server))

    client.send(region, b"before" * (SIZE // 6))
    sent = client.send(region, data, progress=progress)
    assert killed
    assert sent.pages == PAGES
    assert content(server, region) == data
    until(lambda: restarted(server, killed[0]), "no bridge came back")


def test_call_when_its_bridge_was_taken_before_it_died_hears_of_its_death(server: Server) -> None:
    taken = server.bridge
    former = kill(server)
    until(lambda: restarted(server, former), "no bridge came back")
    with pytest.raises(eb.BridgeStatusError) as refused:
        taken.random(1)
    assert refused.value.reason == "BRIDGE_DIED"


def test_send_when_the_bridge_is_killed_again_and_again_ends(client: Client, server: Server) -> None:
    stop = threading.Event()

    def killer() -> None:
        while not stop.wait(0.15):
            try:
                kill(server)
            except (TransferError, eb.BridgeStatusError, ProcessLookupError):
                continue

    thread = threading.Thread(target=killer)
    thread.start()
    data, outcome = os.urandom(SIZE), ""
    try:
        outcome = "sent" if client.send("book", data).pages == PAGES else ""
    except (TransferError, HandshakeError) as error:
        outcome = error.reason
    finally:
        stop.set()
        thread.join()
    assert outcome in {"sent", "BRIDGE_DIED", "SESSION_UNKNOWN", "PEER_UNAVAILABLE"}
    assert content(server, "book") == (data if outcome == "sent" else bytes(SIZE)) or outcome != "sent"
    until(lambda: restarted(server, 0), "no bridge came back")
    until(lambda: client.send("book", data).pages == PAGES, "the server serves again")
    assert content(server, "book") == data


def test_page_and_read_when_the_bridge_was_killed_before_them_attest_again(client: Client, server: Server) -> None:
    base = client.session.regions["disk"].base_gpa
    client.send("disk", b"a" * SIZE)
    assert client.send_page("disk", base, b"b" * 4096) == 2
    former = kill(server)
    until(lambda: restarted(server, former), "no bridge came back")
    assert client.send_page("disk", base + 4096, b"c" * 4096) == 3
    former = kill(server)
    until(lambda: restarted(server, former), "no bridge came back")
    assert client.read("disk")[0] == b"b" * 4096 + b"c" * 4096 + b"a" * (SIZE - 8192)


def test_memory_region_when_its_page_macs_died_is_refused_until_sent_again(client: Client, server: Server) -> None:
    client.send("book", b"a" * SIZE)
    former = kill(server)
    until(lambda: restarted(server, former), "no bridge came back")
    for use in (
        lambda: client.read("book"),
        lambda: client.verify_region("book"),
        lambda: client.send_page("book", 1 << 32, b"b" * 4096),
        lambda: client.send("book", b"b" * 4096, mode="delta"),
    ):
        with pytest.raises(TransferError, match="REGION_LOST"):
            use()
    assert not server.regions.by_name("book").writing
    client.send("book", b"c" * SIZE)
    assert client.read("book")[0] == b"c" * SIZE


def test_file_region_when_its_page_macs_are_sealed_outlives_the_bridge(
    serve: Callable[..., Server], connect: Callable[..., Client], tmp_path: Path
) -> None:
    server = serve(sealing=file_key(tmp_path / "sealing.key"))
    client = connect(server)
    base = client.session.regions["disk"].base_gpa
    assert server.regions.by_name("disk").protected
    client.send("disk", b"a" * SIZE)
    client.send_page("disk", base, b"b" * 4096)
    former = kill(server)
    until(lambda: restarted(server, former), "no bridge came back")
    assert client.read("disk")[0] == b"b" * 4096 + b"a" * (SIZE - 4096)
    assert client.send_page("disk", base, b"c" * 4096) == 3


def test_sessions_when_the_bridge_is_killed_are_over(client: Client, server: Server) -> None:
    assert client.session
    assert len(server.sessions) == 1
    former = kill(server)
    until(lambda: len(server.sessions) == 0 and restarted(server, former), "the session outlived its keys")
    assert not server.regions.by_name("book").writing


def test_health_when_the_bridge_cannot_be_started_again_is_not_serving(
    client: Client, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_kw: object) -> eb.Bridge:
        raise eb.BridgeStatusError(26)

    assert client.session
    bridge = server.bridge
    monkeypatch.setattr(eb, "IsolatedBridge", broken)
    os.kill(bridge.info.process or 0, signal.SIGKILL)
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def status() -> int:
            return int(health.Check(health_pb2.HealthCheckRequest(), timeout=5).status)

        until(lambda: status() == health_pb2.HealthCheckResponse.NOT_SERVING, "health says SERVING without a bridge")
        client._max_resumes = 1
        with pytest.raises((HandshakeError, TransferError), match="BRIDGE_DIED") as caught:
            client.send("book", b"x")
        assert caught.value.retry_after == pytest.approx(0.2)
        monkeypatch.undo()
        until(lambda: status() == health_pb2.HealthCheckResponse.SERVING, "no bridge came back")
    assert client.send("book", b"x").pages == 1


def test_keeper_when_the_bridge_keeps_dying_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[float] = []
    real = eb.IsolatedBridge

    class Counted(real):  # type: ignore[misc, valid-type]
        def __init__(self, **kw: int) -> None:
            opened.append(time.monotonic())
            super().__init__(**kw)
            if len(opened) > 1:
                os.kill(self.info.process or 0, signal.SIGKILL)

    monkeypatch.setattr(eb, "IsolatedBridge", Counted)
    keeper = BridgeKeeper(BridgeKind.ISOLATED, max_sessions=1, max_handshakes=1, changed=lambda _alive: None)
    os.kill(keeper.info.process or 0, signal.SIGKILL)
    until(lambda: len(opened) >= 5, "it gave up")
    keeper.close()
    waits = [later - sooner for sooner, later in itertools.pairwise(opened)]
    # 0.05 s, then twice as long each time: a wait is never shorter than that.
    assert all(wait >= 0.05 * 2**index for index, wait in enumerate(waits[:4]))


def test_keeper_when_the_first_bridge_does_not_start_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_kw: object) -> eb.Bridge:
        raise eb.BridgeStatusError(26)

    monkeypatch.setattr(eb, "IsolatedBridge", broken)
    with pytest.raises(BridgeError, match="--bridge in-process"):
        BridgeKeeper(BridgeKind.ISOLATED, max_sessions=1, max_handshakes=1, changed=lambda _alive: None)


def test_bridge_when_transfers_come_and_go_is_never_replaced(serve: Callable[..., Server], connect) -> None:
    # Large enough that malloc gives memory back in between, for which glibc may open files: the filter kills for that.
    server = serve(regions=[RegionSpec("book", 1 << 32, 4096)])
    former = server.bridge.info.process
    client = connect(server, regions={"book": "read-write"})
    data = os.urandom(4096 * 4096)
    for _ in range(4):
        client.send("book", data)
        client.read("book")
    assert server.bridge.info.process == former
