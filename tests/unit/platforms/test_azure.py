"""Azure's HCL report: real blobs, damaged ones, and its refusal to pose as fresh evidence."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagegate.errors import PlatformError
from pagegate.platforms.azure import NV_INDEX, AzurePlatform, boot_evidence_from, parse_hcl

REAL_BLOBS = ["milan-v3-azure-hcl-a", "milan-v3-azure-hcl-b", "unverified-milan-v2-azure-hcl-ufcg"]


@pytest.fixture
def blob(snp_vectors: Path) -> bytearray:
    return bytearray((snp_vectors / REAL_BLOBS[0] / "hcl-report.bin").read_bytes())


@pytest.mark.parametrize("name", REAL_BLOBS)
def test_parse_of_a_real_blob_gives_its_report_and_hashed_runtime_data(snp_vectors: Path, name: str) -> None:
    folder = snp_vectors / name

    hcl = parse_hcl((folder / "hcl-report.bin").read_bytes())

    assert hcl.report == (folder / "report.bin").read_bytes()
    assert [key["kid"] for key in json.loads(hcl.runtime_data)["keys"]] == ["HCLAkPub", "HCLEkPub"]
    assert len(hcl.runtime_data) == json.loads((folder / "expected.json").read_text())["hcl"]["runtime_data_len"]


@pytest.mark.parametrize("offset", [1236, 1236 + 1109, 32 + 0x50, 32 + 0x8F])
def test_parse_when_runtime_data_and_report_disagree_is_refused(blob: bytearray, offset: int) -> None:
    blob[offset] ^= 1

    with pytest.raises(PlatformError) as caught:
        parse_hcl(bytes(blob))
    assert caught.value.reason == "HCL_RUNTIME_DATA_MISMATCH"


@pytest.mark.parametrize(("kind", "name"), [(2, "sha384"), (3, "sha512")])
def test_parse_when_the_hash_is_of_another_kind_checks_that_kind(blob: bytearray, kind: int, name: str) -> None:
    blob[1228] = kind
    digest = hashlib.new(name, blob[1236 : 1236 + 1110]).digest()
    blob[32 + 0x50 : 32 + 0x90] = digest.ljust(64, b"\0")

    assert len(parse_hcl(bytes(blob)).runtime_data) == 1110


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, b"XCLA"), (12, b"\4"), (1224, b"\4"), (1228, b"\0"), (1228, b"\4"), (1216, b"\0"), (1232, b"\xff\xff")],
    ids=["magic", "request type", "report type", "hash 0", "hash 4", "size", "data size"],
)
def test_parse_when_a_field_is_wrong_is_refused(blob: bytearray, offset: int, value: bytes) -> None:
    blob[offset : offset + len(value)] = value

    with pytest.raises(PlatformError) as caught:
        parse_hcl(bytes(blob))
    assert caught.value.reason == "HCL_REPORT_MALFORMED"


@pytest.mark.parametrize("length", [0, 31, 1235, 1236 + 1109])
def test_parse_when_cut_short_is_refused(blob: bytearray, length: int) -> None:
    with pytest.raises(PlatformError) as caught:
        parse_hcl(bytes(blob[:length]))
    assert caught.value.reason == "HCL_REPORT_MALFORMED"


class ScriptedTpm:
    """Answers the two commands for one NV index, byte by byte as the TPM library's part 3 lays them out."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._answers: Iterator[bytes] = iter(())

    def write(self, data: bytes) -> int:
        _, size, code = struct.unpack_from(">HII", data)
        assert size == len(data)
        if code == 0x169:
            assert data[10:] == NV_INDEX.to_bytes(4, "big")
            public = struct.pack(">HIHIHH", 14, NV_INDEX, 0x000B, 0x62048, 0, len(self._content))
            body, tag = public + b"\x00\x02ab", 0x8001
        else:
            assert code == 0x14E
            wanted, offset = struct.unpack(">HH", data[-4:])
            chunk = self._content[offset : offset + wanted]
            body = struct.pack(">IH", 2 + len(chunk), len(chunk)) + chunk + bytes(5)
            tag = 0x8002
        self._answers = iter((struct.pack(">HII", tag, 10 + len(body), 0) + body,))
        return len(data)

    def read(self, size: int) -> bytes:
        return next(self._answers)


def test_boot_evidence_when_read_from_a_vtpm_has_the_report_and_its_runtime_data(blob: bytearray) -> None:
    evidence = boot_evidence_from(ScriptedTpm(bytes(blob)))

    assert evidence.report == bytes(blob[32 : 32 + 1184])
    assert evidence.attachments == {"azure-runtime-data": bytes(blob[1236 : 1236 + 1110])}


def test_boot_evidence_when_there_is_no_vtpm_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="tpmrm0") as caught:
        AzurePlatform(tmp_path / "tpmrm0").boot_evidence()
    assert caught.value.reason == "AZURE_VTPM_UNAVAILABLE"


def test_boot_evidence_when_the_device_is_no_tpm_is_refused(tmp_path: Path) -> None:
    device = tmp_path / "file"
    device.write_bytes(b"")

    with pytest.raises(PlatformError) as caught:
        AzurePlatform(device).boot_evidence()
    assert caught.value.reason == "TPM_RESPONSE_MALFORMED"


def test_attest_is_always_refused_since_the_report_is_of_the_boot(tmp_path: Path) -> None:
    platform = AzurePlatform(tmp_path)

    with pytest.raises(PlatformError, match="vTPM quote") as caught:
        platform.attest(bytes(64))
    assert caught.value.reason == "AZURE_REPORT_NOT_FRESH"
    assert (platform.name, platform.simulated, platform.evidence_type) == ("azure", False, "sev-snp")
