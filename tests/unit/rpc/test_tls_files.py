"""Certificate and key files: what is refused, and how a running server follows them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pagegate.errors import ConfigError
from pagegate.rpc.tls import ClientTls, ServerTls, TlsFiles, TlsInForce
from support.certificates import self_signed


class Files:
    """A certificate and a key file, as `tls.crt` and `tls.key` of one directory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.certificate, self.key = directory / "tls.crt", directory / "tls.key"

    def write(self, certificate: bytes, key: bytes) -> None:
        self.certificate.write_bytes(certificate)
        self.key.write_bytes(key)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path / "pair")
    made.write(*self_signed())
    return made


def refusal(call: Callable[[], object]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        call()
    return caught.value


def lasting(start: datetime, end: datetime) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pagegate.test")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("pagegate.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# ---- load -------------------------------------------------------------------------------


def test_load_when_the_key_is_of_another_certificate_then_says_so(files: Files) -> None:
    files.key.write_bytes(self_signed()[1])
    error = refusal(lambda: ServerTls.load(files.certificate, files.key))
    assert error.reason == "TLS_KEY_MISMATCH"
    assert str(files.key) in error.message
    assert "CN=pagegate.test" in error.message


@pytest.mark.parametrize("key", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_load_when_the_key_is_none_then_tls_key(files: Files, key: bytes) -> None:
    files.key.write_bytes(key)
    assert refusal(lambda: ServerTls.load(files.certificate, files.key)).reason == "TLS_KEY"


def test_load_when_the_key_is_encrypted_then_says_what_to_do(files: Files) -> None:
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    error = refusal(lambda: ServerTls.load(files.certificate, files.key))
    assert error.reason == "TLS_KEY"
    assert "Decrypt" in error.message


@pytest.mark.parametrize("offset", [timedelta(days=-2), timedelta(days=1)])
def test_load_when_not_valid_now_then_expired(files: Files, offset: timedelta) -> None:
    start = datetime.now(UTC) + offset
    files.write(*lasting(start, start + timedelta(days=1)))
    assert refusal(lambda: ServerTls.load(files.certificate, files.key)).reason == "TLS_EXPIRED"


def test_expires_at_when_asked_is_the_certificates(files: Files) -> None:
    end = (datetime.now(UTC) + timedelta(days=5)).replace(microsecond=0)
    files.write(*lasting(datetime.now(UTC) - timedelta(hours=1), end))
    assert ServerTls.load(files.certificate, files.key).expires_at == end


# ---- follow -----------------------------------------------------------------------------


def test_refresh_when_nothing_changed_then_nothing_is_new(files: Files) -> None:
    look = TlsFiles(files.certificate, files.key).refresh()
    assert (look.changed, look.error) == (None, None)


def test_refresh_when_both_files_changed_then_the_new_pair(files: Files) -> None:
    followed = TlsFiles(files.certificate, files.key)
    certificate, key = self_signed()
    files.write(certificate, key)
    assert followed.refresh().changed == ServerTls(certificate, key) == followed.tls


def test_refresh_when_only_the_certificate_is_there_yet_then_keeps_the_old_until_the_key_is(files: Files) -> None:
    followed = TlsFiles(files.certificate, files.key)
    before = followed.tls
    certificate, key = self_signed()
    files.certificate.write_bytes(certificate)
    look = followed.refresh()
    assert look.changed is None
    assert look.error is not None
    assert look.error.reason == "TLS_KEY_MISMATCH"
    assert followed.tls == before
    files.key.write_bytes(key)
    assert followed.refresh().changed == ServerTls(certificate, key)


def test_refresh_when_a_link_is_swapped_as_cert_manager_does_then_the_new_pair(tmp_path: Path) -> None:
    old, new = Files(tmp_path / "..1"), Files(tmp_path / "..2")
    old.write(*self_signed())
    new.write(*self_signed())
    data = tmp_path / "..data"
    data.symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    followed = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    swapped = tmp_path / "..data_tmp"
    swapped.symlink_to("..2")
    swapped.rename(data)
    assert followed.refresh().changed == ServerTls.load(new.certificate, new.key)


def test_refresh_when_the_files_are_gone_then_keeps_the_old(files: Files) -> None:
    followed = TlsFiles(files.certificate, files.key)
    files.key.unlink()
    error = followed.refresh().error
    assert error is not None
    assert followed.refresh().error is error


# ---- in force ---------------------------------------------------------------------------


class Clock:
    """Seconds a test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_former_when_within_the_overlap_then_kept_and_after_it_gone() -> None:
    clock, first, second = Clock(), ServerTls(*self_signed()), ServerTls(*self_signed())
    tls = TlsInForce(first, overlap_s=10.0, clock=clock)
    tls.replace(second)
    assert (tls.current, tls.former()) == (second, (first.binding,))
    clock.now = 9.9
    assert tls.former() == (first.binding,)
    clock.now = 10.0
    assert tls.former() == ()


def test_former_when_the_replaced_certificate_expires_then_gone_before_the_overlap_ends() -> None:
    first = ServerTls(*self_signed())
    later = [datetime.now(UTC)]
    tls = TlsInForce(first, overlap_s=1e9, now=lambda: later[0])
    tls.replace(ServerTls(*self_signed()))
    later[0] = first.expires_at + timedelta(seconds=1)
    assert tls.former() == ()


def test_former_when_replaced_often_then_bounded() -> None:
    tls = TlsInForce(ServerTls(*self_signed()), overlap_s=10.0)
    for _ in range(6):
        tls.replace(ServerTls(*self_signed()))
    assert len(tls.former()) == 4


def test_replace_when_it_is_the_same_then_nothing_is_former() -> None:
    first = ServerTls(*self_signed())
    tls = TlsInForce(first, overlap_s=10.0)
    tls.replace(first)
    assert tls.former() == ()


# ---- pins -------------------------------------------------------------------------------


def test_pins_when_two_certificates_are_in_the_file_then_each_accepts_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "pins.pem"
    one, two = self_signed()[0], self_signed()[0]
    path.write_bytes(one + two)
    assert [pin.certificate for pin in ClientTls.pins(path)] == [one, two]
    assert refusal(lambda: ClientTls.pinned(path)).reason == "TLS_CERTIFICATE"


def test_pins_when_it_is_a_bundle_then_refused(tmp_path: Path) -> None:
    path = tmp_path / "bundle.pem"
    path.write_bytes(b"".join(self_signed()[0] for _ in range(5)))
    assert "not a bundle" in refusal(lambda: ClientTls.pins(path)).message
