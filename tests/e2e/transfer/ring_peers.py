"""Peers of a ring as processes of their own. Run as `python ring_peers.py ROLE ...` by test_ring.py."""

import mmap
import os
import random
import sys
import time
from pathlib import Path

PAGE = 4096


def scribble(fd: int, seed: int) -> None:
    """Flips bits all over the shared memory, the rings' indices and headers more than the rest."""
    chance = random.Random(seed)
    size = os.fstat(fd).st_size
    hot = [half + at for half in (0, size // 2) for at in (128, 256, 384, 512, 4096, 4097, 4100)]
    with mmap.mmap(fd, size) as memory:
        print("scribbling", flush=True)
        while True:
            at = chance.choice(hot) if chance.random() < 0.01 else chance.randrange(size)
            memory[at] ^= 1 << chance.randrange(8)
            time.sleep(0.0002)


def send_and_stop(address: str, root: str, stop_at: int) -> None:
    """Sends through the ring and stops in the middle of it."""
    from pagegate.client import Client
    from pagegate.platforms.simulated import SimulatedRoot
    from support.appraiser import appraiser_for
    from support.platforms import CLIENT, SERVER, Guests

    guests = SimulatedRoot.open_or_create(Path(root))
    appraiser = appraiser_for(guests, {label: {"*": "read-write"} for label in (CLIENT, SERVER)})

    class Stopping:
        pages = 256

        def read(self, first: int, count: int) -> bytes:
            if first >= stop_at:
                print("stopped", flush=True)
                time.sleep(3600)
            return b"k" * (count * PAGE)

    platform = Guests(guests)(CLIENT)
    with Client(address, platform=platform, appraiser=appraiser, regions={"book": "write"}, ring=True) as client:
        client.send("book", Stopping())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    if sys.argv[1] == "scribble":
        scribble(int(sys.argv[2]), int(sys.argv[3]))
    else:
        send_and_stop(sys.argv[2], sys.argv[3], int(sys.argv[4]))
