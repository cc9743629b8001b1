"""The TLS certificate of a running server: loaded again when its files change."""

from __future__ import annotations

from pagegate.config import ServeConfig
from pagegate.errors import ConfigError
from pagegate.operate.reloads import Reloads
from pagegate.rpc.tls import ServerTls, TlsFiles
from pagegate.server import Server


class CertificateInForce:
    """Follows the certificate files of `config`; does nothing without TLS."""

    def __init__(self, config: ServeConfig, reloads: Reloads) -> None:
        """Raises ConfigError when the pair is not usable or half of it is missing."""
        if (config.tls_cert is None) != (config.tls_key is None):
            raise ConfigError("TLS_CERTIFICATE", "TLS needs both --tls-cert and --tls-key")
        self._reloads = reloads
        self._files = TlsFiles(config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
        if self._files is not None:
            reloads.first("tls")

    @property
    def tls(self) -> ServerTls | None:
        """The pair in force; None without TLS."""
        return self._files.tls if self._files else None

    def tend(self, server: Server, *, asked: bool) -> None:
        """Called often: new connections get a new pair; open ones, and handshakes on them, go on."""
        if self._files is None or server.tls is None:
            return
        look = self._files.refresh(force=asked)
        standing = self._reloads.standing("tls")
        if look.error is not None:
            self._reloads.refused("tls", look.error)
        elif look.changed is not None:
            server.tls.replace(look.changed)
            self._reloads.loaded(
                "tls", f"new connections get it; it expires {look.changed.expires_at:%Y-%m-%d %H:%M} UTC"
            )
        elif asked or (standing is not None and standing.problem):
            self._reloads.loaded("tls", "the certificate is the same as before", changed=False)
