"""Appends for ever from several threads; prints each sequence number once it is acknowledged."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from pagegate.audit import AuditLog


def main() -> None:
    target, key, name = sys.argv[1:]
    log = AuditLog.open(target, signing_key_path=Path(key))
    os.write(1, b"ready\n")

    def work(thread: int) -> None:
        number = 0
        while True:
            number += 1
            entry = log.append("commit", f"{name}-{thread}", {"number": number})
            os.write(1, b"%d %s\n" % (entry.seq, entry.hash.hex().encode()))

    for thread in range(3):
        threading.Thread(target=work, args=(thread,)).start()


main()
