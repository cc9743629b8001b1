"""What `pagegate serve` does when it is told to end or to load again: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pagegate.client import Client
from pagegate.config import PeerConfig, PlatformName
from pagegate.connect import build_appraiser, build_platform
from pagegate.demo.run import CLIENT_WORKLOAD
from pagegate.errors import HandshakeError, PagegateError
from pagegate.platforms.simulated import SimulatedRoot
from pagegate.rpc.tls import ClientTls
from support.certificates import self_signed
from support.pages import HandStream

Serving = Callable[..., object]


def wait_for(path: Path, text: str, times: int = 1) -> None:
    deadline = time.monotonic() + 30
    while path.read_text().count(text) < times:
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.02)


@pytest.fixture
def client_of(site, simulated_root: SimulatedRoot) -> Callable[..., object]:
    """client_of(address, **kw): an attested client in this process, a context manager."""

    @contextmanager
    def make(address: str, **kw: Any) -> Iterator[Client]:
        config = PeerConfig(
            platform=PlatformName.SIMULATED,
            policy=site.policy,
            allow_simulated=True,
            simulated_root=simulated_root._directory,
            simulated_workload=CLIENT_WORKLOAD,
            offline=True,
            state_dir=site.directory / "client",
        )
        own = {"platform": build_platform(config), "appraiser": build_appraiser(config)}
        with Client(address, regions={"book": "read-write"}, **own, **kw) as client:
            client.attest()
            yield client

    return make


def health(channel: grpc.Channel) -> int:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status


# ---- SIGTERM ----------------------------------------------------------------------------


def test_sigterm_when_a_transfer_runs_then_it_is_committed_and_the_process_ends_well(site, serving, client_of):
    server = serving(*site.server_flags(f"book=1MiB@0x100000000:{site.directory / 'book'}"), "--drain-seconds=60")
    with client_of(server.address) as client, HandStream(client, server.address, pages=2) as stream:
        stream.begin()
        stream.batch()
        server.process.send_signal(signal.SIGTERM)
        wait_for(server.log, "calls under way; a second")
        with grpc.insecure_channel(server.address) as channel:
            deadline = time.monotonic() + 20
            while health(channel) != health_pb2.HealthCheckResponse.NOT_SERVING:
                assert time.monotonic() < deadline
        with pytest.raises(HandshakeError) as refused, client_of(server.address, max_resumes=0):
            pass
        assert refused.value.reason == "DRAINING"
        stream.batch()
        stream.commit()
        assert [a.WhichOneof("step") for a in stream.answers()][-1] == "committed"
    assert server.process.wait(30) == 0
    assert "every call had ended" in server.log.read_text()
    assert (site.directory / "book" / "current").readlink().name == "gen-000000000001.pages"


def test_sigterm_when_a_stream_goes_on_past_its_time_then_it_is_told_to_resume_elsewhere(site, serving, client_of):
    server = serving(*site.server_flags(), "--drain-seconds=4")
    with client_of(server.address) as client, HandStream(client, server.address) as stream:
        stream.begin()
        stream.batch(2)
        server.process.send_signal(signal.SIGTERM)
        answers = list(stream.answers())
        assert [a.ack.batches for a in answers] == [1]
        assert stream.refusal().reason == "DRAINING"
    assert server.process.wait(30) == 0


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_signal_when_sent_twice_then_stops_at_once(site, serving, client_of, again: signal.Signals):
    server = serving(*site.server_flags(), "--drain-seconds=600", "--slow-peer-seconds=600")
    with client_of(server.address) as client, HandStream(client, server.address) as stream:
        stream.begin()
        server.process.send_signal(signal.SIGTERM)
        wait_for(server.log, "calls under way; a second")
        server.process.send_signal(again)
        assert server.process.wait(30) == 1
        with pytest.raises(PagegateError):
            raise stream.refusal()


def test_sigkill_when_serving_then_the_next_start_serves_the_committed_generation(site, serving, client_of):
    region = f"book=1MiB@0x100000000:{site.directory / 'book'}"
    server = serving(*site.server_flags(region))
    with client_of(server.address) as client, HandStream(client, server.address) as stream:
        assert client.send("book", b"k" * 4096).generation == 1
        stream.begin()
        stream.batch(4)
        server.process.kill()
        server.process.wait(30)
    following = serving(*site.server_flags(region))
    with client_of(following.address) as client:
        assert bytes(client.read("book")[0][:4096]) == b"k" * 4096


def test_transfer_when_the_server_is_replaced_under_it_then_arrives(site, serving, client_of):
    home = site.directory / "book"
    flags = site.server_flags(f"book=64MiB@0x100000000:{home}")
    first = serving(*flags, "--drain-seconds=0.5")
    data = os.urandom(64 << 20)
    replaced = []

    def replace(done: int, total: int) -> None:
        if not replaced and done:
            replaced.append(None)
            first.process.send_signal(signal.SIGTERM)
            first.process.wait(30)
            again = [flag for flag in flags if not flag.startswith("--listen")]
            replaced[0] = serving(f"--listen={first.address}", *again)

    with client_of(first.address) as client:
        sent = client.send("book", data, progress=replace)
    assert sent.resumed >= 1
    assert (home / "current").read_bytes()[: len(data)] == data


# ---- SIGHUP and changed files -----------------------------------------------------------


def test_sighup_when_options_changed_then_takes_over_what_it_can_and_says_what_it_cannot(site, serving):
    config = site.directory / "serve.yaml"
    config.write_text("log-level: info\nslow-peer-seconds: 30\n")
    server = serving(f"--config={config}", *site.server_flags())
    config.write_text("log-level: debug\nslow-peer-seconds: 7\nmax-sessions: 3\n")
    server.process.send_signal(signal.SIGHUP)
    wait_for(server.log, "config reloaded")
    line = next(line for line in server.log.read_text().splitlines() if "config reloaded" in line)
    assert "log_level is debug" in line
    assert "slow_peer_seconds is 7" in line
    assert "max_sessions changes with the next start" in line
    config.write_text("slow-peer-seconds: never\n")
    server.process.send_signal(signal.SIGHUP)
    wait_for(server.log, "config not reloaded, the former one stays in force")


def test_certificate_when_its_link_is_swapped_then_new_connections_get_it_and_open_ones_go_on(site, serving, client_of):
    home = site.directory / "tls"
    pins = []
    for name in ("..1", "..2"):
        (home / name).mkdir(parents=True)
        certificate, key = self_signed()
        (home / name / "tls.crt").write_bytes(certificate)
        (home / name / "tls.key").write_bytes(key)
        pins.append(ClientTls.pinned(home / name / "tls.crt"))
    (home / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (home / name).symlink_to(f"..data/{name}")
    server = serving(*site.server_flags(), f"--tls-cert={home / 'tls.crt'}", f"--tls-key={home / 'tls.key'}")
    with client_of(server.address, tls=pins[0]) as client:
        (home / "..tmp").symlink_to("..2")
        (home / "..tmp").rename(home / "..data")
        wait_for(server.log, "tls reloaded: new connections get it")
        with client_of(server.address, tls=pins[1]) as newer:
            assert newer.send("book", b"n" * 4096).generation == 1
        client.attest()
        assert client.send("book", b"o" * 4096).generation == 2


def test_certificate_when_a_broken_pair_comes_then_the_old_one_stays_and_it_says_so(site, serving, client_of):
    certificate, key = self_signed()
    files = site.directory / "tls.crt", site.directory / "tls.key"
    files[0].write_bytes(certificate)
    files[1].write_bytes(key)
    pin = ClientTls.pinned(files[0])
    server = serving(*site.server_flags(), f"--tls-cert={files[0]}", f"--tls-key={files[1]}")
    files[1].write_bytes(self_signed()[1])
    wait_for(server.log, "TLS_KEY_MISMATCH")
    assert "tls not reloaded, the former one stays in force" in server.log.read_text()
    with client_of(server.address, tls=pin) as client:
        assert client.send("book", b"p" * 4096).generation == 1
    files[1].write_bytes(key)
    wait_for(server.log, "tls reloaded: the certificate is the same as before")


def test_start_when_key_and_certificate_do_not_match_then_says_that_and_not_that_it_cannot_listen(
    site, pagegate: Callable[..., subprocess.CompletedProcess[bytes]]
):
    files = site.directory / "tls.crt", site.directory / "tls.key"
    files[0].write_bytes(self_signed()[0])
    files[1].write_bytes(self_signed()[1])
    done = pagegate("serve", *site.server_flags(), f"--tls-cert={files[0]}", f"--tls-key={files[1]}")
    assert done.returncode == 1
    assert b"TLS_KEY_MISMATCH" in done.stderr
    assert b"LISTEN" not in done.stderr


# ---- what operators see -----------------------------------------------------------------


def test_metrics_when_scraped_then_every_gauge_is_there(site, serving, client_of, free_port: int):
    pytest.importorskip("opentelemetry.exporter.prometheus")
    files = site.directory / "tls.crt", site.directory / "tls.key"
    certificate, key = self_signed()
    files[0].write_bytes(certificate)
    files[1].write_bytes(key)
    tls = [f"--tls-cert={files[0]}", f"--tls-key={files[1]}"]
    server = serving(*site.server_flags(), *tls, f"--prometheus-port={free_port}")
    with client_of(server.address, tls=ClientTls.pinned(files[0])) as client:
        client.send("book", b"m" * 4096)
        found = scraped(free_port, until="pagegate_sessions_live{", value="1")
    for name in (
        "pagegate_sessions_limit 256",
        "pagegate_handshakes_limit 16",
        "pagegate_streams_limit 64",
        "pagegate_flight_limit_bytes",
        'pagegate_region_generation{pagegate_region="book"} 1',
        "pagegate_policy_generation 1",
        'pagegate_reload_ok{pagegate_reload="policy"} 1',
        'pagegate_reload_ok{pagegate_reload="tls"} 1',
        "pagegate_server_draining 0",
        "pagegate_tls_expiry_seconds",
        "pagegate_simulated_allowed 1",
        "pagegate_bridge_info{",
        'pagegate_transfers_total{pagegate_direction="in",pagegate_outcome="ok"} 1',
        "rpc_server_call_duration_seconds_bucket",
    ):
        assert name in found, found


def scraped(port: int, *, until: str, value: str) -> str:
    deadline = time.monotonic() + 30
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode().replace(".0\n", "\n")
        lines = [line for line in text.splitlines() if line.startswith(until)]
        if lines and any(line.endswith(f" {value}") for line in lines):
            return text
        assert time.monotonic() < deadline, text
        time.sleep(0.2)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "status.example:80"])
def test_status_page_when_asked_to_listen_beyond_loopback_then_refused_unless_allowed(
    site, pagegate: Callable[..., subprocess.CompletedProcess[bytes]], address: str
):
    done = pagegate("serve", *site.server_flags(), f"--status-listen={address}")
    assert done.returncode == 1
    assert b"STATUS_PUBLIC" in done.stderr
