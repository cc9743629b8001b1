"""Between handshake messages and typed facts: every length, count and enum is checked here, once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

import enclave_bridge as eb
from pagegate.errors import HandshakeError
from pagegate.evidence.model import AccessMode, Evidence, EvidenceType
from pagegate.handshake.model import (
    MAX_CERTIFICATE_SIZE,
    MAX_CERTIFICATES,
    MAX_EVIDENCE_SIZE,
    MAX_HELLO_SIZE,
    MAX_REGIONS,
    NONCE_SIZE,
    TLS_BINDING_SIZE,
)
from pagegate.v1 import attestation_pb2 as pb

_M = TypeVar("_M", bound=Message)
_REGION_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")

EVIDENCE_TYPES = {
    EvidenceType.SEV_SNP: pb.EVIDENCE_TYPE_SEV_SNP,
    EvidenceType.SGX: pb.EVIDENCE_TYPE_SGX,
    EvidenceType.TDX: pb.EVIDENCE_TYPE_TDX,
    EvidenceType.CCA: pb.EVIDENCE_TYPE_CCA,
    EvidenceType.NITRO: pb.EVIDENCE_TYPE_NITRO,
}
_EVIDENCE_TYPES_BACK = {number: kind for kind, number in EVIDENCE_TYPES.items()}
ACCESS_MODES = {
    AccessMode.READ: pb.ACCESS_MODE_READ,
    AccessMode.WRITE: pb.ACCESS_MODE_WRITE,
    AccessMode.READ_WRITE: pb.ACCESS_MODE_READ_WRITE,
}
_ACCESS_MODES_BACK = {number: mode for mode, number in ACCESS_MODES.items()}


def parse(message: type[_M], data: bytes, limit: int, name: str) -> _M:
    """Parses one transcript message. Raises HandshakeError MALFORMED_MESSAGE."""
    if not 0 < len(data) <= limit:
        raise malformed(f"{name} is {len(data)} bytes; allowed are 1 to {limit}")
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise malformed(f"{name} is not a valid protobuf message") from error


def malformed(what: str) -> HandshakeError:
    """The error for a message that breaks the format."""
    return HandshakeError("MALFORMED_MESSAGE", f"{what}. The peer does not speak pagegate protocol v1.")


def client_hello(data: bytes) -> pb.ClientHello:
    """Parses and bounds a ClientHello."""
    hello = parse(pb.ClientHello, data, MAX_HELLO_SIZE, "ClientHello")
    version(hello.version)
    nonce(hello.client_nonce, "client_nonce")
    if not 1 <= len(hello.key_shares) <= 4:
        raise malformed(f"ClientHello has {len(hello.key_shares)} key shares; allowed are 1 to 4")
    suites = [share.suite for share in hello.key_shares]
    if len(set(suites)) != len(suites):
        raise malformed("ClientHello offers a suite twice")
    for field in ("evidence_offered", "evidence_accepted"):
        count = len(getattr(hello, field))
        if not 1 <= count <= 8:
            raise malformed(f"ClientHello.{field} has {count} entries; allowed are 1 to 8")
    if len(hello.tls_binding) not in (0, TLS_BINDING_SIZE):
        raise malformed(
            f"ClientHello.tls_binding is {len(hello.tls_binding)} bytes; it must be {TLS_BINDING_SIZE} or none"
        )
    if len(hello.regions) > MAX_REGIONS:
        raise malformed(f"ClientHello asks for {len(hello.regions)} regions; allowed are {MAX_REGIONS}")
    names = [region.name for region in hello.regions]
    if len(set(names)) != len(names):
        raise malformed("ClientHello asks for a region twice")
    for name in names:
        region_name(name)
    return hello


def version(number: int) -> None:
    """Refuses every protocol version but 1."""
    if number != pb.PROTOCOL_VERSION_1:
        raise HandshakeError(
            "VERSION_UNSUPPORTED",
            f"the peer speaks protocol version {number}; this side speaks 1. Upgrade the older side.",
        )


def nonce(value: bytes, name: str) -> None:
    """Refuses nonces of another length, and constant ones, which no generator makes."""
    if len(value) != NONCE_SIZE or len(set(value)) == 1:
        raise malformed(f"{name} must be {NONCE_SIZE} random bytes")


def region_name(name: str) -> str:
    """Refuses names that are not 1 to 63 of [a-z0-9-] starting with a letter."""
    if not _REGION_NAME.fullmatch(name):
        raise malformed(f"region name {name[:64]!r} is not 1 to 63 of a-z, 0-9, '-' starting with a letter")
    return name


def access_mode(number: int) -> AccessMode:
    """Reads an access mode; unknown ones are refused."""
    try:
        return _ACCESS_MODES_BACK[pb.AccessMode.ValueType(number)]
    except KeyError:
        raise malformed(f"access mode {number} is unknown") from None


def choose_suite(offered: Sequence[int], allowed: Sequence[eb.Suite]) -> eb.Suite:
    """This side's most preferred suite among those offered. Raises HandshakeError SUITE_UNSUPPORTED."""
    for suite in allowed:
        if int(suite) in offered:
            return suite
    raise HandshakeError(
        "SUITE_UNSUPPORTED",
        f"the peer offers suites {list(offered)}; this side allows {[int(s) for s in allowed]}. Allow a common one.",
    )


def encode_evidence(evidence: Evidence) -> bytes:
    """Serializes evidence for the transcript. Empty evidence (an unattested caller) is allowed here."""
    return pb.Evidence(
        type=EVIDENCE_TYPES[evidence.type],
        report=evidence.report,
        certificates=evidence.certificates,
        attachments=dict(evidence.attachments),
    ).SerializeToString(deterministic=True)


def decode_evidence(data: bytes, wanted: EvidenceType) -> Evidence:
    """Parses evidence, bounded. Raises HandshakeError EVIDENCE_MISSING, EVIDENCE_TYPE or MALFORMED_MESSAGE."""
    if not data:
        raise HandshakeError(
            "EVIDENCE_MISSING", "the peer sent no evidence. Run it on a platform that can attest (pagegate doctor)."
        )
    message = parse(pb.Evidence, data, MAX_EVIDENCE_SIZE, "Evidence")
    if not message.report:
        raise HandshakeError(
            "EVIDENCE_MISSING", "the peer's evidence is empty. Run it on a platform that can attest (pagegate doctor)."
        )
    kind = _EVIDENCE_TYPES_BACK.get(message.type)
    if kind is not wanted:
        raise HandshakeError(
            "EVIDENCE_TYPE", f"the peer sent evidence of type {message.type}, agreed was {wanted.value}", metadata={}
        )
    if len(message.certificates) > MAX_CERTIFICATES:
        raise malformed(f"Evidence has {len(message.certificates)} certificates; allowed are {MAX_CERTIFICATES}")
    if any(len(c) > MAX_CERTIFICATE_SIZE for c in message.certificates):
        raise malformed(f"Evidence has a certificate over {MAX_CERTIFICATE_SIZE} bytes")
    return Evidence(wanted, message.report, tuple(message.certificates), dict(message.attachments))


def evidence_type(number: int) -> EvidenceType | None:
    """The evidence type of a wire number; None when unknown (peers may offer newer ones)."""
    return _EVIDENCE_TYPES_BACK.get(pb.EvidenceType.ValueType(number))
