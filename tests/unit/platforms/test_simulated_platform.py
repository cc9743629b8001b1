"""Evidence of the simulated platform: real format, real signature, and never without the word SIMULATED."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from pagegate.errors import PlatformError
from pagegate.evidence.model import Evidence, EvidenceType, KeyKind
from pagegate.platforms.model import Platform
from pagegate.platforms.simulated import PRODUCTS, SimulatedPlatform, SimulatedRoot, measurement_of

OpenRoot = Callable[[str], SimulatedRoot]
REPORT_DATA = bytes(range(64))
MEASUREMENT = measurement_of(b"guest")


def require_signature(evidence: Evidence) -> None:
    key = x509.load_der_x509_certificate(evidence.certificates[0]).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    r, s = (int.from_bytes(evidence.report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    key.verify(encode_dss_signature(r, s), evidence.report[:0x2A0], ec.ECDSA(hashes.SHA384()))


def make(simulated_root: OpenRoot, product: str = "Milan", **options: object) -> SimulatedPlatform:
    chip = simulated_root(product).chip("guest-host")
    return SimulatedPlatform(chip, measurement=MEASUREMENT, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_attest_for_each_product_and_version_signs_a_report_with_the_data(
    simulated_root: OpenRoot, product: str, version: int
) -> None:
    platform: Platform = make(simulated_root, product, version=version)

    evidence = platform.attest(REPORT_DATA)

    require_signature(evidence)
    assert evidence.type is platform.evidence_type is EvidenceType.SEV_SNP
    assert len(evidence.report) == 1184
    assert evidence.report[0] == version
    assert evidence.report[0x50:0x90] == REPORT_DATA
    assert evidence.report[0x90:0xC0] == MEASUREMENT
    assert evidence.report[0x188:0x18B] == (bytes(3) if version == 2 else PRODUCTS[product].cpuid)


def test_platform_when_asked_says_that_it_is_simulated(simulated_root: OpenRoot) -> None:
    platform = make(simulated_root)

    assert platform.simulated
    assert platform.name == "simulated"


def test_attest_when_a_signed_byte_is_changed_no_longer_verifies(simulated_root: OpenRoot) -> None:
    evidence = make(simulated_root).attest(REPORT_DATA)
    changed = bytearray(evidence.report)
    changed[0x90] ^= 1

    with pytest.raises(InvalidSignature):
        require_signature(replace(evidence, report=bytes(changed)))


def test_attest_when_called_twice_is_one_guest(simulated_root: OpenRoot) -> None:
    platform = make(simulated_root)
    first, second = platform.attest(REPORT_DATA), platform.attest(bytes(64))

    assert first.report[0x140:0x160] == second.report[0x140:0x160] != bytes(32)
    assert first.certificates == second.certificates == platform.chip.certificates


def test_attest_with_guest_identity_puts_each_value_in_its_place(simulated_root: OpenRoot) -> None:
    report = (
        make(
            simulated_root,
            host_data=b"h" * 32,
            policy=0xB0000,
            vmpl=2,
            guest_svn=7,
            id_key_digest=b"i" * 48,
            author_key_digest=b"a" * 48,
            family_id=b"f" * 16,
            image_id=b"m" * 16,
        )
        .attest(REPORT_DATA)
        .report
    )

    assert report[0x04:0x08] == b"\7\0\0\0"
    assert report[0x08:0x10] == bytes.fromhex("00000b0000000000")
    assert report[0x10:0x30] == b"f" * 16 + b"m" * 16
    assert report[0x30:0x34] == b"\2\0\0\0"
    assert report[0x48] == 1
    assert report[0xC0:0x140] == b"h" * 32 + b"i" * 48 + b"a" * 48


def test_attest_with_a_vlek_says_so_and_carries_no_chip_id(simulated_root: OpenRoot) -> None:
    chip = simulated_root("Milan").chip("cloud", kind=KeyKind.VLEK)

    evidence = SimulatedPlatform(chip, measurement=MEASUREMENT).attest(REPORT_DATA)

    require_signature(evidence)
    assert evidence.report[0x48] == 1 << 2
    assert evidence.report[0x1A0:0x1E0] == bytes(64)


def test_attest_with_an_adjustment_signs_the_adjusted_report(simulated_root: OpenRoot) -> None:
    platform = make(simulated_root, adjust=lambda fields: replace(fields, policy=1 << 19))

    evidence = platform.attest(REPORT_DATA)

    require_signature(evidence)
    assert int.from_bytes(evidence.report[0x08:0x10], "little") == 1 << 19


@pytest.mark.parametrize("length", [0, 63, 65])
def test_attest_when_report_data_is_not_64_bytes_is_refused(simulated_root: OpenRoot, length: int) -> None:
    with pytest.raises(PlatformError, match=f"report_data has {length} bytes"):
        make(simulated_root).attest(bytes(length))


def test_platform_when_the_report_version_is_unknown_is_refused(simulated_root: OpenRoot) -> None:
    with pytest.raises(PlatformError, match="version 1 is not known"):
        make(simulated_root, version=1)


def test_measurement_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    path.write_bytes(b"guest")

    assert measurement_of(path) == measurement_of(b"guest") == MEASUREMENT
    assert len(MEASUREMENT) == 48


def test_measurement_of_different_bytes_differs() -> None:
    assert measurement_of(b"guesT") != MEASUREMENT
