"""From reports to requests, parts and URLs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from endorsement_support import vectors
from pagegate.endorsements import leaf_part, request_from_report, vcek_url
from pagegate.endorsements.part import chain_part, crl_part, format_tcb, pack_tcb, tcb_levels
from pagegate.endorsements.request import part_url
from pagegate.errors import EndorsementError
from pagegate.evidence.model import EndorsementRequest, KeyKind

MILAN = EndorsementRequest("Milan", KeyKind.VCEK, bytes(range(64)), bytes.fromhex("04000000000018db"))
TURIN = EndorsementRequest("Turin", KeyKind.VCEK, bytes(range(1, 9)) + bytes(56), bytes.fromhex("0101010400000051"))


def test_url_when_milan_names_four_levels() -> None:
    assert vcek_url(MILAN) == (
        f"https://kdsintf.amd.com/vcek/v1/Milan/{bytes(range(64)).hex()}?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219"
    )


def test_url_when_turin_names_fmc_and_8_bytes_of_the_chip() -> None:
    assert vcek_url(TURIN, "http://mirror/kds/") == (
        "http://mirror/kds/vcek/v1/Turin/0102030405060708?fmcSPL=01&blSPL=01&teeSPL=01&snpSPL=04&ucodeSPL=81"
    )


@pytest.mark.parametrize("kind", list(KeyKind))
def test_url_when_chain_or_crl_names_the_key_kind(kind: KeyKind) -> None:
    assert part_url(chain_part("Genoa", kind), "https://k") == f"https://k/{kind}/v1/Genoa/cert_chain"
    assert part_url(crl_part("Genoa", kind), "https://k") == f"https://k/{kind}/v1/Genoa/crl"


def test_url_when_vlek_says_where_to_get_it() -> None:
    with pytest.raises(EndorsementError, match="certificate table") as caught:
        vcek_url(replace(MILAN, kind=KeyKind.VLEK))
    assert caught.value.reason == "ENDORSEMENT_VLEK_NOT_SERVED"


def test_request_when_the_chip_is_masked_says_where_to_get_it() -> None:
    with pytest.raises(EndorsementError, match="hypervisor must fill it") as caught:
        leaf_part(replace(MILAN, chip_id=bytes(64)))
    assert caught.value.reason == "ENDORSEMENT_CHIP_MASKED"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (replace(MILAN, product="Rome"), "'Rome' is not one of Milan, Genoa, Turin"),
        (replace(MILAN, product="../../x"), "is not one of"),
        (replace(MILAN, chip_id=bytes(8)), "chip id of 8 bytes"),
        (replace(MILAN, reported_tcb=bytes(7)), "TCB of 7 bytes"),
        (replace(MILAN, reported_tcb=bytes.fromhex("04000100000018db")), "reserved bytes set for Milan"),
        (replace(TURIN, chip_id=bytes(range(64))), "after the first 8"),
    ],
)
def test_request_when_impossible_is_refused(changed: EndorsementRequest, why: str) -> None:
    with pytest.raises(EndorsementError, match=why) as caught:
        leaf_part(changed)
    assert caught.value.reason == "ENDORSEMENT_REQUEST_INVALID"


@pytest.mark.parametrize(
    ("name", "product", "kind"),
    [
        ("milan-v3-oak-cb", "Milan", KeyKind.VCEK),
        ("genoa-v5-oak", "Genoa", KeyKind.VCEK),
        ("turin-v5-oak", "Turin", KeyKind.VCEK),
        ("milan-v3-vlek-trustee", "Milan", KeyKind.VLEK),
    ],
)
def test_report_when_version_3_or_later_says_its_product_and_key(name: str, product: str, kind: KeyKind) -> None:
    request = request_from_report(vectors.report(name))
    assert (request.product, request.kind) == (product, kind)


def test_report_when_version_2_asks_for_the_product() -> None:
    with pytest.raises(EndorsementError, match="name it: Milan or Genoa"):
        request_from_report(vectors.report("milan-v2-automata"))
    assert request_from_report(vectors.report("milan-v2-automata"), "Milan").product == "Milan"


def test_report_when_version_2_has_a_short_chip_id_is_turin() -> None:
    turin = bytearray(vectors.report("turin-v5-oak"))
    turin[0] = 2
    assert request_from_report(bytes(turin)).product == "Turin"


@pytest.mark.parametrize(
    ("offset", "value", "why"), [(0, 9, "version 9"), (0x48, 0x1C, "SIGNING_KEY 7"), (0x188, 7, "0x07")]
)
def test_report_when_it_cannot_be_endorsed_is_refused(offset: int, value: int, why: str) -> None:
    report = bytearray(vectors.report("milan-v3-oak-cb"))
    report[offset] = value
    with pytest.raises(EndorsementError, match=why):
        request_from_report(bytes(report))


def test_report_when_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(EndorsementError, match="1183 bytes, expected 1184"):
        request_from_report(bytes(1183))


def test_tcb_when_packed_and_read_is_the_same() -> None:
    levels = {"fmc": 1, "bl": 2, "tee": 3, "snp": 4, "ucode": 200}
    packed = pack_tcb("Turin", levels)
    assert packed.hex() == "01020304000000c8"
    assert format_tcb("Turin", packed) == "fmc=1 bl=2 tee=3 snp=4 ucode=200"
    assert tcb_levels("Milan", packed)["bl"] == 1


def test_part_key_when_kinds_differ_never_collides() -> None:
    parts = [make("Milan", kind) for kind in KeyKind for make in (chain_part, crl_part)]
    assert len({part.key for part in [*parts, leaf_part(MILAN), leaf_part(replace(MILAN, kind=KeyKind.VLEK))]}) == 6
