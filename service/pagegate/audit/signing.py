"""The key that signs a log: an Ed25519 key file, and the last head kept beside it.

The database may be in other hands (a shared PostgreSQL, a volume someone can roll back). The key
file's directory is the writer's own, so the last signed head is kept there too: a log that ends
before it has lost its tail.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from pagegate.audit.entry import ENTRY_LABEL, HEAD_LABEL, SignedHead, parse_head_line
from pagegate.errors import AuditError

_MAX_FILE = 64 * 1024


class Signer:
    """Signs entries and heads. Holds the private key; never shows it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()
        """32 bytes: what an auditor pins."""

    @classmethod
    def open(cls, path: Path) -> Signer:
        """Loads the key file, made with mode 0600 when it does not exist. Raises AuditError."""
        try:
            if not path.exists():
                _create_key(path)
            return cls(_load_private(path))
        except OSError as error:
            raise AuditError(
                "AUDIT_KEY_UNREADABLE", f"audit signing key {path} cannot be read or made: {error.strerror}"
            ) from error

    def sign_entry(self, digest: bytes) -> bytes:
        """64 bytes over one entry's hash."""
        return self._key.sign(ENTRY_LABEL + digest)

    def sign_head(self, body: bytes) -> bytes:
        """64 bytes over one head's canonical body."""
        return self._key.sign(HEAD_LABEL + body)


def entry_signed_by(public_key: bytes, digest: bytes, signature: bytes) -> bool:
    """True when `signature` over an entry's hash is by `public_key`."""
    return _verifies(public_key, ENTRY_LABEL + digest, signature)


def head_signed_by(public_key: bytes, head: SignedHead) -> bool:
    """True when the head's signature is by `public_key`."""
    return _verifies(public_key, HEAD_LABEL + head.body(), head.signature)


def read_public_key(path: Path) -> bytes:
    """The 32-byte public key of a PEM file that holds either half. Raises AuditError."""
    try:
        data = _read_small(path)
    except OSError as error:
        raise AuditError("AUDIT_KEY_UNREADABLE", f"key {path} cannot be read: {error.strerror}") from error
    if b"PRIVATE KEY" in data:
        return Signer(_load_private(path)).public_key
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AuditError("AUDIT_KEY_UNREADABLE", f"{path} holds no PEM public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise AuditError("AUDIT_KEY_UNREADABLE", f"{path} holds a key that is not Ed25519")
    return key.public_bytes_raw()


class HeadFile:
    """The last signed head, in a file of its own that only ever moves forward."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> SignedHead | None:
        """The head kept, None when none was ever kept. Raises AuditError when it is not a head."""
        try:
            data = _read_small(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error
        try:
            return parse_head_line(data.strip())
        except ValueError as error:
            raise self._unusable(f"not a signed head: {error}") from error

    def advance(self, head: SignedHead) -> None:
        """Keeps `head` durably unless a later one is kept already. Raises AuditError."""
        try:
            with self._locked():
                kept = self.read()
                if kept is None or kept.seq < head.seq:
                    _write_durably(self.path, head.to_json() + b"\n", mode=0o600)
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _unusable(self, why: str) -> AuditError:
        return AuditError(
            "AUDIT_HEAD_FILE",
            f"head file {self.path} is not usable: {why}. It shows a log that lost its tail; "
            "give a writable place for it, or restore it from a backup",
        )


def _verifies(public_key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _create_key(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    _write_durably(temporary, pem, mode=0o600)
    try:
        os.link(temporary, path)  # fails when another process was first, whose key then counts
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    _sync_folder(path.parent)


def _load_private(path: Path) -> Ed25519PrivateKey:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o037:
        raise AuditError(
            "AUDIT_KEY_EXPOSED",
            f"audit signing key {path} has mode {mode:04o}: others could sign in this log's name. "
            "Run chmod 0600 on it, and start a new log if it was exposed",
        )
    try:
        key = load_pem_private_key(_read_small(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AuditError("AUDIT_KEY_UNREADABLE", f"{path} holds no unencrypted PEM private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise AuditError("AUDIT_KEY_UNREADABLE", f"{path} holds a key that is not Ed25519")
    return key


def _read_small(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise OSError(27, f"over {_MAX_FILE} bytes")
    return data


def _write_durably(path: Path, data: bytes, *, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
