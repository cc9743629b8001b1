"""Every option of the endorsement sources, with its default and its unit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit

from pagegate.errors import ConfigError

KDS_URL = "https://kdsintf.amd.com"
DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits on the way to KDS, seconds."""

    connect: float = 5.0
    read: float = 10.0
    """Silence between two reads."""
    attempt: float = 30.0
    """One request, name resolution to last byte."""
    total: float = 120.0
    """One fetch with its queueing and retries."""
    crl: float = 15.0
    """The same for a CRL, which an appraisal can do without if its policy says so."""


@dataclass(frozen=True, slots=True)
class EndorsementSettings:
    """Where endorsements come from and how hard to try. Raises ConfigError for a value that cannot work."""

    directory: Path | None = None
    """Directory of DER or PEM files, searched first."""
    cache_path: Path | None = None
    """SQLite file, shared by processes of this machine; None keeps the cache in memory."""
    kds_url: str = KDS_URL
    """Base URL of AMD's KDS or of a mirror with the same paths."""
    proxy: str | None = None
    """HTTP proxy URL; None takes HTTPS_PROXY, HTTP_PROXY and NO_PROXY from the environment, "" uses none."""
    ca_file: Path | None = None
    """PEM file of the authorities that may vouch for KDS or the mirror; None takes the system's."""
    offline: bool = False
    """Never touch the network."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    patient: bool = False
    """Wait for the queue and for Retry-After however long they ask, not only to `timeouts.total`."""
    leaf_interval: float = 10.0
    """Seconds between two leaf requests of this machine: KDS gives about one VCEK in 10 s to an address."""
    crl_refresh: float = DAY
    """Age in seconds at which a CRL is fetched anew, even if its nextUpdate is later."""
    chain_refresh: float = 30 * DAY
    max_stale: float = 7 * DAY
    """Seconds past the refresh age in which the cached part is served at once while a new one is fetched
    behind it; after that the caller waits for the fetch. An expired part is never served that way."""
    negative_ttl: float = 600.0
    """Seconds to remember that KDS has no such certificate. Short: KDS has been seen to say 404 for a while."""
    cache_max_bytes: int = 64 * 1024 * 1024
    roots: frozenset[str] = frozenset()
    """SHA-256 (hex) of the ARKs that may enter the cache; empty lets any consistent chain in. What is
    believed is the appraiser's business: this keeps a hostile mirror from filling the cache."""

    def __post_init__(self) -> None:
        base = urlsplit(self.kds_url)
        if base.scheme not in ("https", "http") or not base.hostname or base.query or base.fragment or base.username:
            raise _bad("kds_url", self.kds_url, "expected https://host[:port][/path]")
        if self.proxy and (urlsplit(self.proxy).scheme not in ("https", "http") or not urlsplit(self.proxy).hostname):
            raise _bad("proxy", "(not shown)", "expected http://host:port")
        for limit in fields(Timeouts):
            _positive(f"timeouts.{limit.name}", getattr(self.timeouts, limit.name))
        for name in ("crl_refresh", "chain_refresh", "negative_ttl", "cache_max_bytes"):
            _positive(name, getattr(self, name))
        for name in ("leaf_interval", "max_stale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise _bad(name, str(value), "expected zero or more seconds")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise _bad(name, str(value), "expected more than zero")


def _bad(name: str, value: str, why: str) -> ConfigError:
    return ConfigError("ENDORSEMENT_SETTING_INVALID", f"endorsement setting {name} = {value!r}: {why}")
