"""The host's certificate table: a real one, and hostile ones."""

from __future__ import annotations

import ssl
from pathlib import Path
from uuid import UUID

import pytest
from cryptography import x509

from pagegate.errors import PlatformError
from pagegate.platforms.certificate_table import certificates_in

VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes
CRL = UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea").bytes


def entry(guid: bytes, offset: int, length: int) -> bytes:
    return guid + offset.to_bytes(4, "little") + length.to_bytes(4, "little")


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_certificates_of_a_real_table_in_pem_come_out_as_der(snp_vectors: Path) -> None:
    found = certificates_in((snp_vectors / "genoa-v3-veraison" / "certtable.bin").read_bytes())

    names = [x509.load_der_x509_certificate(der).subject.rfc4514_string().split(",")[0] for der in found]
    assert names == ["CN=ARK-Genoa", "CN=SEV-Genoa", "CN=SEV-VCEK"]


@pytest.mark.parametrize("table", [b"", bytes(24), bytes(16384)])
def test_certificates_of_an_empty_table_are_none(table: bytes) -> None:
    assert certificates_in(table) == ()


def test_certificates_of_other_kinds_are_passed_over() -> None:
    assert certificates_in(entry(CRL, 9999, 1) + entry(VCEK, 72, 3) + bytes(24) + b"DER") == (b"DER",)


@pytest.mark.parametrize(
    "table",
    [
        b"\x01",
        entry(VCEK, 24, 3),
        entry(VCEK, 48, 4) + bytes(24) + b"DER",
        entry(VCEK, 47, 3) + bytes(24) + b"DER",
        entry(VCEK, 0, 24) + bytes(24) + b"DER",
        entry(VCEK, 48, 0) + bytes(24) + b"DER",
        entry(VCEK, 0xFFFFFFFF, 0xFFFFFFFF) + bytes(24) + b"DER",
        entry(VCEK, 48, 16385) + bytes(24 + 16385),
        entry(CRL, 999, 1) * 40 + bytes(24),
    ],
    ids=["short", "no end", "too long", "in header", "on itself", "empty", "overflow", "over limit", "too many"],
)
def test_table_when_malformed_is_refused(table: bytes) -> None:
    with pytest.raises(PlatformError) as caught:
        certificates_in(table)
    assert caught.value.reason == "CERTIFICATE_TABLE_MALFORMED"


@pytest.mark.parametrize(
    "pem", ["-----BEGIN CERTIFICATE-----\nnot closed", ssl.PEM_HEADER + "\nA\n" + ssl.PEM_FOOTER, "-----BEGIN é"]
)
def test_table_when_its_pem_is_broken_is_refused(pem: str) -> None:
    blob = pem.encode()
    with pytest.raises(PlatformError, match="its VCEK is no certificate"):
        certificates_in(entry(VCEK, 48, len(blob)) + bytes(24) + blob)
