"""A trading service that sends snapshot after snapshot, says when each is acknowledged, and never gives one up.

Arguments: target, state directory, simulated root, policy, first snapshot's number, pages. Standard output, a line each:
"sending N", then "acknowledged N GENERATION".
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pagegate.config import PeerConfig, PlatformName
from pagegate.connect import connect
from pagegate.demo.run import CLIENT_WORKLOAD
from pagegate.errors import PagegateError
from support.snapshot import make

_PATIENCE_S = 60.0


def main(target: str, state: str, root: str, policy: str, first: str, pages: str) -> None:
    config = PeerConfig(
        platform=PlatformName.SIMULATED,
        allow_simulated=True,
        offline=True,
        state_dir=Path(state),
        simulated_root=Path(root),
        simulated_workload=CLIENT_WORKLOAD,
        policy=Path(policy),
    )
    number = int(first)
    with connect(target, config, {"book": "write"}) as client:
        while True:
            print(f"sending {number}", flush=True)
            data = make(number, int(pages))
            deadline = time.monotonic() + _PATIENCE_S
            while True:
                try:
                    sent = client.send("book", data)
                    break
                except PagegateError as error:
                    if time.monotonic() > deadline:
                        raise
                    print(f"again {number} {error.reason}", flush=True)
                    time.sleep(0.05)
            print(f"acknowledged {number} {sent.generation}", flush=True)
            number += 1


main(*sys.argv[1:])
