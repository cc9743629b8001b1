"""AMD's certificates as the sources of endorsements need them: the verifier's own strict parser, errors of our kind."""

from __future__ import annotations

import base64
import binascii
import re

from pagegate.errors import EndorsementError, EvidenceError
from pagegate.evidence.snp import certificate as strict
from pagegate.evidence.snp.certificate import AmdExtensions, Certificate

_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s+([A-Za-z0-9+/=\s]+?)-----END \1-----")


def invalid(what: str) -> EndorsementError:
    """The error for content that cannot be used."""
    return EndorsementError("ENDORSEMENT_CONTENT_INVALID", what)


def parse_certificate(data: bytes) -> Certificate:
    """Parses one DER certificate. Raises EndorsementError ENDORSEMENT_CONTENT_INVALID."""
    try:
        return strict.parse_certificate(data)
    except EvidenceError as error:
        raise invalid(error.message) from error


def amd_extensions(certificate: Certificate) -> AmdExtensions:
    """What AMD certifies in it; all empty in an authority. Raises EndorsementError ENDORSEMENT_CONTENT_INVALID."""
    try:
        return strict.parse_amd_extensions(certificate)
    except EvidenceError as error:
        raise invalid(error.message) from error


def is_root(certificate: Certificate) -> bool:
    """Subject and issuer are the same name."""
    return certificate.subject == certificate.issuer


def split_pem(data: bytes) -> list[tuple[str, bytes]]:
    """The (label, DER) pairs of a PEM bundle; empty when `data` holds no PEM."""
    blocks = []
    for label, text in _PEM.findall(data):
        try:
            blocks.append((label.decode(), base64.b64decode(b"".join(text.split()), validate=True)))
        except binascii.Error as error:
            raise invalid(f"bad base64 in a PEM block {label.decode()}: {error}") from error
    return blocks


def printable(text: bytes) -> str:
    """ASCII fit for a terminal: whatever else a list's issuer says becomes '?'."""
    return "".join(chr(b) if 0x20 <= b < 0x7F else "?" for b in text[:128])
