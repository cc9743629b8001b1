"""The bridge as a process of its own: how it is confined, and what its end does to those who use it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.enclave_bridge.pairs import BASE_GPA, REGION, TRANSFER_ID, Pair, connect, pages

from enclave_bridge import HARDENING, PAGE_SIZE, BridgeStatusError, IsolatedBridge, MacPurpose, Role, Suite


@pytest.fixture
def bridge() -> IsolatedBridge:
    return IsolatedBridge(max_sessions=2, max_handshakes=2)


@pytest.fixture
def pair() -> Pair:
    return connect(backend=IsolatedBridge)


def pid_of(bridge: object) -> int:
    assert isinstance(bridge, IsolatedBridge)
    pid = bridge.info.process
    assert pid is not None
    return pid


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def ended(pidfd: int, seconds: float = 10.0) -> bool:
    return bool(select.select([pidfd], [], [], seconds)[0])


def refused(reason: str):  # type: ignore[no-untyped-def]
    return pytest.raises(BridgeStatusError, match=f"EB_ERR_{reason}")


# ---- confinement ------------------------------------------------------------------------------


def test_info_when_isolated_says_what_confines_it(bridge: IsolatedBridge) -> None:
    info = bridge.info
    assert info.process not in (None, os.getpid())
    assert {"seccomp", "no-new-privs", "not-dumpable", "limits"} <= set(info.hardening) <= set(HARDENING)
    assert info.file_io == "pread"  # io_uring's requests would pass the filter by


def test_hardening_when_claimed_is_what_the_kernel_says(bridge: IsolatedBridge) -> None:
    pid, claimed = pid_of(bridge), set(bridge.info.hardening)
    status = status_of(pid)
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    assert ("no-capabilities" in claimed) == (int(status["CapEff"], 16) == 0)
    assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")] == [["0", "0"]]
    for name, flag in (("user", "user-namespace"), ("net", "network-namespace")):
        own, its = (Path(f"/proc/{process}/ns/{name}").stat().st_ino for process in ("self", pid))
        assert (own != its) == (flag in claimed)


def test_every_thread_when_serving_is_under_the_filter(bridge: IsolatedBridge) -> None:
    tasks = list(Path(f"/proc/{pid_of(bridge)}/task").iterdir())
    assert len(tasks) == 5  # four lanes and the one that waits for the end
    for task in tasks:
        assert "\nSeccomp:\t2\n" in (task / "status").read_text()


def test_process_when_started_has_nothing_of_its_starter() -> None:
    fd = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(fd, True)
    bridge = IsolatedBridge(max_sessions=1, max_handshakes=1)
    os.close(fd)
    its = Path(f"/proc/{pid_of(bridge)}")
    deadline = time.monotonic() + 10
    while (its / "fd" / "4").is_symlink() and time.monotonic() < deadline:
        time.sleep(0.01)  # the lanes' memory, which it closes when it has handed it over
    descriptors = {entry.name: str(entry.readlink()) for entry in (its / "fd").iterdir()}
    assert set(descriptors) <= {"0", "1", "2", "3"}
    assert descriptors["3"].startswith("socket:")
    assert (its / "environ").read_bytes() == b""
    mapped = {line.split()[5] for line in (its / "maps").read_text().splitlines() if len(line.split()) > 5}
    libraries = {Path(name).name.split(".")[0] for name in mapped if name.startswith("/") and ".so" in name}
    assert libraries <= {"libcrypto", "libc", "ld-linux-x86-64", "ld-linux-aarch64", "libz", "libzstd"}


def test_memory_when_over_its_limit_is_an_error_of_the_call() -> None:
    bridge = IsolatedBridge(max_sessions=1, max_handshakes=1, memory_limit=64 << 20)
    with refused("MEMORY"):
        bridge.transfer(TRANSFER_ID, region=1, base_gpa=0, pages=2**28)
    assert bridge.transfer(TRANSFER_ID, region=1, base_gpa=0, pages=2**10).pages == 0


@pytest.mark.parametrize(("lanes", "fine"), [(1, True), (16, True), (17, False), (2**32 - 1, False)])
def test_lanes_when_too_many_are_refused(lanes: int, fine: bool) -> None:
    if fine:
        assert len(IsolatedBridge(max_sessions=1, max_handshakes=1, lanes=lanes).random(8)) == 8
        return
    with refused("ARGUMENT"):
        IsolatedBridge(max_sessions=1, max_handshakes=1, lanes=lanes)


def test_handles_when_all_are_used_are_a_limit(bridge: IsolatedBridge) -> None:
    kept = []
    with refused("LIMIT"):
        for _ in range(5000):
            kept.append(bridge.transfer(TRANSFER_ID, region=1, base_gpa=0, pages=1))
    kept.clear()
    assert bridge.transfer(TRANSFER_ID, region=1, base_gpa=0, pages=1).pages == 0


@pytest.mark.parametrize("program", ["/nonexistent/pagegate-bridge", "/bin/true", "/etc/passwd"])
def test_program_when_it_is_not_the_bridge_is_bridge_died(program: str) -> None:
    with refused("BRIDGE_DIED"):
        IsolatedBridge(max_sessions=1, max_handshakes=1, program=Path(program))


def test_program_when_run_by_hand_says_so() -> None:
    import enclave_bridge._isolated as module

    program = Path(module.__file__).parent / "pagegate-bridge"
    done = subprocess.run([program], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 64
    assert "not by hand" in done.stderr


# ---- ends ---------------------------------------------------------------------------------------


def test_process_when_the_last_handle_is_closed_ends() -> None:
    bridge = IsolatedBridge(max_sessions=1, max_handshakes=1)
    pidfd = os.dup(bridge.pidfd)
    transfer = bridge.transfer(TRANSFER_ID, region=1, base_gpa=0, pages=1)
    bridge.close()
    assert not ended(pidfd, 0)
    transfer.close()
    assert ended(pidfd)
    os.close(pidfd)


def test_process_when_its_starter_is_killed_ends() -> None:
    code = (
        "from enclave_bridge import IsolatedBridge; import time\n"
        "bridge = IsolatedBridge(max_sessions=1, max_handshakes=1)\n"
        "print(bridge.info.process, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pidfd = os.pidfd_open(int(starter.stdout.readline()))
        starter.kill()
        assert ended(pidfd)
        os.close(pidfd)


def test_bridge_when_the_thread_that_opened_it_ends_lives_on() -> None:
    made: list[IsolatedBridge] = []
    thread = threading.Thread(target=lambda: made.append(IsolatedBridge(max_sessions=1, max_handshakes=1)))
    thread.start()
    thread.join()
    assert not ended(made[0].pidfd, 0.2)
    assert len(made[0].random(4)) == 4


CALLS: dict[str, Callable[[Pair], object]] = {
    "info": lambda pair: pair.server_bridge.info,
    "random": lambda pair: pair.server_bridge.random(5),
    "handshake": lambda pair: pair.server_bridge.handshake(Role.SERVER, list(Suite)),
    "transfer": lambda pair: pair.server_bridge.transfer(TRANSFER_ID, region=1, base_gpa=0, pages=1),
    "source": lambda pair: pair.server_bridge.source(0, length=1),
    "seal": lambda pair: pair.server.seal(None, region=REGION, first_gpa=BASE_GPA, plain=pages(300)),
    "mac": lambda pair: pair.server.mac(MacPurpose.CONTROL, b"x"),
    "check_mac": lambda pair: pair.server.check_mac(MacPurpose.CONTROL, b"x", bytes(48)),
    "rekey": lambda pair: pair.server.rekey(),
    "stats": lambda pair: pair.server.stats(),
}


@pytest.mark.parametrize("name", CALLS)
def test_call_when_the_process_was_killed_is_bridge_died(pair: Pair, name: str) -> None:
    bridge = pair.server_bridge
    assert isinstance(bridge, IsolatedBridge)
    os.kill(pid_of(bridge), signal.SIGKILL)
    assert ended(bridge.pidfd)
    with refused("BRIDGE_DIED|ERR_SOURCE_UNREADABLE" if name == "source" else "BRIDGE_DIED"):
        CALLS[name](pair)
    pair.client.rekey()  # the other bridge is another process


def test_calls_in_progress_when_the_process_is_killed_end_at_once(pair: Pair) -> None:
    pid = pid_of(pair.server_bridge)
    os.kill(pid, signal.SIGSTOP)
    while any("State:\tT" not in (task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(0.01)  # a lane that still runs would answer
    outcomes: list[str] = []

    def work(call: Callable[[Pair], object]) -> None:
        try:
            call(pair)
        except BridgeStatusError as error:
            outcomes.append(error.reason)

    # More callers than lanes: the last ones wait for a lane.
    calls = [CALLS[name] for name in ("random", "seal", "seal", "stats", "mac", "check_mac")]
    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert outcomes == []
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert outcomes == ["BRIDGE_DIED"] * len(calls)


def test_calls_when_more_threads_than_lanes_make_them_all_are_made() -> None:
    bridge = IsolatedBridge(max_sessions=1, max_handshakes=1, lanes=2)
    results: list[int] = []

    def work() -> None:
        for size in (1, 4096, 100_000):
            results.append(len(bridge.random(size)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [1] * 8 + [4096] * 8 + [100_000] * 8


# ---- what differs in how pages cross --------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4, 5, 36, 37, 300, 1000])
def test_batch_when_it_crosses_in_parts_is_one_batch(pair: Pair, count: int) -> None:
    sent, received = pair.transfers(count)
    target = bytearray(count * PAGE_SIZE)
    received.target_memory(target)
    data = os.urandom(count * PAGE_SIZE)
    records, sealed = pair.client.seal(sent, region=REGION, first_gpa=BASE_GPA, plain=data)
    opened = pair.server.open(received, records)
    assert target == data
    assert (sealed.pages, sealed.sequence) == (opened.pages, opened.sequence) == (count, count - 1)
    pair.server.check_commit_mac(received, pair.client.commit_mac(sent))


@pytest.mark.parametrize("bad", [0, 3, 4, 40, 299])
def test_open_when_a_record_in_any_part_is_bad_counts_from_the_start(pair: Pair, bad: int) -> None:
    sent, received = pair.transfers(300)
    target = bytearray(300 * PAGE_SIZE)
    received.target_memory(target)
    data = pages(300)
    records = bytearray(pair.client.seal(sent, region=REGION, first_gpa=BASE_GPA, plain=data)[0])
    records[bad * 4160 + 99] ^= 1
    with refused("TAMPERED") as caught:
        pair.server.open(received, records)
    assert caught.value.result is not None
    assert (caught.value.result.pages, caught.value.result.bad_index) == (bad, bad)
    assert target == data[: bad * PAGE_SIZE] + bytes((300 - bad) * PAGE_SIZE)
    assert pair.server.stats().opened_pages == bad
    assert len(pair.server_bridge.random(3)) == 3  # the lane has nothing left of the batch


def test_seal_when_its_end_is_out_of_range_seals_nothing(pair: Pair) -> None:
    sent, _ = pair.transfers(100)
    with refused("OUT_OF_RANGE"):
        pair.client.seal(sent, region=REGION, first_gpa=BASE_GPA, plain=pages(101))
    assert sent.pages == 0
    assert pair.client.stats().sent_pages == 0


def test_target_fd_when_refused_leaves_no_descriptor_behind(pair: Pair) -> None:
    _, received = pair.transfers(2)
    short, right = os.memfd_create("short"), os.memfd_create("right")
    os.ftruncate(short, PAGE_SIZE)
    os.ftruncate(right, 2 * PAGE_SIZE)
    with refused("TARGET"):
        received.target_fd(short)
    received.target_fd(right)
    pair.server.open(received, pair.client.seal(None, region=REGION, first_gpa=BASE_GPA, plain=pages(2))[0])
    assert os.pread(right, 2 * PAGE_SIZE, 0) == pages(2)
    for fd in (short, right):
        os.close(fd)
