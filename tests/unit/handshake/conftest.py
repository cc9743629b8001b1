"""A client and a server state machine, exchanged by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import enclave_bridge as eb
from pagegate.evidence.model import AccessMode, Appraiser
from pagegate.handshake.client import ClientHandshake
from pagegate.handshake.server import ServerHandshake, ServerSettings
from pagegate.transfer.region import RegionSpec, RegionTable
from support.handshake import Pair
from support.platforms import CLIENT, SERVER, Guests


@pytest.fixture
def bridge() -> Iterator[eb.Bridge]:
    """One pool of secrets, roomy enough for several handshakes."""
    with eb.Bridge(max_sessions=16, max_handshakes=16) as bridge:
        yield bridge


@pytest.fixture
def regions() -> Iterator[RegionTable]:
    """One region in memory: book."""
    with contextlib.closing(RegionTable([RegionSpec("book", 1 << 32, 16)])) as table:
        yield table


@pytest.fixture
def pair(
    bridge: eb.Bridge, regions: RegionTable, platform_for: Guests, appraiser: Appraiser
) -> Iterator[Callable[..., Pair]]:
    """pair(**kw): two sides that believe each other. What a side brings can be given: client, server (platforms),
    client_appraiser, server_appraiser, wanted, suites, tls_binding, regions, settings, server_bridge."""
    made: list[Pair] = []

    def make(**kw: Any) -> Pair:
        one = Pair(
            ClientHandshake(
                bridge,
                kw.get("client") or platform_for(CLIENT),
                kw.get("client_appraiser") or appraiser,
                kw.get("wanted", {"book": AccessMode.READ_WRITE}),
                **{name: kw[name] for name in ("suites", "tls_binding") if name in kw},
            ),
            ServerHandshake(
                kw.get("server_bridge", bridge),
                kw.get("server") or platform_for(SERVER),
                kw.get("server_appraiser") or appraiser,
                kw.get("regions", regions),
                kw.get("settings", ServerSettings()),
            ),
        )
        made.append(one)
        return one

    yield make
    for one in made:
        one.client.close()
        one.server.close()
        for established in one.opened:
            established.session.close()
