"""Where certificates and revocation lists come from: a directory, a cache on disk, AMD's KDS, in that order.

`build_source(EndorsementSettings(...))` gives the source an appraiser asks. Nothing that it returns is
trusted until the appraiser has verified it.
"""

from __future__ import annotations

from pagegate.endorsements.cache import Cache
from pagegate.endorsements.cached import CachedSource
from pagegate.endorsements.chain import SourceChain
from pagegate.endorsements.clock import Clock, SystemClock
from pagegate.endorsements.directory import DirectorySource
from pagegate.endorsements.kds import KdsClient, OnWait
from pagegate.endorsements.part import Part, chain_part, crl_part, leaf_part
from pagegate.endorsements.request import request_from_report, vcek_url
from pagegate.endorsements.settings import EndorsementSettings, Timeouts
from pagegate.endorsements.status import EndorsementStatus, PartStatus, endorsement_status
from pagegate.evidence.model import EndorsementSource

__all__ = [
    "Cache",
    "CachedSource",
    "EndorsementSettings",
    "EndorsementStatus",
    "Part",
    "PartStatus",
    "Timeouts",
    "build_cached_source",
    "build_source",
    "chain_part",
    "crl_part",
    "endorsement_status",
    "leaf_part",
    "request_from_report",
    "vcek_url",
]


def build_source(settings: EndorsementSettings, *, clock: Clock | None = None) -> EndorsementSource:
    """The sources that `settings` name, in order. Opens the cache, no connection.

    Raises ConfigError for a bad setting, EndorsementError ENDORSEMENT_CACHE_UNUSABLE.
    """
    clock = clock or SystemClock()
    cached = build_cached_source(settings, clock=clock)
    if settings.directory is None:
        return cached
    return SourceChain([DirectorySource(settings.directory, clock=clock), cached], clock=clock)


def build_cached_source(
    settings: EndorsementSettings,
    *,
    clock: Clock | None = None,
    on_wait: OnWait | None = None,
) -> CachedSource:
    """The cache with KDS behind it (without, when offline): for prewarming, status and upkeep.

    `on_wait` hears of each wait for KDS.
    """
    clock = clock or SystemClock()
    cache = Cache(settings.cache_path, max_bytes=settings.cache_max_bytes)
    kds = None if settings.offline else KdsClient(settings, cache, clock=clock, on_wait=on_wait)
    return CachedSource(settings, cache, kds, clock=clock)
