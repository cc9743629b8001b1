"""Shims that play the kernel's interfaces to SEV-SNP, a simulated chip behind them, and children under them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from pagegate.platforms.simulated import SimulatedChip, SimulatedPlatform, SimulatedRoot, measurement_of

HERE = Path(__file__).parent
GUIDS = (
    "63da758d-e664-4564-adc5-f4b93be8accd",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    "c0b406a4-a803-4952-9743-3fb6014cd0ae",
)


def table_of(certificates: tuple[bytes, ...]) -> bytes:
    """The host's certificate table of a VCEK, ASK and ARK."""
    headers, data = b"", b""
    start = 24 * (len(certificates) + 1)
    for guid, certificate in zip(GUIDS, certificates, strict=True):
        place = (start + len(data)).to_bytes(4, "little") + len(certificate).to_bytes(4, "little")
        headers += UUID(guid).bytes + place
        data += certificate
    return headers + bytes(24) + data


@dataclass
class Machine:
    """A fake SEV-SNP guest: what its firmware and host have, and what is to go wrong."""

    home: Path
    chip: SimulatedChip
    shim: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def tsm_root(self) -> Path:
        return self.home / "report"

    @property
    def calls(self) -> list[str]:
        """What reached the kernel, in order."""
        path = self.home / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def go_wrong(self, *lines: str) -> None:
        (self.home / "script").write_text("".join(f"{line}\n" for line in lines))

    def set_table(self, table: bytes) -> None:
        (self.home / "table.bin").write_bytes(table)

    def ask(self, kind: str, **options: Any) -> dict[str, Any]:
        """Runs the provider in a process of its own under the shim; returns its outcome."""
        environment = os.environ | {
            "LD_PRELOAD": str(self.shim),
            "FAKE_SNP_DIR": str(self.home),
            "FAKE_TSM_ROOT": str(self.tsm_root),
            **self.environment,
        }
        command = [sys.executable, str(HERE / "ask_platform.py"), kind, json.dumps(options)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        outcome: dict[str, Any] = json.loads(done.stdout)
        outcome["stderr"] = done.stderr
        return outcome


def require_signature(outcome: dict[str, Any], chip: SimulatedChip) -> None:
    """The report in `outcome` is one that the chip signed."""
    assert "report" in outcome, outcome
    report = bytes.fromhex(outcome["report"])
    key = x509.load_der_x509_certificate(chip.certificates[0]).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    key.verify(encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(hashes.SHA384()))


@pytest.fixture(scope="session")
def chip(tmp_path_factory: pytest.TempPathFactory) -> SimulatedChip:
    directory = tmp_path_factory.mktemp("root")
    return SimulatedRoot.open_or_create(directory, progress=lambda _: None).chip("e2e")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compiles a shim once in a run."""
    folder = tmp_path_factory.mktemp("shims")

    def compile_shim(name: str) -> Path:
        library = folder / f"{name}.so"
        if not library.exists():
            flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
            source = HERE / f"{name}.c"
            subprocess.run(["cc", *flags, "-o", library, source, "-lcrypto", "-ldl"], check=True)
        return library

    return compile_shim


@pytest.fixture
def make_machine(tmp_path: Path, chip: SimulatedChip, compiled: Callable[[str], Path]) -> Callable[[str], Machine]:
    def make(shim: str) -> Machine:
        machine = Machine(tmp_path, chip, compiled(shim))
        machine.tsm_root.mkdir()
        template = SimulatedPlatform(chip, measurement=measurement_of(b"e2e")).attest(bytes(64)).report
        (tmp_path / "template.bin").write_bytes(template[:0x2A0])
        pem = chip.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (tmp_path / "key.pem").write_bytes(pem)
        machine.set_table(table_of(chip.certificates))
        return machine

    return make


@pytest.fixture
def require_signed(chip: SimulatedChip) -> Callable[[dict[str, Any]], None]:
    return lambda outcome: require_signature(outcome, chip)
