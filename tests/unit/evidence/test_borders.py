"""Bytes from outside become typed values or a typed error, nothing else."""

from __future__ import annotations

import pytest

from pagegate.errors import EvidenceError
from pagegate.evidence import der
from pagegate.evidence.der import DerError
from pagegate.evidence.snp.certificate import OID_SPL, parse_amd_extensions, parse_certificate, split_certificates
from pagegate.evidence.snp.product import Product, candidate_products, product_of_cpuid, product_of_name
from pagegate.evidence.snp.report import FirmwareVersion, parse_report
from pagegate.evidence.snp.revocation import MAX_CRL_BYTES, parse_crl
from pagegate.evidence.snp.table import GUIDS, MAX_TABLE_BYTES, build_table, parse_table
from pagegate.evidence.snp.tcb import Tcb
from support.snp import NOW, Case, text


def test_report_when_serialised_then_parsing_gives_it_back(milan: Case) -> None:
    assert parse_report(milan.report.to_bytes()) == milan.report


@pytest.mark.parametrize(
    ("data", "hint"), [(b"HCLA" + bytes(2600), "Azure"), (bytes(4) + (1184).to_bytes(4, "little") + bytes(3992), "RSP")]
)
def test_report_when_still_wrapped_then_the_error_says_where_it_is(data: bytes, hint: str) -> None:
    with pytest.raises(EvidenceError, match=hint):
        parse_report(data)


def test_firmware_versions_when_compared_then_by_major_minor_build() -> None:
    assert FirmwareVersion(1, 55, 29) < FirmwareVersion(1, 56, 0) < FirmwareVersion(2, 0, 0)


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [
        (0x19, 0x00, Product.MILAN),
        (0x19, 0x0F, Product.MILAN),
        (0x19, 0x10, Product.GENOA),
        (0x19, 0x1F, Product.GENOA),
        (0x19, 0xA0, Product.GENOA),
        (0x19, 0xAF, Product.GENOA),
        (0x1A, 0x00, Product.TURIN),
        (0x1A, 0x11, Product.TURIN),
        (0x19, 0x20, None),
        (0x19, 0x9F, None),
        (0x19, 0xB0, None),
        (0x1A, 0x12, None),
        (0x17, 0x31, None),
    ],
)
def test_product_when_read_from_family_and_model_then_by_amds_ranges(
    family: int, model: int, product: Product | None
) -> None:
    assert product_of_cpuid(family, model) is product


@pytest.mark.parametrize("name", ["Genoa", "Bergamo", "Siena", "Genoa-B1"])
def test_product_name_when_bergamo_or_siena_then_genoas_line(name: str) -> None:
    assert product_of_name(name) is Product.GENOA


def test_chip_id_when_56_bytes_are_zero_then_it_points_to_turin() -> None:
    assert candidate_products(b"12345678" + bytes(56)) == (Product.TURIN,)
    assert candidate_products(b"1" * 64) == (Product.MILAN, Product.GENOA)
    assert candidate_products(bytes(64)) == (Product.MILAN, Product.GENOA)


def test_tcb_when_turins_then_fmc_comes_first() -> None:
    tcb = Tcb.from_bytes(Product.TURIN, bytes((1, 2, 3, 4, 0, 0, 0, 8)))
    assert tcb.named() == {"fmc": 1, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 8}
    assert tcb.to_bytes() == bytes((1, 2, 3, 4, 0, 0, 0, 8))
    assert str(tcb) == "fmc=1 bootloader=2 tee=3 snp=4 microcode=8"


def test_tcb_when_not_8_bytes_then_refused() -> None:
    with pytest.raises(ValueError, match="8 bytes"):
        Tcb.from_bytes(Product.MILAN, bytes(7))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        b"\x30\x80\x00\x00",
        b"\x30\x81\x01\x00",
        b"\x30\x82\x00\x81" + bytes(129),
        b"\x30\x85\x00\x00\x00\x00\x00",
        b"\x30\x02\x05",
        b"\x30\x00\x00",
        b"\x1f\x01\x00",
    ],
    ids=lambda data: data[:4].hex(),
)
def test_der_when_not_strict_then_refused(data: bytes) -> None:
    with pytest.raises(DerError):
        der.read_whole(data)


@pytest.mark.parametrize("data", ["0200", "02020001", "0202ffff", "0241" + "01" * 65, "0401ff"])
def test_integer_when_not_minimal_or_too_long_then_refused(data: str) -> None:
    with pytest.raises(DerError):
        der.read_integer(der.read_whole(bytes.fromhex(data)))


@pytest.mark.parametrize(("data", "value"), [("020100", 0), ("02020080", 128), ("0201ff", -1), ("0202ff7f", -129)])
def test_integer_when_minimal_then_read(data: str, value: int) -> None:
    assert der.read_integer(der.read_whole(bytes.fromhex(data))) == value


@pytest.mark.parametrize("data", ["0600", "060180", "06022a80", "06038001ff", "0642" + "01" * 66])
def test_oid_when_not_minimal_or_truncated_then_refused(data: str) -> None:
    with pytest.raises(DerError):
        der.read_oid(der.read_whole(bytes.fromhex(data)))


def test_boolean_and_bits_and_text_when_not_strict_then_refused() -> None:
    for reader, data in (
        (der.read_boolean, "010101"),
        (der.read_boolean, "0100"),
        (der.read_bits, "0300"),
        (der.read_bits, "030107"),
        (der.read_text, "0c01ff"),
        (der.read_text, "1301ff"),
        (der.read_text, "0201ff"),
    ):
        with pytest.raises(DerError):
            reader(der.read_whole(bytes.fromhex(data)))


