"""Reading AMD certificates: the verifier's parser, with errors of this package's kind."""

from __future__ import annotations

import pytest

from endorsement_support import vectors
from endorsement_support.pki import AMD, MILAN_TCB, START, YEAR, Hierarchy
from pagegate.endorsements.certificate import amd_extensions, parse_certificate, printable, split_pem
from pagegate.endorsements.part import part_of_leaf
from pagegate.errors import EndorsementError

GOOD = vectors.leaf_der("milan-v2-go-sev-guest")


def test_certificate_when_made_by_us_gives_its_dates_and_levels(milan: Hierarchy) -> None:
    leaf = parse_certificate(milan.leaf())
    assert (leaf.not_before, leaf.not_after) == (START, START + 7 * YEAR)
    assert part_of_leaf(leaf, "Milan").tcb == MILAN_TCB


def test_certificate_when_of_an_authority_certifies_no_chip(milan: Hierarchy) -> None:
    says = amd_extensions(parse_certificate(milan.ark))
    assert (dict(says.spl), says.hwid, says.csp_id) == ({}, None, None)


@pytest.mark.parametrize("data", [b"", GOOD[:100], GOOD + b"\0", b"\x30" * 20_000])
def test_certificate_when_it_cannot_be_parsed_is_refused(data: bytes) -> None:
    with pytest.raises(EndorsementError) as caught:
        parse_certificate(data)
    assert caught.value.reason == "ENDORSEMENT_CONTENT_INVALID"


def test_certificate_when_an_extension_of_amd_is_malformed_is_refused(milan: Hierarchy) -> None:
    leaf = parse_certificate(milan.leaf(extensions=[(f"{AMD}.4", bytes(63))]))
    with pytest.raises(EndorsementError) as caught:
        amd_extensions(leaf)
    assert caught.value.reason == "ENDORSEMENT_CONTENT_INVALID"


def test_name_when_it_holds_escapes_is_safe_to_print() -> None:
    assert printable(b"SEV\x1b[2J\xff") == "SEV?[2J?"


def test_pem_when_base64_is_broken_is_refused() -> None:
    with pytest.raises(EndorsementError, match="base64"):
        split_pem(b"-----BEGIN CERTIFICATE-----\nMII=A\n-----END CERTIFICATE-----\n")


def test_pem_when_there_is_none_gives_nothing() -> None:
    assert split_pem(GOOD) == []
