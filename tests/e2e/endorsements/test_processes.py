"""Several processes on one cache file, and processes that die."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from endorsement_support import vectors
from endorsement_support.kds import FakeKds, silent
from pagegate.endorsements import EndorsementSettings, Timeouts, build_cached_source, leaf_part
from pagegate.endorsements.cache import Cache
from pagegate.endorsements.content import parse

NAME = "milan-v3-oak-cb"
LEAF = leaf_part(vectors.request(NAME))

FIND = """
import sys
from pathlib import Path
from pagegate.endorsements import EndorsementSettings, build_source, request_from_report
source = build_source(EndorsementSettings(cache_path=Path(sys.argv[1]), kds_url=sys.argv[2], proxy="", leaf_interval=0))
print("ready", flush=True)
sys.stdin.readline()
found = source.find(request_from_report(Path(sys.argv[3]).read_bytes()))
print(found.leaf.hex(), flush=True)
"""

WRITE = """
import sys, time
from pathlib import Path
from pagegate.endorsements.cache import Cache
from pagegate.endorsements.content import parse_leaf
cache = Cache(Path(sys.argv[1]), max_bytes=1 << 26)
leaves = [parse_leaf(Path(name).read_bytes()) for name in sys.argv[2:]]
print("ready", flush=True)
while True:
    for leaf in leaves:
        cache.put(leaf, source="writer", now=time.time())
        cache.hold("queue", time.time())
        print(leaf.part.key, flush=True)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        pytest.fail(process.communicate()[1])
    return process


def find(kds: FakeKds, cache_path: Path) -> subprocess.Popen[str]:
    return start(FIND, cache_path, kds.url, vectors.sev_snp() / NAME / "report.bin")


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def result(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


def kill(process: subprocess.Popen[str]) -> str:
    os.kill(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def test_processes_when_they_ask_for_the_same_fetch_it_once(kds: FakeKds, cache_path: Path) -> None:
    kds.delay = 0.3
    processes = [find(kds, cache_path) for _ in range(3)]
    for process in processes:
        go(process)
    assert {result(process) for process in processes} == {vectors.leaf_der(NAME).hex()}
    assert kds.count(LEAF) == 1
    assert len(kds.requests) == 3


def test_processes_when_the_fetching_one_is_killed_the_other_goes_on(kds: FakeKds, cache_path: Path) -> None:
    kds.fail(LEAF, silent(9))
    first, second = find(kds, cache_path), find(kds, cache_path)
    go(first)
    while kds.count(LEAF) == 0:
        time.sleep(0.01)
    go(second)
    kill(first)
    assert result(second) == vectors.leaf_der(NAME).hex()
    assert kds.count(LEAF) == 2


def test_cache_when_its_writers_are_killed_again_and_again_keeps_every_acknowledged_part(cache_path: Path) -> None:
    files = sorted(vectors.sev_snp().glob("*/vcek.der"))
    keys = {leaf.part.key for leaf in vectors.leaves()}
    acknowledged: set[str] = set()
    moments = random.Random(7)
    for _ in range(12):
        writers = [start(WRITE, cache_path, *files) for _ in range(2)]
        time.sleep(moments.uniform(0.0, 0.05))
        for writer in writers:
            acknowledged |= keys & set(kill(writer).splitlines())
    cache = Cache(cache_path, max_bytes=1 << 26)
    stored = {one.part.key: one for one in cache.stored()}
    cache.close()
    assert acknowledged
    assert acknowledged <= set(stored)
    for one in stored.values():
        assert parse(one.part, one.body).body == one.body
    assert not list(cache_path.parent.glob("*.damaged"))


def test_cache_when_many_processes_open_it_at_once_is_made_once(cache_path: Path) -> None:
    script = "import sys; from pathlib import Path; from pagegate.endorsements.cache import Cache\n"
    script += "sys.stdin.readline() if print('ready', flush=True) is None else 0\n"
    script += "Cache(Path(sys.argv[1]), max_bytes=1000).close()"
    processes = [start(script, cache_path) for _ in range(8)]
    for process in processes:
        go(process)
    assert [result(process) for process in processes] == [""] * 8


def test_source_when_kds_rations_queues_and_gets_all(kds: FakeKds, cache_path: Path) -> None:
    kds.ration = 0.3
    settings = EndorsementSettings(
        cache_path=cache_path, kds_url=kds.url, proxy="", leaf_interval=0.2, timeouts=Timeouts(total=60)
    )
    source = build_cached_source(settings)
    parts = list({leaf.part: None for leaf in vectors.leaves()})[:5]
    outcomes = [outcome for _, outcome in source.prewarm(parts)]
    source.close()
    assert [outcome.part for outcome in outcomes] == parts  # type: ignore[union-attr]
    assert len([path for path in kds.requests if "SPL=" in path]) > len(parts), "the server never said 429"
