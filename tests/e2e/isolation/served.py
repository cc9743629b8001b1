"""A server whose bridge hands its keys out, for the test that looks for them. Arguments: directory, program,
kind of bridge, pages, "plant" or "clean". Prints its address and the bridge's pid; serves until its input ends."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import enclave_bridge as eb
from pagegate.bench.setup import SERVER, appraiser, platform
from pagegate.handshake.model import Limits
from pagegate.server import Server, ServerOptions
from pagegate.transfer.keeper import BridgeKind
from pagegate.transfer.region import RegionSpec


def main() -> None:
    directory, program, kind, pages, mode = sys.argv[1:]

    class Talkative(eb.IsolatedBridge):
        """The bridge of the test build."""

        def __init__(self, **kw: Any) -> None:
            super().__init__(program=Path(program), **kw)

    eb.IsolatedBridge = Talkative  # type: ignore[misc]
    options = ServerOptions(listen="127.0.0.1:0", bridge=BridgeKind(kind), limits=Limits(3600, 64, 8), max_sessions=8)
    with Server(
        platform=platform(Path(directory), SERVER),
        appraiser=appraiser(Path(directory)),
        # Without page MACs a bridge in process has the region mapped, as the search's counterproof needs it.
        regions=[RegionSpec("book", 1 << 32, int(pages), protect=None if kind == "isolated" else False)],
        options=options,
    ) as server:
        print(server.address, server.bridge.info.process, flush=True)
        planted: list[bytes] = []
        stop = threading.Event()
        if mode == "plant":  # what the test must be able to find

            def plant() -> None:
                while not stop.wait(0.05):
                    planted[:] = [Path(f"{program}.keys").read_bytes()]

            threading.Thread(target=plant, daemon=True).start()
        sys.stdin.read()
        stop.set()


if __name__ == "__main__":
    main()
