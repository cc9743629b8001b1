"""A server's TLS certificate and key, swapped on disk so that a reader never sees half a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pagegate.errors import ConfigError
from pagegate.rpc.tls import ServerTls

_KEY_MODE, _CERTIFICATE_MODE = 0o600, 0o644


def put_in_place(tls: ServerTls, certificate: Path, key: Path) -> None:
    """Puts both in place by rename, the key first. A crash in between leaves two whole files that do not belong
    together: a server keeps what it has loaded until they do, and writing again mends it. Raises ConfigError."""
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
