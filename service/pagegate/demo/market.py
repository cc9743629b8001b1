"""A process with a live heap of market data: order-book entries that it keeps changing.

Run as `python -m pagegate.demo.market MEBIBYTES`. Prints one JSON line {pid, start, end, orders}; on a line on
standard input it stops trading and prints {digest}: the SHA-256 of the heap as it then is.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import struct
import sys
import threading

import enclave_bridge as eb

ORDER = struct.Struct("<QQdII8s24x")
"""Order id, time in ns, price, quantity, side, symbol: 64 bytes."""
SYMBOLS = (b"AAPL", b"MSFT", b"ESZ6", b"EURUSD", b"BTCUSD", b"SPY")


def place(heap: mmap.mmap, slot: int, number: int, dice: random.Random) -> None:
    """Writes one order into its slot."""
    ORDER.pack_into(
        heap,
        slot * ORDER.size,
        number,
        1_764_000_000_000_000_000 + number * 1_000,
        round(100 + dice.gauss(0, 5), 2),
        dice.randrange(1, 10_000),
        number & 1,
        dice.choice(SYMBOLS),
    )


def main() -> None:
    """Fills the heap, trades until told to stop, and says what the heap then is."""
    size = int(sys.argv[1]) << 20
    heap = mmap.mmap(-1, size)
    dice = random.Random(7)  # noqa: S311 - market data, not secrets
    slots = size // ORDER.size
    page_of_orders = eb.PAGE_SIZE // ORDER.size
    for number in range(page_of_orders * 256):
        place(heap, number, number, dice)
    # The first mebibyte, then the rest as copies with their own ids: seconds instead of a minute.
    block = heap[: 1 << 20]
    for start in range(1 << 20, size, 1 << 20):
        heap[start : start + len(block)] = block
        place(heap, start // ORDER.size, start, dice)
    address = _address(heap)
    print(json.dumps({"pid": os.getpid(), "start": address, "end": address + size, "orders": slots}), flush=True)  # noqa: T201

    stop = threading.Event()

    def wait_for_line() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=wait_for_line, daemon=True).start()
    number = slots
    while not stop.wait(0.001):
        for _ in range(100):
            number += 1
            place(heap, dice.randrange(slots), number, dice)
    print(json.dumps({"digest": hashlib.sha256(heap).hexdigest(), "updates": number - slots}), flush=True)  # noqa: T201
    sys.stdin.readline()


def _address(heap: mmap.mmap) -> int:
    import ctypes  # noqa: PLC0415 - only here, to learn where the kernel put the heap

    return ctypes.addressof(ctypes.c_char.from_buffer(heap))


if __name__ == "__main__":
    main()
