"""Reading AMD certificates."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endorsement_support import vectors
from endorsement_support.pki import AMD, CHIP, MILAN_TCB, START, YEAR, Hierarchy, leaf_extensions
from pagegate.endorsements.certificate import MAX_CERTIFICATE, parse_certificate, printable, split_pem
from pagegate.errors import EndorsementError
from pagegate.evidence import der

VECTORS = ("milan-v2-go-sev-guest", "genoa-v5-oak", "turin-v5-oak", "milan-v3-vlek-trustee", "milan-v5-gcp-x25519")
GOOD = vectors.leaf_der("milan-v2-go-sev-guest")


@pytest.mark.parametrize("name", VECTORS)
def test_certificate_when_real_gives_the_extensions_on_record(name: str) -> None:
    expected = json.loads((vectors.sev_snp() / name / "expected.json").read_text())["cert"]["extensions"]
    found = parse_certificate(vectors.leaf_der(name))
    assert {f"{part}_spl" if len(part) < 4 or part == "ucode" else part: n for part, n in found.spl.items()} == {
        key: value for key, value in expected.items() if "spl" in key
    }
    assert (found.hwid or b"").hex() == expected.get("hwid", "")
    assert found.csp_id == expected.get("csp_id")


def test_certificate_when_made_by_us_gives_its_dates(milan: Hierarchy) -> None:
    leaf = parse_certificate(milan.leaf())
    assert (leaf.not_before, leaf.not_after) == (START, START + 7 * YEAR)


def test_certificate_when_it_lives_past_2049_reads_generalized_time(milan: Hierarchy) -> None:
    until = START + 40 * YEAR
    assert parse_certificate(milan.leaf(not_after=until)).not_after == until


def test_certificate_when_hwid_is_wrapped_in_an_octet_string_unwraps_it() -> None:
    leaf = parse_certificate((vectors.sev_snp() / "negative-vcek-certs" / "test-vcek-invalid-new.der").read_bytes())
    assert leaf.hwid == bytes(range(64))


def test_certificate_when_the_name_holds_escapes_is_safe_to_print() -> None:
    assert printable(b"SEV\x1b[2J\xff") == "SEV?[2J?"


def test_certificate_when_bytes_follow_is_refused() -> None:
    with pytest.raises(EndorsementError, match="1 bytes after the end") as caught:
        parse_certificate(GOOD + b"\0")
    assert caught.value.reason == "ENDORSEMENT_CONTENT_INVALID"


@pytest.mark.parametrize("length", [0, 1, 2, 5, 100, len(GOOD) // 2, len(GOOD) - 1])
def test_certificate_when_truncated_is_refused(length: int) -> None:
    with pytest.raises(EndorsementError, match="ENDORSEMENT_CONTENT_INVALID"):
        parse_certificate(GOOD[:length])


def test_certificate_when_too_long_is_refused() -> None:
    with pytest.raises(EndorsementError, match=f"limit is {MAX_CERTIFICATE}"):
        parse_certificate(b"\x30" * (MAX_CERTIFICATE + 1))


@pytest.mark.parametrize(
    ("oid", "value", "why"),
    [
        (f"{AMD}.4", bytes(63), "HWID of 63 bytes"),
        (f"{AMD}.3.1", b"\x02\x02\x00\x7f", "minimal form"),
        (f"{AMD}.3.1", b"\x02\x02\x01\x00", "not 0..255"),
        (f"{AMD}.3.1", b"\x02\x01\xff", "not 0..255"),
        (f"{AMD}.3.1", b"\x04\x01\x01", "tag 0x04"),
        (f"{AMD}.5", b"\x30\x00", "tag 0x30"),
    ],
)
def test_certificate_when_an_extension_is_malformed_is_refused(
    milan: Hierarchy, oid: str, value: bytes, why: str
) -> None:
    with pytest.raises(EndorsementError, match=why):
        parse_certificate(milan.leaf(extensions=[(oid, value)]))


def test_certificate_when_an_extension_occurs_twice_is_refused(milan: Hierarchy) -> None:
    good = milan.leaf(extensions=[*leaf_extensions("Milan", MILAN_TCB, hwid=CHIP, csp_id=None), ("1.2.3.4.5", b"\5\0")])
    twice = good.replace(b"\x06\x04\x2a\x03\x04\x05", b"\x06\x04\x2a\x03\x04\x06")
    assert parse_certificate(twice).hwid == CHIP
    repeated = good.replace(bytes.fromhex("2b060104019c78010306"), bytes.fromhex("2b060104019c78010305"))
    with pytest.raises(EndorsementError, match="occurs twice"):
        parse_certificate(repeated)


@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
def test_certificate_when_any_byte_is_changed_parses_or_is_refused(position: int, value: int) -> None:
    changed = GOOD[:position] + bytes([value]) + GOOD[position + 1 :]
    with suppress(EndorsementError):  # any other error fails the test
        parse_certificate(changed)


@given(data=st.binary(max_size=300))
def test_certificate_when_random_bytes_is_refused(data: bytes) -> None:
    with pytest.raises(EndorsementError):
        parse_certificate(b"\x30\x82" + len(data).to_bytes(2, "big") + data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x1f\x81\x01\x00", "multi-byte tag"),
        (b"\x30\x80\x00\x00", "length of 0 bytes"),
        (b"\x30\x85\x00\x00\x00\x00\x01", "length of 5 bytes"),
        (b"\x30\x81\x01\x00", "minimal"),
        (b"\x30\x82\x00\x80" + bytes(128), "minimal"),
        (b"\x30\x03\x01", "3 bytes announced"),
    ],
)
def test_der_when_not_canonical_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(der.DerError, match=why):
        der.read_whole(data)


def test_pem_when_base64_is_broken_is_refused() -> None:
    with pytest.raises(EndorsementError, match="base64"):
        split_pem(b"-----BEGIN CERTIFICATE-----\nMII=A\n-----END CERTIFICATE-----\n")


def test_pem_when_there_is_none_gives_nothing() -> None:
    assert split_pem(GOOD) == []
