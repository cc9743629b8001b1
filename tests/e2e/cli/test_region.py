"""`pagegate region verify` and the sealing options of `pagegate serve`, as processes."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def home(site) -> Path:
    return site.directory / "book"


@pytest.fixture
def region(home: Path) -> str:
    return f"book=1MiB@0x100000000:{home}"


@pytest.fixture
def send(site, pagegate: Run) -> Callable[[str], None]:
    def run(address: str) -> None:
        done = pagegate("send", address, "book", "-", *site.client_flags, stdin=os.urandom(1 << 20))
        assert done.returncode == 0, done.stderr

    return run


def flip(home: Path, page: int) -> None:
    with (home / "current").open("r+b") as file:
        byte = os.pread(file.fileno(), 1, page * 4096)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), page * 4096)


def test_region_verify_when_all_is_well_says_so(site, serving, pagegate: Run, region: str, send):
    server = serving(*site.server_flags(region))
    send(server.address)
    done = pagegate("region", "verify", server.address, "book", *site.client_flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"256 pages of book generation 1 are what was written\n"


def test_region_verify_when_pages_were_changed_lists_them_and_exits_2(
    site, serving, pagegate: Run, region: str, home: Path, send
):
    server = serving(*site.server_flags(region))
    send(server.address)
    for page in (17, 40, 41):
        flip(home, page)
    done = pagegate("region", "verify", server.address, "book", *site.client_flags)
    assert done.returncode == 2
    assert done.stdout.decode().splitlines() == [
        "memory tampering detected: 3 of 256 pages of book generation 1 are not what was written",
        "  page 17 at 0x100011000",
        "  pages 40 to 41 at 0x100028000",
    ]
    done = pagegate("region", "verify", server.address, "book", "--json", *site.client_flags)
    assert done.returncode == 2
    assert json.loads(done.stdout) == {
        "region": "book",
        "generation": 1,
        "pages": 256,
        "intact": False,
        "bad_pages": 3,
        "bad": [{"first_gpa": "0x100011000", "pages": 1}, {"first_gpa": "0x100028000", "pages": 2}],
    }
    assert "memory tampering detected" in server.log.read_text()


def test_region_verify_when_more_runs_are_bad_than_are_listed_says_how_many_more(
    site, serving, pagegate: Run, home: Path, send
):
    server = serving(*site.server_flags(f"book=4MiB@0x100000000:{home}"))
    send(server.address)
    for page in range(0, 1024, 2):
        flip(home, page)
    done = pagegate("region", "verify", server.address, "book", *site.client_flags)
    assert done.returncode == 2
    assert done.stdout.decode().splitlines()[-1] == "  and 256 more"


def test_region_verify_when_the_server_starts_again_still_knows(
    site, serving, pagegate: Run, region: str, home: Path, send
):
    first = serving(*site.server_flags(region))
    send(first.address)
    first.process.kill()
    first.process.wait()
    flip(home, 200)
    second = serving(*site.server_flags(region))
    done = pagegate("region", "verify", second.address, "book", *site.client_flags)
    assert done.returncode == 2
    assert b"page 200 at 0x1000c8000" in done.stdout


def test_region_verify_when_the_region_is_unprotected_says_so(site, serving, pagegate: Run, region: str, send):
    server = serving(*site.server_flags(region), "--unprotected=book")
    send(server.address)
    done = pagegate("region", "verify", server.address, "book", *site.client_flags)
    assert done.returncode == 1
    assert b"keeps no page MACs" in done.stderr


def test_serve_when_unprotected_names_no_region_is_refused(site, pagegate: Run, region: str):
    done = pagegate("serve", *site.server_flags(region), "--unprotected=disk")
    assert done.returncode == 1
    assert b"--unprotected names no region: disk" in done.stderr


def test_serve_when_the_key_is_to_come_from_snp_and_there_is_none_says_what_to_choose(site, pagegate: Run, region: str):
    done = pagegate("serve", *site.server_flags(region), "--sealing=snp")
    assert done.returncode == 1
    assert b"SEV_GUEST_UNAVAILABLE" in done.stderr
    assert b"--sealing file" in done.stderr
