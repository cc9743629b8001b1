"""Simulated roots and chips: the profile of AMD's certificates, and a state directory that can be trusted."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from pagegate.errors import PlatformError
from pagegate.evidence.model import KeyKind
from pagegate.platforms.simulated import PRODUCTS, SimulatedChip, SimulatedRoot, Tcb, certificates
from pagegate.platforms.simulated.state import make_private_directory, write_whole

OpenRoot = Callable[[str], SimulatedRoot]
PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
LEVEL_OIDS = "1.3.6.1.4.1.3704.1.3."
HWID_OID = "1.3.6.1.4.1.3704.1.4"
CSP_ID_OID = "1.3.6.1.4.1.3704.1.5"


def parse(certificate: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(certificate)


def extension_values(certificate: x509.Certificate) -> dict[str, bytes]:
    return {
        extension.oid.dotted_string: extension.value.value
        for extension in certificate.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }


def common_name(name: x509.Name) -> str:
    return str(name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


def require_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    key = issuer.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == 4096
    key.verify(certificate.signature, certificate.tbs_certificate_bytes, PSS, hashes.SHA384())
    assert certificate.issuer == issuer.subject


@pytest.mark.parametrize("product", PRODUCTS)
def test_chain_of_chip_when_checked_leads_to_the_root(simulated_root: OpenRoot, product: str) -> None:
    root = simulated_root(product)
    vcek, ask, ark = map(parse, root.chip("a").certificates)

    require_signed_by(vcek, ask)
    require_signed_by(ask, ark)
    require_signed_by(ark, ark)
    assert root.ask_der == root.chip("a").certificates[1]
    assert root.ark_digest == hashlib.sha256(root.ark_der).hexdigest()


@pytest.mark.parametrize(
    ("product", "real"), [("Milan", "milan-v3-oak-cb"), ("Genoa", "genoa-v5-oak"), ("Turin", "turin-v5-oak")]
)
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_vcek_when_made_for_the_tcb_of_a_real_one_has_its_extensions_in_order(
    simulated_root: OpenRoot, snp_vectors: Path, product: str, real: str
) -> None:
    wanted = extension_values(parse((snp_vectors / real / "vcek.der").read_bytes()))
    tcb = Tcb(
        bootloader=wanted[LEVEL_OIDS + "1"][-1],
        tee=wanted[LEVEL_OIDS + "2"][-1],
        snp=wanted[LEVEL_OIDS + "3"][-1],
        microcode=wanted[LEVEL_OIDS + "8"][-1],
        fmc=wanted.get(LEVEL_OIDS + "9", b"\0")[-1],
    )

    chip = simulated_root(product).chip("profile", tcb)

    made = extension_values(parse(chip.certificates[0]))
    assert len(made[HWID_OID]) == len(wanted[HWID_OID])
    assert chip.chip_id == made.pop(HWID_OID).ljust(64, b"\0")
    del wanted[HWID_OID]
    assert list(made.items()) == list(wanted.items())


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_vlek_when_made_for_the_tcb_of_a_real_one_has_its_extensions_in_order(
    simulated_root: OpenRoot, snp_vectors: Path
) -> None:
    wanted = extension_values(parse((snp_vectors / "milan-v2-vlek-openanolis" / "vlek.der").read_bytes()))
    csp_id = wanted[CSP_ID_OID][2:].decode()

    chip = simulated_root("Milan").chip("cloud", Tcb(3, 0, 0x15, 0xD1), kind=KeyKind.VLEK, csp_id=csp_id)

    assert list(extension_values(parse(chip.certificates[0])).items()) == list(wanted.items())


def test_vlek_chain_when_checked_goes_through_an_issuer_of_its_own(simulated_root: OpenRoot) -> None:
    vlek, asvk, ark = map(parse, simulated_root("Milan").chip("cloud", kind=KeyKind.VLEK).certificates)

    require_signed_by(vlek, asvk)
    require_signed_by(asvk, ark)
    assert common_name(vlek.subject) == "SEV-VLEK"
    assert common_name(asvk.subject) == "SIMULATED-SEV-VLEK-Milan"


@pytest.mark.parametrize("which", ["ark", "ask", "asvk"])
def test_issuer_certificate_when_compared_with_amds_has_the_same_profile(
    simulated_root: OpenRoot, snp_vectors: Path, which: str
) -> None:
    root = simulated_root("Milan")
    made = {
        "ark": root.ark_der,
        "ask": root.ask_der,
        "asvk": root.chip("cloud", kind=KeyKind.VLEK).certificates[1],
    }[which]
    real = parse((snp_vectors / "certs" / "milan" / f"{which}.der").read_bytes())

    ours = parse(made)

    assert ours.serial_number == real.serial_number
    assert ours.signature_algorithm_oid == real.signature_algorithm_oid
    for kind in (x509.BasicConstraints, x509.KeyUsage):
        made_extension = ours.extensions.get_extension_for_class(kind)
        assert made_extension == real.extensions.get_extension_for_class(kind)


def test_every_certificate_of_the_simulated_root_says_simulated(simulated_root: OpenRoot) -> None:
    for certificate in map(parse, simulated_root("Milan").chip("a").certificates):
        organisation = certificate.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)[0].value
        assert organisation == "pagegate SIMULATED, proves nothing"
        assert common_name(certificate.issuer).startswith("SIMULATED-")


def test_chip_when_asked_for_again_is_the_same(simulated_root: OpenRoot) -> None:
    first, second = (simulated_root("Milan").chip("same") for _ in range(2))

    assert second.certificates == first.certificates
    assert second.chip_id == first.chip_id
    assert second.key.private_numbers() == first.key.private_numbers()


def test_chip_when_its_tcb_changes_keeps_its_id_and_changes_its_key(simulated_root: OpenRoot) -> None:
    old = simulated_root("Milan").chip("updated", Tcb(3, 0, 8, 115))
    new = simulated_root("Milan").chip("updated", Tcb(4, 0, 24, 219))

    assert new.chip_id == old.chip_id
    assert new.key.private_numbers() != old.key.private_numbers()
    assert old.tcb_bytes == bytes((3, 0, 0, 0, 0, 0, 8, 115))


def test_chips_when_named_differently_are_different(simulated_root: OpenRoot) -> None:
    one, other = (simulated_root("Turin").chip(name) for name in ("one", "other"))

    assert one.chip_id != other.chip_id
    assert one.chip_id[8:] == bytes(56)


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "x" * 65])
def test_chip_when_its_name_is_no_file_name_is_refused(simulated_root: OpenRoot, name: str) -> None:
    with pytest.raises(PlatformError) as caught:
        simulated_root("Milan").chip(name)
    assert caught.value.reason == "SIMULATED_CHIP_NAME_INVALID"


@pytest.mark.parametrize("csp_id", ["", "é", "x" * 128])
def test_vlek_when_its_csp_id_does_not_fit_is_refused(simulated_root: OpenRoot, csp_id: str) -> None:
    with pytest.raises(PlatformError) as caught:
        simulated_root("Milan").chip("cloud", kind=KeyKind.VLEK, csp_id=csp_id)
    assert caught.value.reason == "SIMULATED_CSP_ID_INVALID"


def test_tcb_when_a_part_is_over_a_byte_is_refused() -> None:
    with pytest.raises(PlatformError, match="microcode is 256"):
        Tcb(1, 0, 2, 256)


def test_tcb_when_fmc_is_set_for_a_product_without_is_refused(simulated_root: OpenRoot) -> None:
    with pytest.raises(PlatformError, match="Milan has no FMC"):
        simulated_root("Milan").chip("fmc", Tcb(1, 0, 2, 3, fmc=1))


def test_crl_when_fresh_is_signed_by_the_ark_and_empty(simulated_root: OpenRoot) -> None:
    root = simulated_root("Genoa")
    crl = x509.load_der_x509_crl(root.crl_der)
    key = parse(root.ark_der).public_key()

    assert isinstance(key, rsa.RSAPublicKey)
    key.verify(crl.signature, crl.tbs_certlist_bytes, PSS, hashes.SHA384())
    assert list(crl) == []
    assert crl.next_update_utc is not None
    assert crl.next_update_utc > datetime.now(UTC) + timedelta(days=30)


def test_crl_when_a_certificate_is_revoked_lists_it_with_those_before(simulated_root: OpenRoot) -> None:
    root = simulated_root("Genoa")
    serials = []
    for name in ("revoked-a", "revoked-b"):
        leaf = root.chip(name).certificates[0]
        root.revoke(leaf)
        serials.append(parse(leaf).serial_number)

    listed = {entry.serial_number for entry in x509.load_der_x509_crl(root.crl_der)}
    assert listed >= set(serials)


def test_crl_when_about_to_expire_is_renewed_on_opening(
    simulated_root: OpenRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = simulated_root("Genoa")
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "CRL_LIFE", timedelta(days=2))
        root.revoke(root.ask_der)

    renewed = x509.load_der_x509_crl(simulated_root("Genoa").crl_der)

    assert renewed.next_update_utc is not None
    assert renewed.next_update_utc > datetime.now(UTC) + timedelta(days=30)
    assert parse(root.ask_der).serial_number in {entry.serial_number for entry in renewed}


def test_root_when_opened_for_another_product_is_refused(simulated_root: OpenRoot) -> None:
    directory = simulated_root("Milan")._directory

    with pytest.raises(PlatformError, match="for Milan, not Turin") as caught:
        SimulatedRoot.open_or_create(directory, product="Turin")
    assert caught.value.reason == "SIMULATED_PRODUCT_MISMATCH"


def test_root_when_the_product_is_unknown_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="Milan, Genoa, Turin"):
        SimulatedRoot.open_or_create(tmp_path / "root", product="Naples")


def test_state_when_created_is_private_and_leaves_no_temporary_files(simulated_root: OpenRoot) -> None:
    root = simulated_root("Milan")
    root.chip("a")

    for path in (root._directory, *root._directory.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
        assert not path.name.startswith(".new-")


OPEN_AND_PRINT = """
import sys
from pathlib import Path
from pagegate.platforms.simulated import SimulatedRoot
root = SimulatedRoot.open_or_create(Path(sys.argv[1]))
chip = root.chip("server")
print(root.ark_digest, chip.chip_id.hex(), chip.certificates[0].hex())
"""


def test_root_when_two_processes_make_it_at_once_is_one_and_says_so_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN_AND_PRINT, str(tmp_path / "deep" / "root")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]

    outputs, complaints = zip(*(child.communicate() for child in children), strict=True)

    assert [child.returncode for child in children] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    said = "".join(complaints)
    assert said.count("SIMULATED platform: making a root for Milan") == 1


def test_state_when_others_can_read_it_is_refused_with_the_remedy(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    (directory / "ark.key").write_text("key")
    directory.chmod(0o755)

    with pytest.raises(PlatformError, match=f"chmod 700 {directory}") as caught:
        SimulatedRoot.open_or_create(directory)
    assert caught.value.reason == "SIMULATED_STATE_NOT_PRIVATE"


def test_state_when_the_directory_belongs_to_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)

    with pytest.raises(PlatformError, match=f"belongs to user id {owner}"):
        SimulatedRoot.open_or_create(tmp_path)


def test_state_when_the_path_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")

    with pytest.raises(PlatformError, match="is not a directory") as caught:
        SimulatedRoot.open_or_create(path)
    assert caught.value.reason == "SIMULATED_STATE_UNUSABLE"


def test_state_when_the_directory_is_empty_is_made_private(tmp_path: Path) -> None:
    directory = tmp_path / "empty"
    directory.mkdir(mode=0o755)

    make_private_directory(directory)

    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def damaged_copy(simulated_root: OpenRoot, tmp_path: Path) -> Path:
    """A copy of the Milan root with a chip, to be damaged."""
    source = simulated_root("Milan")
    source.chip("victim")
    directory = tmp_path / "copy"
    subprocess.run(["cp", "-a", source._directory, directory], check=True)
    return directory


def test_root_when_interrupted_before_its_last_file_is_made_anew(damaged_copy: Path) -> None:
    before = (damaged_copy / "ask.pem").read_bytes()
    (damaged_copy / "ark.pem").unlink()

    root = SimulatedRoot.open_or_create(damaged_copy, progress=lambda _: None)

    assert (damaged_copy / "ask.pem").read_bytes() != before
    require_signed_by(*map(parse, (root.ask_der, root.ark_der)))


def victim_of(directory: Path) -> SimulatedChip:
    return SimulatedRoot.open_or_create(directory, progress=lambda _: None).chip("victim")


@pytest.mark.parametrize("name", ["ark.pem", "crl.pem", "ask.pem", "chips/victim/chip-id"])
def test_state_when_a_file_is_damaged_is_refused_by_its_name(damaged_copy: Path, name: str) -> None:
    (damaged_copy / name).write_bytes(b"damaged")

    with pytest.raises(PlatformError, match=name) as caught:
        victim_of(damaged_copy)
    assert caught.value.reason == "SIMULATED_STATE_UNUSABLE"


def test_state_when_keys_are_of_the_wrong_kind_is_refused(damaged_copy: Path) -> None:
    chip_key = next((damaged_copy / "chips" / "victim").glob("*.key"))
    chip_key.write_bytes((damaged_copy / "ask.key").read_bytes())

    with pytest.raises(PlatformError, match="not an elliptic-curve key"):
        victim_of(damaged_copy)


def test_state_when_an_issuer_key_is_of_the_wrong_kind_is_refused(damaged_copy: Path) -> None:
    chip_files = damaged_copy / "chips" / "victim"
    (damaged_copy / "ask.key").write_bytes(next(chip_files.glob("*.key")).read_bytes())
    next(chip_files.glob("*.pem")).unlink()

    with pytest.raises(PlatformError, match="not an RSA key"):
        victim_of(damaged_copy)


def test_chip_when_its_certificate_was_lost_gets_a_new_one_for_the_same_key(damaged_copy: Path) -> None:
    before = victim_of(damaged_copy)
    next((damaged_copy / "chips" / "victim").glob("*.pem")).unlink()

    after = victim_of(damaged_copy)

    assert after.certificates[0] != before.certificates[0]
    key = parse(after.certificates[0]).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.public_numbers() == before.key.public_key().public_numbers()


def test_file_when_writing_fails_keeps_its_old_content(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    write_whole(path, b"old")

    with pytest.raises(TypeError):
        write_whole(path, "not bytes")  # type: ignore[arg-type]

    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]
