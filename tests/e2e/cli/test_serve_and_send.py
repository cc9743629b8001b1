"""`pagegate serve` and `pagegate send` as processes."""

import ctypes
import json
import mmap
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[bytes]]


def file_region(site) -> tuple[str, Path]:
    home = site.directory / "book"
    return f"book=1MiB@0x100000000:{home}", home / "current"


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in path.read_text():
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.05)


def test_send_when_given_a_file_arrives_and_says_so(site, serving, pagegate: Run):
    region, current = file_region(site)
    server = serving(*site.server_flags(region))
    data = os.urandom(300_000)
    (site.directory / "snapshot").write_bytes(data)
    done = pagegate("send", server.address, "book", str(site.directory / "snapshot"), *site.client_flags)
    assert done.returncode == 0, done.stderr
    assert b"74 pages committed to book as generation 1" in done.stdout
    assert b"SIMULATED" in done.stdout
    assert b"SIMULATED" in done.stderr
    assert current.read_bytes() == data + bytes((1 << 20) - len(data))


def test_send_when_given_standard_input_and_json_gives_data(site, serving, pagegate: Run):
    region, current = file_region(site)
    server = serving(*site.server_flags(region))
    done = pagegate("send", server.address, "book", "-", "--json", *site.client_flags, stdin=b"s" * 4096)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["pages"], result["generation"], result["server_identity"], result["simulated"]) == (
        1,
        1,
        "page-server",
        True,
    )
    assert current.read_bytes()[:4096] == b"s" * 4096


@pytest.mark.parametrize(("flags", "carrier"), [((), "ring"), (("--ring", "off"), "grpc")])
def test_send_when_the_server_offers_shared_memory_uses_it_unless_told_not_to(
    site, serving, pagegate: Run, flags: tuple[str, ...], carrier: str
):
    region, current = file_region(site)
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as short:
        server = serving(*site.server_flags(region), f"--ring-socket={short}/ring")
        data = os.urandom(1 << 20)
        done = pagegate("send", server.address, "book", "-", "--json", *flags, *site.client_flags, stdin=data)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["carrier"] == carrier
        assert current.read_bytes() == data


def test_send_when_given_a_process_moves_its_memory(site, serving, pagegate: Run):
    region, current = file_region(site)
    server = serving(*site.server_flags(region))
    heap = mmap.mmap(-1, 16 * 4096)
    heap[:] = os.urandom(16 * 4096)
    start = ctypes.addressof(ctypes.c_char.from_buffer(heap))
    bounds = f"{start:#x}-{start + 16 * 4096:#x}"
    arguments = ("send", server.address, "book", "--pid", str(os.getpid()), "--range", bounds, "--delta")
    done = pagegate(*arguments, "--gpa", "0x100001000", *site.client_flags)
    assert done.returncode == 0, done.stderr
    assert current.read_bytes()[4096 : 17 * 4096] == heap[:]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 64, "give either SOURCE"),
        (("--pid", "1", "--range", "zero"), 64, "is not START-END"),
        (("--pid", "1"), 64, "say what to send"),
        (("/nonexistent/file",), 1, "SOURCE_UNREADABLE"),
        (("-",), 1, "SOURCE_EMPTY"),
        (("-", "--gpa", "0x1"), 1, "UNALIGNED"),
    ],
)
def test_send_when_the_source_is_bad_says_what_to_do(
    site, serving, pagegate: Run, arguments: tuple[str, ...], code: int, says: str
):
    server = serving(*site.server_flags())
    stdin = b"x" if "--gpa" in arguments else b""
    done = pagegate("send", server.address, "book", *arguments, *site.client_flags, stdin=stdin)
    assert done.returncode == code, done.stderr
    assert says in done.stderr.decode()


def test_send_when_standard_input_is_over_the_region_is_refused(site, serving, pagegate: Run):
    server = serving(*site.server_flags())
    done = pagegate("send", server.address, "book", "-", *site.client_flags, stdin=bytes((1 << 20) + 1))
    assert done.returncode == 1
    assert b"SOURCE_TOO_LARGE" in done.stderr


def test_send_when_nobody_listens_says_so(site, pagegate: Run):
    done = pagegate("send", "127.0.0.1:1", "book", "-", *site.client_flags, stdin=b"x")
    assert done.returncode == 1
    assert b"PEER_UNAVAILABLE" in done.stderr


def test_send_when_the_client_is_not_in_the_policy_is_refused(site, serving, pagegate: Run):
    server = serving(*site.server_flags())
    flags = [f for f in site.client_flags if not f.startswith("--simulated-workload")]
    done = pagegate("send", server.address, "book", "-", *flags, "--simulated-workload=other", stdin=b"x")
    assert done.returncode == 2
    assert b"EVIDENCE_REJECTED" in done.stderr
    assert b"SNP_MEASUREMENT" in done.stderr
    wait_for(server.log, "SNP_MEASUREMENT")


@pytest.mark.parametrize("command", [["serve", "--region=book=1MiB"], ["send", "127.0.0.1:1", "book", "-"]])
def test_simulated_platform_when_not_allowed_is_refused(site, pagegate: Run, command: list[str]):
    flags = [f for f in site.flags if f != "--allow-simulated"]
    done = pagegate(*command, *flags, stdin=b"x")
    assert done.returncode == 1
    assert b"SIMULATED_NOT_ALLOWED" in done.stderr


