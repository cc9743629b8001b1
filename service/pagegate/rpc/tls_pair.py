"""A server's TLS certificate and key on disk: checked as a pair, swapped so that a reader never sees half a file."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from pagegate.errors import ConfigError

_KEY_MODE, _CERTIFICATE_MODE = 0o600, 0o644


@dataclass(frozen=True, slots=True)
class TlsPair:
    """A certificate chain and its key (PEM) that belong together."""

    certificate: bytes
    key: bytes
    subject: str
    not_after: datetime

    @classmethod
    def read(cls, certificate: Path, key: Path, *, now: datetime | None = None) -> TlsPair:
        """Reads both files and checks that a server can use them now. Raises ConfigError TLS_CERTIFICATE."""
        chain, secret = _read(certificate), _read(key)
        try:
            leaf = x509.load_pem_x509_certificates(chain)[0]
        except (ValueError, IndexError) as error:
            raise _unusable(f"{certificate} is no PEM certificate: {error}") from error
        try:
            public = load_pem_private_key(secret, None).public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise _unusable(f"{key} is no unencrypted PEM private key: {error}") from error
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if public.public_bytes(*form) != leaf.public_key().public_bytes(*form):
            raise _unusable(f"{key} is not the key of {certificate}: give the two files that were made together")
        moment = now or datetime.now(UTC)
        if not leaf.not_valid_before_utc <= moment <= leaf.not_valid_after_utc:
            raise _unusable(
                f"{certificate} holds from {leaf.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ} to "
                f"{leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}, and it is {moment:%Y-%m-%dT%H:%M:%SZ}"
            )
        try:
            leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            raise _unusable(f"{certificate} has no subjectAltName, without which TLS accepts no name") from None
        return cls(chain, secret, leaf.subject.rfc4514_string(), leaf.not_valid_after_utc)

    def write(self, certificate: Path, key: Path) -> None:
        """Puts both in place by rename, the key first. A crash in between leaves two whole files that do not belong
        together: a server keeps what it has loaded until they do, and writing again mends it. Raises ConfigError."""
        try:
            _replace(key, self.key, _KEY_MODE)
            _replace(certificate, self.certificate, _CERTIFICATE_MODE)
        except OSError as error:
            raise ConfigError("TLS_CERTIFICATE", f"cannot replace {error.filename}: {error.strerror}") from error


def _replace(path: Path, content: bytes, mode: int) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), path.stat().st_mode & 0o777 if path.exists() else mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(f"cannot read {path}: {error.strerror}") from error


def _unusable(what: str) -> ConfigError:
    return ConfigError("TLS_CERTIFICATE", what)
