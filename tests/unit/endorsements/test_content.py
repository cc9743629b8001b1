"""What may enter the cache, and what may not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from endorsement_support import vectors
from endorsement_support.pki import CHIP, MILAN_TCB, START, YEAR, Hierarchy, leaf_extensions
from pagegate.endorsements.certificate import is_root
from pagegate.endorsements.content import (
    MAX_BODY,
    check_crl_link,
    check_leaf_link,
    parse,
    parse_chain,
    parse_crl,
    parse_leaf,
    split_certificates,
)
from pagegate.endorsements.part import PRODUCTS, PartKind, chain_part, crl_part, leaf_part
from pagegate.errors import EndorsementError
from pagegate.evidence import der
from pagegate.evidence.model import KeyKind

REAL = (
    "milan-v2-go-sev-guest",
    "milan-v5-gcp-x25519",
    "genoa-v3-veraison",
    "turin-v5-azure-ms",
    "milan-v3-vlek-trustee",
)


@pytest.mark.parametrize("name", REAL)
def test_leaf_when_real_is_the_one_its_report_asks_for(name: str) -> None:
    part = leaf_part(vectors.request(name))
    content = parse(part, vectors.leaf_der(name))
    chain = chain_part(part.product, part.key_kind)
    check_leaf_link(content, parse(chain, vectors.chain_pem(part.product, part.key_kind)))


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("kind", list(KeyKind))
def test_chain_when_real_is_told_by_product_and_key_kind(product: str, kind: KeyKind) -> None:
    content = parse_chain(split_certificates(vectors.chain_pem(product, kind)))
    assert content.part == chain_part(product, kind)
    assert is_root(content.certificates[1])


def test_chain_when_stored_form_is_read_again_is_the_same() -> None:
    content = parse_chain(split_certificates(vectors.chain_pem("Genoa")))
    assert parse(content.part, content.body) == content


def test_leaf_when_for_another_tcb_says_both() -> None:
    part = leaf_part(vectors.request("milan-v2-automata"))
    other = parse_leaf(vectors.leaf_der("milan-v2-automata")).part
    wanted = type(part)(part.kind, part.product, part.key_kind, part.hwid, bytes.fromhex("03000000000016d2"))
    with pytest.raises(EndorsementError, match=r"ucode=210, got one for TCB bl=3 tee=0 snp=22 ucode=209") as caught:
        parse(wanted, vectors.leaf_der("milan-v2-automata"))
    assert caught.value.reason == "ENDORSEMENT_CERTIFICATE_MISMATCH"
    assert other == part


def test_leaf_when_of_another_chip_is_a_mismatch() -> None:
    with pytest.raises(EndorsementError, match="another chip"):
        parse(leaf_part(vectors.request("milan-v3-oak-cb")), vectors.leaf_der("milan-v3-azure-ms"))


def test_leaf_when_of_another_product_is_a_mismatch() -> None:
    with pytest.raises(EndorsementError, match="got one of Genoa VCEK"):
        parse(leaf_part(vectors.request("milan-v3-oak-cb")), vectors.leaf_der("genoa-v5-oak"))


def test_leaf_when_amd_did_not_sign_it_is_refused() -> None:
    fake = (vectors.sev_snp() / "negative-vcek-certs" / "test-vcek-invalid-legacy.der").read_bytes()
    chain = parse_chain(split_certificates(vectors.chain_pem("Milan")))
    with pytest.raises(EndorsementError, match="signature is not of 'SEV-Milan'"):
        check_leaf_link(parse_leaf(fake), chain)


def test_leaf_when_checked_against_another_products_chain_is_refused() -> None:
    chain = parse_chain(split_certificates(vectors.chain_pem("Genoa")))
    with pytest.raises(EndorsementError, match="its issuer 'SEV-Milan' is not this 'SEV-Genoa'"):
        check_leaf_link(parse_leaf(vectors.leaf_der("milan-v3-oak-cb")), chain)


def test_leaf_when_it_has_both_hwid_and_csp_id_is_refused(milan: Hierarchy) -> None:
    both = milan.leaf(extensions=leaf_extensions("Milan", MILAN_TCB, hwid=CHIP, csp_id="CN=x"))
    with pytest.raises(EndorsementError, match="both or neither"):
        parse_leaf(both)


def test_leaf_when_it_lacks_a_patch_level_is_refused(milan: Hierarchy) -> None:
    lacking = leaf_extensions("Milan", MILAN_TCB, hwid=CHIP, csp_id=None)
    with pytest.raises(EndorsementError, match="lacks the patch levels ucode"):
        parse_leaf(milan.leaf(extensions=[e for e in lacking if not e[0].endswith(".3.8")]))


def test_leaf_when_vlek_by_extensions_but_issued_by_the_ask_is_refused(milan: Hierarchy) -> None:
    with pytest.raises(EndorsementError, match="a VLEK by its extensions"):
        parse_leaf(milan.leaf(extensions=leaf_extensions("Milan", MILAN_TCB, hwid=None, csp_id="CN=x")))


def test_leaf_when_milan_has_a_turin_hwid_is_refused(milan: Hierarchy) -> None:
    with pytest.raises(EndorsementError, match="HWID of 8 bytes, Milan has 64"):
        parse_leaf(milan.leaf(hwid=bytes(range(8))))


def test_leaf_when_it_is_an_authority_is_refused() -> None:
    ask = split_certificates(vectors.chain_pem("Milan"))[0]
    with pytest.raises(EndorsementError, match="both or neither"):
        parse_leaf(ask)


@pytest.mark.parametrize("kind", list(PartKind))
def test_content_when_over_the_limit_is_refused_unread(milan: Hierarchy, kind: PartKind) -> None:
    part = {
        PartKind.LEAF: leaf_part(milan.request()),
        PartKind.CHAIN: chain_part("Milan", KeyKind.VCEK),
        PartKind.CRL: crl_part("Milan", KeyKind.VCEK),
    }[kind]
    with pytest.raises(EndorsementError, match=f"the limit is {MAX_BODY[kind]}"):
        parse(part, bytes(MAX_BODY[kind] + 1))


def test_chain_when_of_the_other_key_kind_is_a_mismatch() -> None:
    with pytest.raises(EndorsementError, match="asked for Milan VCEK chain, got one of Milan VLEK"):
        parse(chain_part("Milan", KeyKind.VCEK), vectors.chain_pem("Milan", "vlek"))


def test_chain_when_the_root_signature_is_broken_is_refused() -> None:
    ask, ark = split_certificates(vectors.chain_pem("Milan"))
    with pytest.raises(EndorsementError, match="'ARK-Milan': its signature is not of 'ARK-Milan'"):
        parse_chain([ask, ark[:-1] + bytes([ark[-1] ^ 1])])


def test_chain_when_the_intermediate_is_of_another_root_is_refused(milan: Hierarchy) -> None:
    with pytest.raises(EndorsementError, match="'SEV-Milan': its signature is not of 'ARK-Milan'"):
        parse_chain([Hierarchy("Milan").intermediate(), milan.ark])


def test_chain_when_the_root_is_a_namesake_by_common_name_only_is_refused(milan: Hierarchy) -> None:
    ask, _ = split_certificates(vectors.chain_pem("Milan"))
    with pytest.raises(EndorsementError, match="its issuer 'ARK-Milan' is not this 'ARK-Milan'"):
        parse_chain([ask, milan.ark])


def test_chain_when_products_are_mixed_is_refused() -> None:
    with pytest.raises(EndorsementError, match="expected SEV-"):
        parse_chain([split_certificates(vectors.chain_pem(p))[i] for i, p in enumerate(("Milan", "Genoa"))])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_chain_when_not_two_certificates_is_refused(count: int) -> None:
    with pytest.raises(EndorsementError, match=f"a chain of {count} certificates"):
        parse_chain((split_certificates(vectors.chain_pem("Milan")) * 2)[:count])


def test_chain_when_it_has_two_roots_is_refused() -> None:
    ark = split_certificates(vectors.chain_pem("Milan"))[1]
    with pytest.raises(EndorsementError, match="2 self-issued"):
        parse_chain([ark, ark])


def test_crl_when_signed_by_the_ark_is_taken(milan: Hierarchy) -> None:
    crl = parse(crl_part("Milan", KeyKind.VLEK), milan.crl())
    check_crl_link(crl, parse_chain([milan.intermediate(), milan.ark]))
    assert (crl.made_at, crl.expires_at) == (START, START + 3 * YEAR)


def test_crl_when_signed_by_another_key_is_refused(milan: Hierarchy, turin: Hierarchy) -> None:
    crl = parse_crl(milan.crl(signer=turin.ark_key), KeyKind.VCEK)
    with pytest.raises(EndorsementError, match="a CRL whose signature is not of 'ARK-Milan'"):
        check_crl_link(crl, parse_chain([milan.intermediate(), milan.ark]))


def test_crl_when_without_next_update_is_refused(milan: Hierarchy) -> None:
    tbs, algorithm, signature = der.read_whole(milan.crl()).children()
    fields = tbs.children()
    next_update = [f for f in fields if f.tag == der.UTC_TIME][1]
    shorter = _sequence(b"".join(f.raw for f in fields if f is not next_update))
    with pytest.raises(EndorsementError, match="without nextUpdate"):
        parse_crl(_sequence(shorter + algorithm.raw + signature.raw), KeyKind.VCEK)


def _sequence(content: bytes) -> bytes:
    length = len(content)
    header = (
        bytes([length])
        if length < 128
        else b"\x81" + bytes([length])
        if length < 256
        else b"\x82" + length.to_bytes(2, "big")
    )
    return b"\x30" + header + content


def test_crl_when_issued_by_an_ask_is_refused(milan: Hierarchy) -> None:
    with pytest.raises(EndorsementError, match="a CRL issued by 'SEV-Milan'"):
        parse_crl(milan.crl(issuer="SEV-Milan"), KeyKind.VCEK)


@pytest.mark.parametrize("body", [b"", b"\x30\x00", b"<html>not here</html>"])
def test_crl_when_it_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(EndorsementError, match="not a DER revocation list"):
        parse(crl_part("Milan", KeyKind.VCEK), body)


def test_leaf_when_given_as_a_pem_bundle_is_refused() -> None:
    with pytest.raises(EndorsementError, match="expected one CERTIFICATE"):
        parse(leaf_part(vectors.request("milan-v3-oak-cb")), vectors.chain_pem("Milan"))


def test_split_when_an_error_page_is_refused() -> None:
    with pytest.raises(EndorsementError, match="neither PEM nor DER"):
        split_certificates(b"<html>login</html>")


def test_link_when_the_issuer_key_is_not_rsa_is_refused(milan: Hierarchy) -> None:
    leaf = parse_leaf(milan.leaf())
    chain = parse_chain([milan.intermediate(), milan.ark])
    not_rsa = replace(chain.certificates[0], public_key=leaf.certificates[0].public_key)
    with pytest.raises(EndorsementError, match="signature is not of"):
        check_leaf_link(leaf, replace(chain, certificates=(not_rsa, chain.certificates[1])))


def test_link_when_the_signer_is_a_namesake_is_refused(milan: Hierarchy) -> None:
    stranger = rsa.generate_private_key(65537, 2048)
    leaf = parse_leaf(milan.leaf(signer=stranger))
    with pytest.raises(EndorsementError, match="signature is not of"):
        check_leaf_link(leaf, parse_chain([milan.intermediate(), milan.ark]))
