"""Fixtures that several test folders share: one simulated root, guests on it, a server and a client."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pagegate.client import Client
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.platforms.simulated import SimulatedRoot
from pagegate.server import Server, ServerOptions
from pagegate.transfer.keeper import BridgeKind
from pagegate.transfer.region import RegionSpec
from support.appraiser import appraiser_for
from support.platforms import CLIENT, SERVER, Guests

BOOK = "book"
DISK = "disk"


@pytest.fixture(scope="session")
def simulated_root(tmp_path_factory: pytest.TempPathFactory) -> SimulatedRoot:
    """The one root of this run. RSA-4096 keys take seconds: xdist workers share it under the root's own lock."""
    base = tmp_path_factory.getbasetemp()
    # xdist gives each worker a folder inside the run's own.
    run = base.parent if base.name.startswith("popen-") else base
    return SimulatedRoot.open_or_create(run / "simulated-root", progress=lambda _: None)


@pytest.fixture(scope="session")
def platform_for(simulated_root: SimulatedRoot) -> Guests:
    """platform_for(label, **fields): a simulated guest; see tests/support/platforms.py."""
    return Guests(simulated_root)


@pytest.fixture
def appraiser(simulated_root: SimulatedRoot) -> EvidenceAppraiser:
    """Believes the guests "client" and "server", for every region."""
    return appraiser_for(simulated_root, {label: {"*": "read-write"} for label in (CLIENT, SERVER)})


@pytest.fixture
def region_specs(tmp_path: Path) -> list[RegionSpec]:
    """Two regions of 256 pages: `book` in memory, `disk` in files."""
    return [RegionSpec(BOOK, 1 << 32, 256), RegionSpec(DISK, 1 << 33, 256, tmp_path / "disk")]


@pytest.fixture
def bridge_kind() -> BridgeKind:
    """Where the servers of `serve` keep their keys; some tests run with both."""
    return BridgeKind.IN_PROCESS


@pytest.fixture
def serve(
    platform_for: Guests, appraiser: EvidenceAppraiser, region_specs: list[RegionSpec], bridge_kind: BridgeKind
) -> Iterator[Callable[..., Server]]:
    """serve(**options): a running server on a free port. `platform`, `appraiser`, `regions`, `observer` and
    `telemetry` go to Server, the rest to ServerOptions. All are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(**kw: Any) -> Server:
            given = {name: kw.pop(name) for name in ("observer", "telemetry") if name in kw}
            given["platform"] = kw.pop("platform", None) or platform_for(SERVER)
            given["appraiser"] = kw.pop("appraiser", None) or appraiser
            given["regions"] = kw.pop("regions", region_specs)
            kw.setdefault("listen", "127.0.0.1:0")
            kw.setdefault("bridge", bridge_kind)
            return stack.enter_context(Server(**given, options=ServerOptions(**kw)))

        yield start


@pytest.fixture
def connect(platform_for: Guests, appraiser: EvidenceAppraiser) -> Iterator[Callable[..., Client]]:
    """connect(server_or_address, **kw): a client that is the guest "client" unless told otherwise."""
    with contextlib.ExitStack() as stack:

        def make(server: Server | str, **kw: Any) -> Client:
            kw.setdefault("platform", platform_for(CLIENT))
            kw.setdefault("appraiser", appraiser)
            kw.setdefault("regions", {BOOK: "read-write", DISK: "read-write"})
            target = server if isinstance(server, str) else server.address
            return stack.enter_context(Client(target, **kw))

        yield make


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """A running server with the regions of `region_specs`."""
    return serve()


@pytest.fixture
def client(connect: Callable[..., Client], server: Server) -> Client:
    """A client of `server`, not yet attested."""
    return connect(server)
