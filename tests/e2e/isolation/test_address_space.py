"""Nothing secret is anywhere in the memory of a server that isolates its bridge, while it works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pagegate.bench.setup import CLIENT, appraiser, platform
from pagegate.client import Client

REPOSITORY = Path(__file__).parents[3]
PAGES = 16 * 256  # 16 MiB
CHUNK = 8 << 20


@pytest.fixture(scope="session")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of the test build, made in the build tree that `.ci/setup` leaves."""
    trees = sorted(REPOSITORY.glob("build/cp*/CMakeCache.txt"), key=lambda path: path.stat().st_mtime)
    assert trees, "run .ci/setup first: the test program is made in its build tree"
    tree, binary = trees[-1].parent, Path(sys.executable).parent
    subprocess.run(
        [binary / "cmake", "--build", tree, "--target", "pagegate-bridge-keys"],
        check=True,
        capture_output=True,
        env={**os.environ, "PATH": f"{binary}:{os.environ['PATH']}"},
    )
    home = tmp_path_factory.mktemp("talkative") / "pagegate-bridge"
    shutil.copy(tree / "isolated" / "pagegate-bridge-keys", home)
    return home


@contextmanager
def serving(directory: Path, program: Path, kind: str, mode: str) -> Iterator[tuple[str, int]]:
    """Address and pid of a server process."""
    command = [sys.executable, str(Path(__file__).parent / "served.py"), str(directory), str(program), kind]
    with subprocess.Popen(
        [*command, str(PAGES), mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[0], server.pid
        finally:
            server.communicate(timeout=30)


def keys_of(program: Path) -> set[bytes]:
    """What the test build has handed out so far. IVs are left out: 12 bytes are found by chance of their parts."""
    slots = Path(f"{program}.keys").read_bytes()
    found = (slots[at + 1 : at + 1 + slots[at]] for at in range(0, len(slots), 64) if slots[at])
    return {key for key in found if len(key) >= 16}


def address_space(pid: int) -> Iterator[bytes]:
    """Everything that a process has mapped and can read, in overlapping chunks."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            bounds, permissions = line.split()[:2]
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            if not permissions.startswith("r") or start >= 1 << 47:
                continue
            tail = b""
            while start < end:
                try:
                    memory.seek(start)
                    chunk = memory.read(min(CHUNK, end - start))
                except OSError:  # gone meanwhile, or secret memory, which nobody can read
                    break
                if not chunk:
                    break
                yield tail + chunk
                tail = chunk[-64:]
                start += len(chunk)


def seen(pid: int, needles: Callable[[], set[bytes]]) -> tuple[set[bytes], int]:
    """Which of the needles are there, and how many bytes were looked at."""
    looked, found, wanted = 0, set(), needles()
    for chunk in address_space(pid):
        looked += len(chunk)
        found |= {needle for needle in wanted if needle in chunk}
    return found, looked


def run(directory: Path, program: Path, kind: str, mode: str) -> tuple[set[bytes], bytes, int, int]:
    """Sends and reads 16 MiB again and again while the server's memory is looked through twice."""
    marker = os.urandom(48)
    page = marker + bytes(4096 - len(marker))
    stop, transfers, errors = threading.Event(), [], []
    with serving(directory, program, kind, mode) as (address, pid):
        client = Client(
            address,
            platform=platform(directory, CLIENT),
            appraiser=appraiser(directory),
            regions={"book": "read-write"},
        )

        def work() -> None:
            data = page * PAGES
            try:
                while not stop.is_set():
                    transfers.append(client.send("book", data).pages)
                    assert client.read("book")[0] == data
                    client.send_page("book", 1 << 32, page)
            except BaseException as error:
                errors.append(error)

        with client:
            thread = threading.Thread(target=work)
            assert client.session  # keys are there before anything is looked for
            thread.start()
            found: set[bytes] = set()
            looked = 0
            # What has to be found is mapped only while a transfer lasts: it may take more than one look.
            wanted = 2 if (kind, mode) == ("isolated", "clean") else 40
            while len(transfers) < wanted and not errors and (wanted == 2 or not found):
                some, size = seen(pid, lambda: {marker, *(keys_of(program) if kind == "isolated" else ())})
                found |= some
                looked += size
            stop.set()
            thread.join()
    assert not errors
    return found, marker, looked, len(keys_of(program)) if kind == "isolated" else 0


@pytest.mark.timeout(240)
def test_server_when_isolated_has_no_key_and_no_plaintext_in_its_memory(tmp_path: Path, talkative: Path) -> None:
    found, _, looked, keys = run(tmp_path, talkative, "isolated", "clean")
    assert found == set()
    assert looked > 50 << 20
    assert keys >= 8


@pytest.mark.timeout(240)
def test_search_when_keys_are_in_the_memory_finds_them(tmp_path: Path, talkative: Path) -> None:
    found, marker, _, _ = run(tmp_path, talkative, "isolated", "plant")
    assert found
    assert marker not in found


@pytest.mark.timeout(240)
def test_search_when_the_bridge_is_in_process_finds_the_plaintext(tmp_path: Path, talkative: Path) -> None:
    found, marker, _, _ = run(tmp_path, talkative, "in-process", "clean")
    assert marker in found
