"""Puts a new TLS pair where a running server reads it, so that no reader sees half a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cryptography import x509

from pagegate.errors import ConfigError
from pagegate.rpc.tls import ServerTls

_KEY_MODE, _CERTIFICATE_MODE = 0o600, 0o644


def load_new(certificate: Path, key: Path) -> ServerTls:
    """A pair that belongs together, holds now and names a server. Raises ConfigError TLS_*."""
    tls = ServerTls.load(certificate, key)
    leaf = x509.load_pem_x509_certificates(tls.certificate)[0]
    try:
        leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise ConfigError(
            "TLS_CERTIFICATE", f"{certificate} has no subjectAltName, without which TLS accepts no name"
        ) from None
    return tls


def swap(tls: ServerTls, certificate: Path, key: Path) -> None:
    """Replaces both files by rename, the key first; modes stay. Raises ConfigError TLS_CERTIFICATE.

    A crash in between leaves two whole files that do not belong together: a server keeps the pair it has loaded until
    they do, and swapping again mends it.
    """
    try:
        _replace(key, tls.key, _KEY_MODE)
        _replace(certificate, tls.certificate, _CERTIFICATE_MODE)
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
