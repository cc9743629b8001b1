"""TLS below the attested channel, bound to it by the server certificate's public key."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import cast

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from pagegate.errors import ConfigError

_MAX_PINS = 4
_FORMER_KEPT = 4
"""Replaced certificates that are remembered: more in one overlap is no rotation."""


def spki_digest(pem: bytes) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo of the first certificate in a PEM file."""
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
    except (ValueError, IndexError) as error:
        raise ConfigError("TLS_CERTIFICATE", f"not a PEM certificate: {error}") from error
    return sha256(_spki(certificate.public_key())).digest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError("TLS_CERTIFICATE", f"cannot read {path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class ServerTls:
    """A server's certificate chain and key (PEM)."""

    certificate: bytes
    key: bytes

    @classmethod
    def load(cls, certificate: Path, key: Path) -> ServerTls:
        """Reads both files, and makes sure that TLS can work with them. Raises ConfigError TLS_CERTIFICATE,
        TLS_KEY, TLS_KEY_MISMATCH or TLS_EXPIRED."""
        tls = cls(_read(certificate), _read(key))
        try:
            found = tls._leaf()
        except (ValueError, IndexError) as error:
            raise ConfigError("TLS_CERTIFICATE", f"{certificate} is no PEM certificate: {error}") from error
        if _public_key(tls.key, key) != _spki(found.public_key()):
            raise ConfigError(
                "TLS_KEY_MISMATCH",
                f"the key in {key} is not the key of {certificate} ({tls.subject}): give the two files of one pair",
            )
        _server_name(found, certificate)
        now = datetime.now(UTC)
        if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
            raise ConfigError(
                "TLS_EXPIRED",
                f"the certificate in {certificate} holds from {found.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M}: renew it, or set "
                "this machine's clock",
            )
        return tls

    @property
    def binding(self) -> bytes:
        """What goes into ServerHello.tls_binding."""
        return spki_digest(self.certificate)

    def _leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificates(self.certificate)[0]

    @property
    def subject(self) -> str:
        """Whose certificate it is, for people."""
        return self._leaf().subject.rfc4514_string() or "no subject"

    @property
    def expires_at(self) -> datetime:
        """When the certificate expires."""
        return self._leaf().not_valid_after_utc

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The pair as gRPC takes it, without client certificates: the client proves itself by evidence."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)])


class TlsInForce:
    """The certificate of new connections, and the ones that connections from before still show. Thread-safe.

    A connection keeps the certificate it was opened with. So the handshake's binding may be of a replaced
    one, for `overlap_s` seconds and never after that certificate has expired.
    """

    def __init__(
        self,
        tls: ServerTls,
        *,
        overlap_s: float,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._tls = tls
        self._overlap_s = overlap_s
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._former: list[tuple[float, ServerTls]] = []
        self._handed_out: ServerTls | None = tls

    @property
    def current(self) -> ServerTls:
        """What new connections see."""
        return self._tls

    def replace(self, tls: ServerTls) -> None:
        """Puts another pair in force for new connections; open ones go on."""
        with self._lock:
            if tls == self._tls:
                return
            self._former = [*self._live(), (self._clock() + self._overlap_s, self._tls)][-_FORMER_KEPT:]
            self._tls = tls

    def former(self) -> tuple[bytes, ...]:
        """Bindings of replaced certificates that open connections may still show."""
        with self._lock:
            self._former = self._live()
            return tuple(tls.binding for _, tls in self._former)

    def _live(self) -> list[tuple[float, ServerTls]]:
        clock, now = self._clock(), self._now()
        return [(until, tls) for until, tls in self._former if clock < until and now <= tls.expires_at]

    def credentials(self) -> grpc.ServerCredentials:
        """Server credentials that follow `replace`: gRPC asks at every new connection."""
        # None from the fetcher means "no change"; the stubs do not know.
        fetch = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._fetch)
        return grpc.dynamic_ssl_server_credentials(self._tls.configuration(), fetch, False)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            if self._handed_out is self._tls:
                return None
            self._handed_out = self._tls
            return self._tls.configuration()


@dataclass(frozen=True, slots=True)
class TlsReload:
    """What a look at the files brought."""

    changed: ServerTls | None
    """The new pair; None when it is the same, or not usable."""
    error: ConfigError | None
    """Why the files as they are now are not in force; None when they are."""


class TlsFiles:
    """Follows a certificate and a key file, links too (cert-manager swaps one). Not a thread: the owner calls
    `refresh` from time to time and on SIGHUP."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises ConfigError when the first pair is not usable: there is nothing to keep in force yet."""
        self._certificate = certificate
        self._key = key
        self._seen = self._stamps()
        self._tls = ServerTls.load(certificate, key)
        self._error: ConfigError | None = None

    @property
    def tls(self) -> ServerTls:
        """The pair in force."""
        return self._tls

    def refresh(self, *, force: bool = False) -> TlsReload:
        """Loads the pair again when a file changed (always when forced); never raises. Of two files that are
        written one after the other, the first alone does not match: the former pair stays until both are there."""
        stamps = self._stamps()
        if stamps == self._seen and not force:
            return TlsReload(None, self._error)
        self._seen = stamps
        try:
            new = ServerTls.load(self._certificate, self._key)
        except ConfigError as error:
            self._error = error
            return TlsReload(None, error)
        changed = new if new != self._tls else None
        self._tls, self._error = new, None
        return TlsReload(changed, None)

    def _stamps(self) -> tuple[tuple[int, int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in (self._certificate, self._key))


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _server_name(certificate: x509.Certificate, path: Path) -> str:
    """The first DNS name, "" when it has addresses only. Raises ConfigError TLS_CERTIFICATE."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ConfigError(
            "TLS_CERTIFICATE", f"{path} has no subjectAltName, without which TLS accepts no name; make it with one"
        ) from None
    return next(iter(names.get_values_for_type(x509.DNSName)), "")


def _public_key(pem: bytes, path: Path) -> bytes:
    """The public half of a private key. Raises ConfigError TLS_KEY."""
    try:
        return _spki(load_pem_private_key(pem, None).public_key())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "TLS_KEY", f"{path} is no unencrypted PEM private key: {error}. Decrypt or convert it"
        ) from error


@dataclass(frozen=True, slots=True)
class ClientTls:
    """The one server certificate a client accepts.

    gRPC's Python client does not tell which certificate the server showed, so the binding can only be
    computed when exactly one is acceptable: the pinned, self-signed one.
    """

    certificate: bytes
    server_name: str

    @classmethod
    def pinned(cls, path: Path) -> ClientTls:
        """The one certificate in a file. Raises ConfigError TLS_CERTIFICATE, also for one that is not self-signed."""
        first, *others = cls.pins(path)
        if others:
            raise ConfigError(
                "TLS_CERTIFICATE",
                f"{path} holds {1 + len(others)} certificates where one is wanted; give them to `pins`",
            )
        return first

    @classmethod
    def pins(cls, path: Path) -> tuple[ClientTls, ...]:
        """The certificates in a file, each on its own: a connection accepts one of them, the next where that
        fails. So the server's next certificate can be pinned before it is in force. Raises ConfigError
        TLS_CERTIFICATE."""
        pem = _read(path)
        spki_digest(pem)
        certificates = x509.load_pem_x509_certificates(pem)
        if len(certificates) > _MAX_PINS:
            raise ConfigError(
                "TLS_CERTIFICATE",
                f"{path} holds {len(certificates)} certificates, {_MAX_PINS} at most are pinned. Give the server's "
                "own self-signed certificate, and its successor, not a bundle of CAs",
            )
        return tuple(cls._pin(certificate, path) for certificate in certificates)

    @classmethod
    def _pin(cls, certificate: x509.Certificate, path: Path) -> ClientTls:
        try:
            certificate.verify_directly_issued_by(certificate)
        except (ValueError, TypeError, InvalidSignature):
            raise ConfigError(
                "TLS_CERTIFICATE",
                f"a certificate in {path} is not self-signed: with a CA any of its certificates would do, and the handshake could not "
                "be bound to one. Pin the server's own self-signed certificate.",
            ) from None
        return cls(certificate.public_bytes(Encoding.PEM), _server_name(certificate, path))

    @property
    def binding(self) -> bytes:
        """What ServerHello.tls_binding must be."""
        return spki_digest(self.certificate)

    def credentials(self) -> grpc.ChannelCredentials:
        """Channel credentials that accept the pinned certificate only."""
        return grpc.ssl_channel_credentials(root_certificates=self.certificate)

    def options(self) -> tuple[tuple[str, str], ...]:
        """Channel options: the name in the certificate, whatever address is dialled."""
        return (("grpc.ssl_target_name_override", self.server_name),) if self.server_name else ()
