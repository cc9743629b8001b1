"""Ages and expiries of what the cache holds: for readiness, metrics and `pagegate endorsements list`."""

from __future__ import annotations

from dataclasses import dataclass

from pagegate.endorsements.cache import Cache, Stored
from pagegate.endorsements.part import PartKind, format_tcb
from pagegate.evidence.model import KeyKind


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One cached part; times in seconds since 1970, spans in seconds."""

    kind: PartKind
    product: str
    key_kind: KeyKind
    chip_id: str
    """Hex; empty but for a VCEK."""
    tcb: str
    """As `bl=4 tee=0 ...`; empty but for a leaf."""
    source: str
    size: int
    made_at: float
    expires_at: float
    fetched_at: float
    used_at: float
    age: float
    """Since it was fetched."""
    expires_in: float
    """Negative when expired."""


@dataclass(frozen=True, slots=True)
class EndorsementStatus:
    """What the cache holds at one moment."""

    parts: tuple[PartStatus, ...]

    @property
    def oldest_crl_age(self) -> float | None:
        """Seconds since the CRL fetched longest ago was fetched; None without CRLs."""
        return max((p.age for p in self.parts if p.kind is PartKind.CRL), default=None)

    @property
    def next_crl_expiry(self) -> float | None:
        """Seconds to the first nextUpdate; negative when it has passed."""
        return min((p.expires_in for p in self.parts if p.kind is PartKind.CRL), default=None)

    @property
    def next_leaf_expiry(self) -> float | None:
        """Seconds to the first notAfter of a VCEK or VLEK; VLEKs live a year."""
        return min((p.expires_in for p in self.parts if p.kind is PartKind.LEAF), default=None)

    @property
    def next_chain_expiry(self) -> float | None:
        """Seconds to the first notAfter of an ASK, ASVK or ARK."""
        return min((p.expires_in for p in self.parts if p.kind is PartKind.CHAIN), default=None)


def endorsement_status(cache: Cache, now: float) -> EndorsementStatus:
    """Reads the cache as it is at `now` (seconds since 1970)."""
    return EndorsementStatus(tuple(_status(stored, now) for stored in cache.stored()))


def _status(stored: Stored, now: float) -> PartStatus:
    part = stored.part
    return PartStatus(
        kind=part.kind,
        product=part.product,
        key_kind=part.key_kind,
        chip_id=part.hwid.hex(),
        tcb=format_tcb(part.product, part.tcb) if part.tcb else "",
        source=stored.source,
        size=len(stored.body),
        made_at=stored.made_at,
        expires_at=stored.expires_at,
        fetched_at=stored.fetched_at,
        used_at=stored.used_at,
        age=now - stored.fetched_at,
        expires_in=stored.expires_at - now,
    )
