"""Run as a program under kill_at.so: writes a protected region, dying at each change of a file in turn.

crasher.py DIRECTORY TORN. Prints one JSON line a death: how many writes were acknowledged, and what another start
of the region found. Every run is a forked child; this process has no bridge.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "enclave_bridge"))

from pairs import REGION, connect

from pagegate.platforms.sealing import file_key
from pagegate.transfer.protection import GuardMaker
from pagegate.transfer.region import Region, RegionSpec

PAGES = 8
BASE = 1 << 32


def page(letter: str) -> bytes:
    return letter.encode() * 4096


class Site:
    """A region, its server's bridge, and a client's session."""

    def __init__(self, home: Path, arm: Callable[[], None] = lambda: None) -> None:
        self.pair = connect()
        self.bridge = self.pair.server_bridge
        key = file_key(home.parent / "sealing.key")
        key(self.bridge).close()
        arm()
        spec = RegionSpec("disk", BASE, PAGES, home)
        self.region = Region(spec, REGION, GuardMaker(self.bridge, key))

    def _seal(self, first: int, plain: bytes) -> bytes:
        return self.pair.client.seal(None, region=REGION, first_gpa=BASE + first * 4096, plain=plain)[0]

    def write_page(self, index: int, plain: bytes) -> None:
        self.region.write_page(self.bridge, self.pair.server, self._seal(index, plain))

    def send(self, first: int, plain: bytes, *, delta: bool) -> None:
        name = os.urandom(16)
        transfer = self.region.begin(self.bridge, name, delta=delta)
        self.pair.server.open(transfer, self._seal(first, plain))
        transfer.close()
        self.region.commit(name)

    def content(self) -> bytes:
        fd = self.region.open_current()
        try:
            return os.pread(fd, PAGES * 4096, 0)
        finally:
            os.close(fd)


STATES = ["AAAAAAAA", "AAABAAAA", "AAACAAAA", "DDDDDDDD", "DEEDDDDD", "DEEDDFDD"]
"""The region after 0, 1... writes, a letter a page."""


def begin(home: Path) -> None:
    Site(home).send(0, b"".join(map(page, STATES[0])), delta=False)


def write(site: Site, acknowledge: Callable[[], None]) -> None:
    """From one state to the next."""
    for step in (
        lambda: site.write_page(3, page("B")),
        lambda: site.write_page(3, page("C")),
        lambda: site.send(0, page("D") * PAGES, delta=False),
        lambda: site.send(1, page("E") * 2, delta=True),
        lambda: site.write_page(5, page("F")),
    ):
        step()
        acknowledge()


def look(home: Path) -> dict[str, Any]:
    """What the next start finds; it also goes on writing."""
    site = Site(home)
    content = site.content()
    letters = "".join(chr(content[i * 4096]) for i in range(PAGES))
    whole = content == b"".join(map(page, letters))
    found = site.region.verify(BASE, PAGES, max_ranges=8)
    result = {
        "state": STATES.index(letters) if whole and letters in STATES else letters,
        "generation": site.region.generation,
        "protection": site.region.protection,
        "bad": found.bad_pages,
        "files": sorted(path.name.split("-")[0] for path in home.iterdir()),
    }
    if site.region.protection == "page MACs":
        site.write_page(7, page("Z"))
        site.region.close()
        result["bad_after"] = Site(home).region.verify(BASE, PAGES, max_ranges=8).bad_pages
    return result


def forked(body: Callable[[int], None]) -> tuple[int, bytes]:
    """Runs `body` in a child with a pipe to write to; its wait status and what it wrote."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(out)
            body(into)
            code = 0
        finally:
            os._exit(code)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        said = pipe.read()
    return os.waitpid(child, 0)[1], said


def main() -> None:
    base, torn = Path(sys.argv[1]), int(sys.argv[2])
    kill_at = ctypes.CDLL(None).kill_at
    kill_at.argtypes = (ctypes.c_long, ctypes.c_int)
    template, home = base / "template", base / "home"
    assert forked(lambda _: begin(template)) == (0, b"")
    for n in range(100000):
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(template, home, symlinks=True)

        def run(pipe: int, n: int = n) -> None:
            write(Site(home, lambda: kill_at(n, torn)), lambda: os.write(pipe, b"."))  # type: ignore[func-returns-value]

        status, acknowledged = forked(run)
        assert status in (0, signal.SIGKILL), status
        looked, said = forked(lambda pipe: os.write(pipe, json.dumps(look(home)).encode()))  # type: ignore[arg-type,return-value]
        assert looked == 0
        print(json.dumps({"n": n, "acknowledged": len(acknowledged), **json.loads(said)}))
        if status == 0:
            return


main()
