"""The facts that a handshake settles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import enclave_bridge as eb
from pagegate.evidence.model import AccessMode, Verdict

NONCE_SIZE = 32
SESSION_ID_SIZE = 16
TLS_BINDING_SIZE = 32
MAX_REGIONS = 64
MAX_HELLO_SIZE = 16 * 1024
MAX_EVIDENCE_SIZE = 256 * 1024
MAX_CERTIFICATES = 8
MAX_CERTIFICATE_SIZE = 16 * 1024
HANDSHAKE_TIMEOUT_S = 10.0
SUITES_DEFAULT = (eb.Suite.P384_SHA384_AES256GCM, eb.Suite.P256_SHA256_AES128GCM)


@dataclass(frozen=True, slots=True)
class GrantedRegion:
    """A region a session may use."""

    name: str
    number: int
    base_gpa: int
    """First guest-physical address in bytes, 4 KiB aligned."""
    pages: int
    mode: AccessMode


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may ask of the server."""

    lifetime_s: float = 3600.0
    max_batch_pages: int = 256
    max_batches_in_flight: int = 32


@dataclass(frozen=True, slots=True)
class Established:
    """A finished handshake: both sides proved what they run and confirmed the keys."""

    session: eb.Session
    session_id: bytes
    peer: Verdict
    """What this side found about the other."""
    regions: Mapping[str, GrantedRegion]
    limits: Limits
    suite: eb.Suite
    simulated: bool
    """True when either side's evidence is SIMULATED and proves nothing."""