def test_client_when_not_allowing_simulated_refuses_a_simulated_server(site, serving, pagegate: Run):
    server = serving(*site.server_flags())
    flags = [f for f in site.client_flags if not f.startswith(("--platform", "--allow"))]
    done = pagegate("send", server.address, "book", "-", *flags, stdin=b"x")
    # This machine has no hardware to attest with either: it is refused before anything is sent.
    assert done.returncode == 1
    assert b"PLATFORM_NOT_FOUND" in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--region=book=1MiB"], "POLICY_MISSING"),
        (["--region=book=5000", "--policy=x"], "REGION_SIZE"),
        (["--region=Book=1MiB", "--policy=x"], "is not a region"),
        (["--region=book=1MiB@zz", "--policy=x"], "is not an address"),
        (["--region=book=lots", "--policy=x"], "is not a size"),
        ([], "nothing to serve"),
        (["--region=book=1MiB", "--max-sessions=0"], "max_sessions"),
        (["--region=book=1MiB", "--policy=/nonexistent.yaml"], "/nonexistent.yaml"),
        (["--region=book=1MiB", "--config=/nonexistent.yaml"], "/nonexistent.yaml"),
    ],
)
def test_serve_when_an_option_is_bad_says_which(site, pagegate: Run, flags: list[str], says: str):
    base = [flag for flag in site.flags if not flag.startswith("--policy")]
    done = pagegate("serve", *base, *flags)
    assert done.returncode == 1, done.stderr
    assert says in done.stderr.decode()


def test_serve_when_configured_by_file_and_environment_obeys(site, serving, pagegate: Run):
    config = site.directory / "serve.yaml"
    config.write_text("listen: 127.0.0.1:0\nregion: [book=1MiB]\nmax-sessions: 7\n")
    bad = pagegate("serve", f"--config={config}", *site.flags, PAGEGATE_MAX_SESSIONS="none")
    assert b"max_sessions" in bad.stderr
    server = serving(f"--config={config}", "--simulated-workload=page-server", *site.flags)
    assert pagegate("send", server.address, "book", "-", *site.client_flags, stdin=b"x").returncode == 0


def test_serve_when_the_policy_file_changes_obeys_the_new_one_and_survives_a_broken_one(site, serving, pagegate: Run):
    server = serving(*site.server_flags())
    good = site.policy.read_text()

    def send() -> int:
        client = site.directory / "client.yaml"
        client.write_text(good)
        return pagegate(
            "send", server.address, "book", "-", *site.client_flags, f"--policy={client}", stdin=b"x"
        ).returncode

    assert send() == 0
    site.policy.write_text("version: nonsense\n")
    wait_for(server.log, "the former one stays in force")
    assert send() == 0
    site.policy.write_text(good)
    server.process.send_signal(signal.SIGHUP)
    wait_for(server.log, "policy reloaded")
    site.policy.write_text(good.replace("book: read-write", "book: read"))
    deadline = time.monotonic() + 20
    while server.log.read_text().count("policy reloaded") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert send() == 1


def test_serve_when_told_to_stop_ends_cleanly(site, serving):
    server = serving(*site.server_flags())
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0


def test_serve_when_the_address_is_taken_says_so(site, serving, pagegate: Run):
    server = serving(*site.server_flags())
    flags = [f for f in site.server_flags() if not f.startswith("--listen")]
    done = pagegate("serve", f"--listen={server.address}", *flags)
    assert done.returncode == 1
    assert b"cannot listen on" in done.stderr


def test_file_region_when_the_server_is_killed_keeps_the_committed_snapshot(site, serving, pagegate: Run):
    region, current = file_region(site)
    first = serving(*site.server_flags(region))
    assert pagegate("send", first.address, "book", "-", *site.client_flags, stdin=b"k" * 4096).returncode == 0
    first.process.kill()
    first.process.wait()
    second = serving(*site.server_flags(region))
    assert current.read_bytes()[:4096] == b"k" * 4096
    done = pagegate("send", second.address, "book", "-", "--json", *site.client_flags, stdin=b"l" * 4096)
    assert json.loads(done.stdout)["generation"] == 2


def test_serve_when_pages_were_committed_and_refused_keeps_an_audit_log_that_verifies(site, serving, pagegate: Run):
    server = serving(*site.server_flags())
    assert pagegate("send", server.address, "book", "-", *site.client_flags, stdin=b"x").returncode == 0
    flags = [f for f in site.client_flags if not f.startswith("--simulated-workload")]
    assert pagegate("send", server.address, "book", "-", *flags, stdin=b"x").returncode == 2
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(20)
    log = site.directory / "state" / "audit.sqlite"
    verified = pagegate("audit", "verify", str(log), "--key", str(site.directory / "state" / "audit.key"), "--json")
    assert verified.returncode == 0, verified.stderr
    shown = pagegate("audit", "export", str(log)).stdout.decode()
    lines = [json.loads(line) for line in shown.splitlines()]
    kinds = {json.loads(line["entry"])["kind"] for line in lines if "entry" in line}
    assert {"grant", "commit", "refusal"} <= kinds


def test_serve_when_a_shadow_policy_would_refuse_says_so_and_lets_through(site, serving, pagegate: Run):
    trial = site.directory / "trial.yaml"
    trial.write_text(site.policy.read_text().replace("book: read-write", "book: read"))
    server = serving(*site.server_flags(), f"--shadow-policy={trial}")
    assert pagegate("send", server.address, "book", "-", *site.client_flags, stdin=b"x").returncode == 0
    wait_for(server.log, "shadow policy would accept trading-engine")
