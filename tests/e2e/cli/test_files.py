"""Files at both ends, with io_uring and where the kernel refuses it; and a disk that is full."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pagegate.client import Client
from pagegate.config import PeerConfig
from pagegate.connect import build_appraiser, build_platform
from pagegate.demo.run import CLIENT_WORKLOAD
from support import without_io_uring

Run = Callable[..., subprocess.CompletedProcess[bytes]]
SIZE = 1 << 20
REFUSED = (sys.executable, without_io_uring.__file__)


@pytest.fixture(params=["as the kernel has it", "refused"])
def before(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What runs both ends."""
    return REFUSED if request.param == "refused" else ()


def client(site, address: str) -> Client:
    config = PeerConfig(
        platform="simulated",
        allow_simulated=True,
        offline=True,
        policy=site.policy,
        simulated_workload=CLIENT_WORKLOAD,
        simulated_root=Path(next(f for f in site.flags if "simulated-root" in f).split("=", 1)[1]),
        state_dir=site.directory / "state",
    )
    return Client(
        address,
        platform=build_platform(config),
        appraiser=build_appraiser(config),
        regions={"book": "read-write"},
    )


def test_without_io_uring_the_bridge_reads_by_pread(pagegate: Run):
    code = "import enclave_bridge as eb; print(eb.Bridge(max_sessions=1, max_handshakes=1).info.file_io)"
    done = subprocess.run([*REFUSED, sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"pread\n"
    assert b"io_uring_setup" in pagegate("doctor", before=REFUSED).stdout


def test_send_when_the_file_has_any_size_arrives_padded_with_zeros(site, serving, pagegate: Run, before):
    home = site.directory / "book"
    server = serving(*site.server_flags(f"book=1MiB@0x100000000:{home}"), before=before)
    snapshot = site.directory / "snapshot"
    for generation, size in enumerate((1, 4095, 4097, 300_001, SIZE), start=1):
        data = os.urandom(size)
        snapshot.write_bytes(data)
        done = pagegate("send", server.address, "book", str(snapshot), *site.client_flags, before=before)
        assert done.returncode == 0, done.stderr
        assert f"{-(-size // 4096)} pages committed to book as generation {generation}".encode() in done.stdout
        assert (home / "current").read_bytes() == data + bytes(SIZE - size)


def test_region_of_files_when_read_gives_what_was_sent(site, serving, before):
    server = serving(*site.server_flags(f"book=1MiB@0x100000000:{site.directory / 'book'}"), before=before)
    data = os.urandom(SIZE)
    with client(site, server.address) as connected:
        connected.send("book", data)
        connected.send_page("book", site.base + 8192, b"p" * 4096)
        pages, read = connected.read("book")
    assert pages == data[:8192] + b"p" * 4096 + data[12288:]
    assert read.generation == 2


def test_send_when_the_region_s_disk_is_full_says_so_and_keeps_the_former_pages(site, serving, pagegate: Run, before):
    disk = site.directory / "disk"
    disk.mkdir()
    private = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=512k none {disk} && exec "$@"', "sh")
    if subprocess.run([*private, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk; enclave_bridge/tests/test_files.c tries a size limit too")
    server = serving(*site.server_flags(f"book=1MiB@0x100000000:{disk / 'book'}"), before=[*private, *before])
    snapshot = site.directory / "snapshot"

    def send(content: bytes) -> subprocess.CompletedProcess[bytes]:
        snapshot.write_bytes(content)
        return pagegate("send", server.address, "book", str(snapshot), *site.client_flags)

    assert send(b"a" * 8192).returncode == 0
    refused = send(os.urandom(SIZE))
    assert refused.returncode == 1
    assert b"TARGET_FULL" in refused.stderr
    assert b"make room" in refused.stderr
    with client(site, server.address) as connected:
        assert bytes(connected.read("book")[0][:12288]) == b"a" * 8192 + bytes(4096)
    assert b"generation 2" in send(b"b" * 4096).stdout
