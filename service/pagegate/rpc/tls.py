"""TLS below the attested channel, bound to it by the server certificate's public key."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pagegate.errors import ConfigError


def spki_digest(pem: bytes) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo of the first certificate in a PEM file."""
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
    except (ValueError, IndexError) as error:
        raise ConfigError("TLS_CERTIFICATE", f"not a PEM certificate: {error}") from error
    return sha256(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


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
        """Reads both files. Raises ConfigError TLS_CERTIFICATE."""
        tls = cls(_read(certificate), _read(key))
        spki_digest(tls.certificate)
        return tls

    @property
    def binding(self) -> bytes:
        """What goes into ServerHello.tls_binding."""
        return spki_digest(self.certificate)

    def credentials(self) -> grpc.ServerCredentials:
        """Server credentials without client certificates: the client proves itself by evidence."""
        return grpc.ssl_server_credentials([(self.key, self.certificate)])


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
        """Raises ConfigError TLS_CERTIFICATE, also for a certificate that is not self-signed."""
        pem = _read(path)
        spki_digest(pem)
        certificate, *others = x509.load_pem_x509_certificates(pem)
        if others:
            raise ConfigError(
                "TLS_CERTIFICATE",
                f"{path} holds {1 + len(others)} certificates: TLS would accept each of them, and the handshake is "
                "bound to one. Pin the server's own self-signed certificate alone.",
            )
        try:
            certificate.verify_directly_issued_by(certificate)
        except (ValueError, TypeError, InvalidSignature):
            raise ConfigError(
                "TLS_CERTIFICATE",
                f"{path} is not self-signed: with a CA any of its certificates would do, and the handshake could not "
                "be bound to one. Pin the server's own self-signed certificate.",
            ) from None
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            raise ConfigError(
                "TLS_CERTIFICATE",
                f"{path} has no subjectAltName, without which TLS accepts no name; make it with one",
            ) from None
        name = next(iter(names.get_values_for_type(x509.DNSName)), "")
        return cls(pem, name)

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
