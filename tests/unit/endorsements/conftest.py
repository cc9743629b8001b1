"""Fixtures of the endorsement tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from endorsement_support.clock import FakeClock
from endorsement_support.kds import FakeKds
from endorsement_support.pki import Hierarchy
from endorsement_support.types import MakeClient, MakeSettings, MakeSource
from pagegate.endorsements import CachedSource, EndorsementSettings, Timeouts
from pagegate.endorsements.cache import Cache
from pagegate.endorsements.kds import KdsClient

QUICK = Timeouts(connect=2.0, read=0.3, attempt=3.0, total=120.0, crl=15.0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def kds() -> Iterator[FakeKds]:
    with FakeKds() as server:
        yield server


@pytest.fixture(scope="session")
def milan() -> Hierarchy:
    return Hierarchy("Milan")


@pytest.fixture(scope="session")
def turin() -> Hierarchy:
    return Hierarchy("Turin")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    opened = Cache(tmp_path / "endorsements.db", max_bytes=1024 * 1024)
    yield opened
    opened.close()


@pytest.fixture
def settings(kds: FakeKds, tmp_path: Path) -> MakeSettings:
    def make(**changes: Any) -> EndorsementSettings:
        chosen: dict[str, Any] = {"kds_url": kds.url, "proxy": "", "timeouts": QUICK}
        return EndorsementSettings(**(chosen | {"cache_path": tmp_path / "endorsements.db"} | changes))

    return make


@pytest.fixture
def client(settings: MakeSettings, cache: Cache, clock: FakeClock) -> Iterator[MakeClient]:
    made: list[KdsClient] = []

    def make(*, draw: float = 0.5, on_wait: Any = None, **changes: Any) -> KdsClient:
        made.append(KdsClient(settings(**changes), cache, clock=clock, draw=lambda: draw, on_wait=on_wait))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def source(settings: MakeSettings, clock: FakeClock) -> Iterator[MakeSource]:
    """Makes sources; each with its own connection to the same cache file."""
    made: list[CachedSource] = []

    def make(*, clock: FakeClock = clock, **changes: Any) -> CachedSource:
        chosen = settings(**changes)
        cache = Cache(chosen.cache_path, max_bytes=chosen.cache_max_bytes)
        upstream = None if chosen.offline else KdsClient(chosen, cache, clock=clock, draw=lambda: 0.5)
        made.append(CachedSource(chosen, cache, upstream, clock=clock))
        return made[-1]

    yield make
    for one in made:
        one.join(10)
        one.close()
