"""The key file and the head beside it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from pagegate.audit import AuditLog
from pagegate.audit.signing import HeadFile, Signer, read_public_key
from pagegate.errors import AuditError


def test_signer_when_many_open_a_missing_key_then_all_get_the_same(key: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: Signer.open(key).public_key, range(16)))
    assert len(keys) == 1
    assert [path.name for path in key.parent.iterdir()] == ["audit.key"]


@pytest.mark.parametrize("mode", [0o644, 0o620, 0o604, 0o660])
def test_signer_when_others_can_use_the_key_then_refuses(key: Path, mode: int) -> None:
    Signer.open(key)
    key.chmod(mode)
    with pytest.raises(AuditError) as caught:
        Signer.open(key)
    assert caught.value.reason == "AUDIT_KEY_EXPOSED"


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600])
def test_signer_when_mounted_as_a_kubernetes_secret_then_loads(key: Path, mode: int) -> None:
    made = Signer.open(key).public_key
    key.chmod(mode)
    assert Signer.open(key).public_key == made


def _ec_pem() -> bytes:
    return generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\n", b"x" * 100_000, "ec"])
def test_signer_when_file_is_no_ed25519_key_then_refuses(key: Path, content: bytes | str) -> None:
    key.write_bytes(_ec_pem() if isinstance(content, str) else content)
    key.chmod(0o600)
    with pytest.raises(AuditError) as caught:
        Signer.open(key)
    assert caught.value.reason == "AUDIT_KEY_UNREADABLE"


def test_signer_when_folder_is_missing_then_says_so(tmp_path: Path) -> None:
    with pytest.raises(AuditError) as caught:
        Signer.open(tmp_path / "none" / "audit.key")
    assert caught.value.reason == "AUDIT_KEY_UNREADABLE"


def test_read_public_key_when_either_half_then_gives_the_same(key: Path, tmp_path: Path) -> None:
    made = Signer.open(key).public_key
    public = load_pem_private_key(key.read_bytes(), None).public_key()
    (tmp_path / "pub.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert read_public_key(tmp_path / "pub.pem") == read_public_key(key) == made


def test_read_public_key_when_not_one_then_refuses(tmp_path: Path) -> None:
    public = generate_private_key(SECP256R1()).public_key()
    (tmp_path / "ec.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "junk.pem").write_bytes(b"junk")
    for name in ("ec.pem", "junk.pem", "missing.pem"):
        with pytest.raises(AuditError) as caught:
            read_public_key(tmp_path / name)
        assert caught.value.reason == "AUDIT_KEY_UNREADABLE"


def test_head_file_when_an_older_head_comes_late_then_keeps_the_newer(filled: AuditLog, tmp_path: Path) -> None:
    file = HeadFile(tmp_path / "head")
    newer = filled.head
    file.advance(newer)
    older = next(iter(filled.reader.entries()))
    file.advance(type(newer)(newer.log_id, older.seq, older.hash, older.time, newer.signature))
    assert file.read() == newer


@pytest.mark.parametrize("content", [b"", b"{}", b"junk", b"x" * 100_000, b'{"head":1,"signature":""}'])
def test_head_file_when_content_is_no_head_then_refuses(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "head").write_bytes(content)
    with pytest.raises(AuditError) as caught:
        HeadFile(tmp_path / "head").read()
    assert caught.value.reason == "AUDIT_HEAD_FILE"


def test_head_file_when_folder_is_missing_then_cannot_advance(filled: AuditLog, tmp_path: Path) -> None:
    with pytest.raises(AuditError) as caught:
        HeadFile(tmp_path / "none" / "head").advance(filled.head)
    assert caught.value.reason == "AUDIT_HEAD_FILE"
