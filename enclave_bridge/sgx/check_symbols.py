"""Holds the trusted part to symbols.txt: what it needs from outside itself, no more and no less.

check_symbols.py ENCLAVE.so symbols.txt
"""

import subprocess
import sys
from pathlib import Path


def needed(image: str) -> set[str]:
    """Undefined symbols of the linked trusted part."""
    listing = subprocess.run(["/usr/bin/env", "nm", "-u", image], capture_output=True, text=True, check=True)
    names = (row.split()[-1].partition("@")[0] for row in listing.stdout.splitlines() if row.strip())
    return {name.removeprefix("__wrap_") for name in names}


def allowed(path: str) -> set[str]:
    """The words of the list, comments left out."""
    rows = Path(path).read_text().splitlines()
    return {word for row in rows if not row.startswith("#") for word in row.split()}


def main(image: str, listed: str) -> int:
    """Name what is too much and what is no longer needed."""
    wants, may = needed(image), allowed(listed)
    # The compiler decides by its options whether it calls this one.
    unused = may - wants - {"__stack_chk_fail", "memcpy", "memmove", "memset", "malloc"}
    for name in sorted(wants - may):
        print(f"{name}: an enclave may not have it; if it does, add it to {listed}")
    for name in sorted(unused):
        print(f"{name}: listed but not needed")
    print(f"{len(wants)} symbols from outside the trusted part")
    return 1 if unused or not wants <= may else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