def test_certificate_when_any_byte_is_cut_off_then_refused(milan: Case) -> None:
    data = milan.leaf.der()
    for size in range(0, len(data), 7):
        with pytest.raises(EvidenceError, match="SNP_CERT_MALFORMED"):
            parse_certificate(data[:size])


@pytest.mark.parametrize("change", ["trailing", "twice", "huge", "time", "version"])
def test_certificate_when_not_of_the_profile_then_refused(milan: Case, change: str) -> None:
    data = milan.leaf.der()
    microcode, snp = bytes.fromhex("060a2b060104019c78010308"), bytes.fromhex("060a2b060104019c78010303")
    if change == "trailing":
        data += b"\0"
    elif change == "twice":
        assert microcode in data
        data = data.replace(microcode, snp)
    elif change == "huge":
        data += bytes(20_000)
    elif change == "time":
        stamp = NOW.strftime("%y").encode()
        place = data.index(b"\x17\x0d" + stamp) + 4
        data = data[:place] + b"99" + data[place + 2 :]
    else:
        data = data.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01", 1)
    with pytest.raises(EvidenceError, match="SNP_CERT_MALFORMED"):
        parse_certificate(data)


@pytest.mark.parametrize("value", [b"\x02\x02\x01\x00", b"\x02\x01\xff", b"\x04\x01\x05", b"\x02\x01\x05\x00"])
def test_spl_when_not_an_integer_of_a_byte_then_refused(milan: Case, value: bytes) -> None:
    certificate = parse_certificate(milan.leaf.having(OID_SPL["snp"], value).der())
    with pytest.raises(EvidenceError, match="SNP_CERT_MALFORMED"):
        parse_amd_extensions(certificate)


@pytest.mark.parametrize("value", [bytes(63), b"\x04\x10" + bytes(16), b"\x04\x3f" + bytes(63), b""])
def test_hwid_when_neither_8_nor_64_bytes_then_refused(milan: Case, value: bytes) -> None:
    from pagegate.evidence.snp.certificate import OID_HWID

    certificate = parse_certificate(milan.leaf.having(OID_HWID, value).der())
    with pytest.raises(EvidenceError, match="SNP_CERT_MALFORMED"):
        parse_amd_extensions(certificate)


def test_csp_id_when_not_printable_then_refused(milan: Case) -> None:
    from pagegate.evidence.snp.certificate import OID_CSP_ID

    certificate = parse_certificate(milan.leaf.having(OID_CSP_ID, text("a\x1b[2Jb")).der())
    with pytest.raises(EvidenceError, match="SNP_CERT_MALFORMED"):
        parse_amd_extensions(certificate)


def test_certificates_when_pem_and_der_are_mixed_then_each_is_found_once(milan: Case) -> None:
    from base64 import encodebytes

    one, two = milan.issuer.der(), milan.root.der()
    pem = b"".join(
        b"-----BEGIN CERTIFICATE-----\n" + encodebytes(each) + b"-----END CERTIFICATE-----\n" for each in (one, two)
    )
    assert split_certificates((two, pem, one)) == (two, one)


@pytest.mark.parametrize("data", [b"-----BEGIN CERTIFICATE-----", b"x" * 300_000])
def test_certificates_when_pem_is_broken_or_too_large_then_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError, match="SNP_CERT_MALFORMED"):
        split_certificates((data,))


def test_table_when_built_then_parsing_gives_it_back() -> None:
    blobs = {"vcek": b"leaf", "ask": b"issuer", "crl": b""}
    assert {entry.name: entry.data for entry in parse_table(build_table(blobs))} == blobs


@pytest.mark.parametrize("data", [b"", bytes(24), bytes(4096)])
def test_table_when_of_zeros_then_empty(data: bytes) -> None:
    assert parse_table(data) == ()


def entry(guid: bytes, offset: int, length: int) -> bytes:
    return guid + offset.to_bytes(4, "little") + length.to_bytes(4, "little")


VCEK = GUIDS["vcek"].bytes


@pytest.mark.parametrize(
    "data",
    [
        bytes(23),
        entry(VCEK, 48, 4),
        entry(VCEK, 0, 4) + bytes(28),
        entry(VCEK, 48, 5) + bytes(28),
        entry(VCEK, 53, 0) + bytes(28),
        entry(VCEK, 2**32 - 1, 2**32 - 1) + bytes(28),
        entry(VCEK, 72, 1) * 2 + bytes(25),
        b"".join(entry(bytes([one]) * 16, 24 * 41, 1) for one in range(1, 41)) + bytes(25),
        bytes(MAX_TABLE_BYTES + 1),
    ],
    ids=["short", "no end", "into header", "too long", "past end", "huge", "twice", "many", "too large"],
)
def test_table_when_malformed_then_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError, match="SNP_TABLE_MALFORMED"):
        parse_table(data)


def test_table_when_a_guid_is_unknown_then_it_has_no_name() -> None:
    data = entry(b"?" * 16, 48, 1) + bytes(24) + b"x"
    assert [(one.name, one.data) for one in parse_table(data)] == [("", b"x")]


def test_crl_when_made_then_its_entries_are_read(milan: Case) -> None:
    crl = parse_crl(milan.lab.crl(milan.root, [5, 9]))
    assert set(crl.revoked) == {5, 9}


def test_crl_when_cut_off_or_too_large_then_refused(milan: Case) -> None:
    data = milan.lab.crl(milan.root, [5])
    for broken in (*(data[:size] for size in range(0, len(data), 11)), data + b"\0", bytes(MAX_CRL_BYTES + 1)):
        with pytest.raises(EvidenceError, match="SNP_CRL_MALFORMED"):
            parse_crl(broken)
