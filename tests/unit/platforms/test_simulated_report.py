"""The report writer against real reports: what it writes from their fields must be their bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pagegate.errors import PlatformError
from pagegate.platforms.simulated.report import REPORT_BYTES, SIGNED_BYTES, ReportFields, encode_signature

REAL_REPORTS = [
    "genoa-v3-azure-ms",
    "genoa-v3-veraison",
    "genoa-v5-oak",
    "milan-v2-automata",
    "milan-v2-go-sev-guest",
    "milan-v2-vlek-openanolis",
    "milan-v3-azure-ms",
    "milan-v3-oak-cb",
    "milan-v3-vlek-trustee",
    "milan-v5-gcp-x25519",
    "turin-v5-azure-ms",
    "turin-v5-oak",
    "unverified-milan-v2-lit",
]


def fields_of(report: bytes) -> ReportFields:
    """Reads a report by the offsets printed in 56860, apart from the writer's own layout."""

    def integer(start: int, length: int) -> int:
        return int.from_bytes(report[start : start + length], "little")

    flags = integer(0x48, 4)
    return ReportFields(
        version=integer(0x00, 4),
        guest_svn=integer(0x04, 4),
        policy=integer(0x08, 8),
        family_id=report[0x10:0x20],
        image_id=report[0x20:0x30],
        vmpl=integer(0x30, 4),
        signature_algorithm=integer(0x34, 4),
        current_tcb=report[0x38:0x40],
        platform_info=integer(0x40, 8),
        author_key_enabled=bool(flags & 1),
        chip_key_masked=bool(flags & 2),
        signing_key=flags >> 2 & 7,
        report_data=report[0x50:0x90],
        measurement=report[0x90:0xC0],
        host_data=report[0xC0:0xE0],
        id_key_digest=report[0xE0:0x110],
        author_key_digest=report[0x110:0x140],
        report_id=report[0x140:0x160],
        report_id_migration_agent=report[0x160:0x180],
        reported_tcb=report[0x180:0x188],
        cpuid=report[0x188:0x18B],
        chip_id=report[0x1A0:0x1E0],
        committed_tcb=report[0x1E0:0x1E8],
        current_version=report[0x1E8:0x1EB],
        committed_version=report[0x1EC:0x1EF],
        launch_tcb=report[0x1F0:0x1F8],
        launch_mitigations=integer(0x1F8, 8),
        current_mitigations=integer(0x200, 8),
    )


@pytest.mark.parametrize("name", REAL_REPORTS)
def test_fields_of_real_report_when_written_again_give_its_signed_bytes(snp_vectors: Path, name: str) -> None:
    report = (snp_vectors / name / "report.bin").read_bytes()

    assert fields_of(report).to_bytes() == report[:SIGNED_BYTES]


@pytest.mark.parametrize("name", REAL_REPORTS)
def test_signature_of_real_report_when_written_again_gives_its_bytes(snp_vectors: Path, name: str) -> None:
    report = (snp_vectors / name / "report.bin").read_bytes()
    r = int.from_bytes(report[SIGNED_BYTES : SIGNED_BYTES + 72], "little")
    s = int.from_bytes(report[SIGNED_BYTES + 72 : SIGNED_BYTES + 144], "little")

    assert encode_signature(r, s) == report[SIGNED_BYTES:REPORT_BYTES]


def blank(**changes: object) -> ReportFields:
    return replace(fields_of(bytes(REPORT_BYTES)), **changes)  # type: ignore[arg-type]


def test_flags_when_all_set_take_their_bits() -> None:
    body = blank(author_key_enabled=True, chip_key_masked=True, signing_key=7).to_bytes()

    assert body[0x48:0x4C] == bytes((0b11111, 0, 0, 0))


@pytest.mark.parametrize(("field", "value"), [("report_data", b"\0" * 63), ("cpuid", b""), ("chip_id", b"\0" * 65)])
def test_bytes_field_when_of_wrong_length_is_refused_by_name(field: str, value: bytes) -> None:
    with pytest.raises(PlatformError, match=f"{field} has {len(value)} bytes") as caught:
        blank(**{field: value})
    assert caught.value.reason == "SIMULATED_REPORT_FIELD_INVALID"


@pytest.mark.parametrize(("field", "value"), [("vmpl", -1), ("version", 1 << 32), ("signing_key", 8)])
def test_integer_field_when_too_wide_is_refused_by_name(field: str, value: int) -> None:
    with pytest.raises(PlatformError, match=f"{field} is {value}"):
        blank(**{field: value})
