"""Which certificates the two sides take, and what the binding is."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from pagegate.errors import ConfigError
from pagegate.rpc.tls import ClientTls, ServerTls, spki_digest
from support.certificates import self_signed


def pinned(tmp_path: Path, pem: bytes) -> ClientTls:
    """Pins a certificate from a file."""
    path = tmp_path / "server.pem"
    path.write_bytes(pem)
    return ClientTls.pinned(path)


def test_binding_when_both_sides_have_the_certificate_then_it_is_the_digest_of_its_key(tmp_path: Path) -> None:
    certificate, key = self_signed()
    spki = serialization.load_pem_private_key(key, None).public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    assert ServerTls(certificate, key).binding == pinned(tmp_path, certificate).binding == sha256(spki).digest()


def test_binding_when_there_is_a_chain_then_it_is_of_the_first() -> None:
    first, second = self_signed()[0], self_signed()[0]
    assert spki_digest(first + second) == spki_digest(first) != spki_digest(second)


def test_load_when_both_files_are_there_then_credentials(tmp_path: Path) -> None:
    certificate, key = self_signed()
    (tmp_path / "c").write_bytes(certificate)
    (tmp_path / "k").write_bytes(key)
    assert ServerTls.load(tmp_path / "c", tmp_path / "k") == ServerTls(certificate, key)


def test_load_when_a_file_is_missing_then_config_error_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such") as failed:
        ServerTls.load(tmp_path / "no-such", tmp_path / "k")
    assert failed.value.reason == "TLS_CERTIFICATE"


@pytest.mark.parametrize("pem", [b"", b"no pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_spki_digest_when_not_a_certificate_then_config_error(pem: bytes) -> None:
    with pytest.raises(ConfigError) as failed:
        spki_digest(pem)
    assert failed.value.reason == "TLS_CERTIFICATE"


def test_pinned_when_made_by_a_ca_then_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not self-signed"):
        pinned(tmp_path, self_signed(issuer="Some CA")[0])


def test_pinned_when_issuer_and_subject_are_equal_but_another_key_signed_then_refused(tmp_path: Path) -> None:
    """A name is not a signature."""
    certificate = x509.load_pem_x509_certificate(self_signed()[0]).public_bytes(serialization.Encoding.DER)
    forged = bytearray(certificate)
    forged[-1] ^= 1
    pem = x509.load_der_x509_certificate(bytes(forged)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(ConfigError, match="not self-signed"):
        pinned(tmp_path, pem)


def test_pinned_when_there_are_two_certificates_then_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 certificates"):
        pinned(tmp_path, self_signed()[0] + self_signed()[0])


def test_pinned_when_there_is_no_alternative_name_then_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="subjectAltName"):
        pinned(tmp_path, self_signed(san=False)[0])


def test_options_when_pinned_then_the_name_in_the_certificate_is_expected(tmp_path: Path) -> None:
    assert pinned(tmp_path, self_signed("one.test")[0]).options() == (("grpc.ssl_target_name_override", "one.test"),)


def test_options_when_the_certificate_has_no_dns_name_then_none() -> None:
    assert ClientTls(self_signed()[0], "").options() == ()
