"""The source that remembers: cache first, KDS behind it, one fetch in flight for the same thing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256

from pagegate.endorsements.cache import Cache, Stored
from pagegate.endorsements.clock import Clock, SystemClock
from pagegate.endorsements.content import (
    Content,
    check_crl_link,
    check_leaf_link,
    parse,
    split_certificates,
)
from pagegate.endorsements.kds import KdsClient
from pagegate.endorsements.part import Part, PartKind, chain_part, crl_part, leaf_part
from pagegate.endorsements.request import vlek_not_served
from pagegate.endorsements.settings import EndorsementSettings
from pagegate.errors import EndorsementError
from pagegate.evidence.model import EndorsementRequest, Endorsements, KeyKind
from pagegate.evidence.snp.chain import SIMULATED_PREFIX

_FAILURE_TTL = {PartKind.LEAF: 5.0, PartKind.CHAIN: 5.0, PartKind.CRL: 60.0}
"""Seconds a failed fetch is remembered, so that those who waited for it do not each try again in turn.
Longer for a CRL: an appraisal that can do without it must not wait for KDS again and again."""
_REFRESH_TTL = 60.0
"""Seconds between two tries to renew a part that can still be served."""
_LOCK_POLL = 0.1

_log = logging.getLogger(__name__)


class CachedSource:
    """Endorsements from the cache, and from KDS when the cache lacks them. Safe for use by several threads."""

    def __init__(
        self, settings: EndorsementSettings, cache: Cache, kds: KdsClient | None, *, clock: Clock | None = None
    ) -> None:
        """`kds` None is offline: the cache is all there is, whatever its age."""
        self._settings = settings
        self._cache = cache
        self._kds = kds
        self._clock: Clock = clock or SystemClock()
        self._flights: dict[str, Future[Stored]] = {}
        self._refreshers: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()

    @property
    def cache(self) -> Cache:
        """The cache, for status and upkeep."""
        return self._cache

    def find(self, request: EndorsementRequest) -> Endorsements:
        """Returns the leaf (when needed), chain and CRL; raises EndorsementError when one needed is not to be had."""
        problems: list[str] = []
        leaf = self._wanted(request.need_leaf, lambda: leaf_part(request), problems) if request.need_leaf else None
        chain = self._wanted(request.need_chain, lambda: chain_part(request.product, request.kind), problems)
        crl = self._wanted(False, lambda: crl_part(request.product, request.kind), problems)
        found = [stored for stored in (leaf, chain, crl) if stored]
        return Endorsements(
            leaf=leaf.body if leaf else None,
            chain=tuple(split_certificates(chain.body)) if chain else (),
            crl=crl.body if crl else None,
            source=", ".join(dict.fromkeys(stored.source for stored in found)) or "cache",
            fetched_at=datetime.fromtimestamp(crl.fetched_at, UTC) if crl else None,
            problems=tuple(problems),
        )

    def get(self, part: Part, problems: list[str] | None = None) -> Stored:
        """Returns one part by the rules of freshness; notes in `problems` why it is an old one.

        Raises EndorsementError when it is not to be had.
        """
        now = self._clock.now()
        stored = self._cache.get(part, now)
        if stored is None:
            return self._load(part)
        if self._kds is None or self.fresh(stored, now) or not _served_by_kds(part):
            return stored
        if self._servable(stored, now):
            self._refresh_behind(part, now)
            return stored
        try:
            return self._load(part)
        except EndorsementError as error:
            if problems is not None:
                problems.append(f"{part}: serving the old copy: {error.message}")
            return stored

    def prewarm(self, parts: Iterable[Part]) -> Iterator[tuple[Part, Stored | EndorsementError]]:
        """Makes the cache have each of `parts`, asking anew for what was absent or needs renewal; yields results."""
        for part in parts:
            now = self._clock.now()
            stored = self._cache.get(part, now)
            if stored is None or not self.fresh(stored, now):
                try:
                    self._cache.forget_absent(part)
                    stored = self._load(part)
                except EndorsementError as error:
                    yield part, error
                    continue
            yield part, stored

    def fresh(self, stored: Stored, now: float) -> bool:
        """Needs no renewal. A leaf never changes, so only its expiry counts."""
        if now >= stored.expires_at or stored.fetched_at > now + 3600:
            return False
        return now < stored.fetched_at + self._refresh_age(stored)

    def join(self, timeout: float | None = None) -> None:
        """Waits for the renewals that run behind."""
        with self._lock:
            threads = list(self._refreshers.values())
        for thread in threads:
            thread.join(timeout)

    def close(self) -> None:
        """Closes the cache and idle connections; renewals under way end by themselves."""
        self.join(0.5)
        if self._kds:
            self._kds.close()
        self._cache.close()

    def _refresh_age(self, stored: Stored) -> float:
        match stored.part.kind:
            case PartKind.LEAF:
                return float("inf")
            case PartKind.CHAIN:
                return self._settings.chain_refresh
            case PartKind.CRL:
                return self._settings.crl_refresh

    def _servable(self, stored: Stored, now: float) -> bool:
        """Not fresh, but good enough to answer at once."""
        return (
            now < stored.expires_at and now < stored.fetched_at + self._refresh_age(stored) + self._settings.max_stale
        )

    def _wanted(self, needed: bool, name: Callable[[], Part], problems: list[str]) -> Stored | None:
        try:
            return self.get(name(), problems)
        except EndorsementError as error:
            if needed:
                raise
            problems.append(str(error))
            return None

    def _load(self, part: Part) -> Stored:
        """Fetches `part`, or joins the thread of this process that does."""
        with self._lock:
            flight = self._flights.get(part.key)
            leads = flight is None
            if flight is None:
                flight = self._flights[part.key] = Future()
        if not leads:
            return flight.result()
        try:
            flight.set_result(self._load_alone(part))
        except BaseException as error:  # handed to all who wait, this thread included
            flight.set_exception(error)
        finally:
            with self._lock:
                del self._flights[part.key]
        return flight.result()

    def _load_alone(self, part: Part) -> Stored:
        """Fetches `part`, or takes it from the process of this machine that does."""
        if self._kds is None or not _served_by_kds(part):
            raise _not_cached(part, self._cache)
        with self._claimed(part):
            now = self._clock.now()
            stored = self._cache.get(part, now)
            if stored and self.fresh(stored, now):
                return stored
            if error := self._cache.absent(part, now):
                raise error
            try:
                content = self._kds.fetch(part)
                self._check(content)
            except EndorsementError as error:
                self._remember(part, error)
                raise
            return self._cache.put(content, source=self._kds.name, now=self._clock.now())

    def _check(self, content: Content) -> None:
        """What is stored hangs together: leaf and CRL are signed within the stored chain, the root is one allowed."""
        part = content.part
        if part.kind is PartKind.CHAIN:
            check_root(content, self._settings.roots)
            return
        of_chain = chain_part(part.product, part.key_kind)
        chain = parse(of_chain, self.get(of_chain).body)
        (check_leaf_link if part.kind is PartKind.LEAF else check_crl_link)(content, chain)

    def _remember(self, part: Part, error: EndorsementError) -> None:
        seconds = _FAILURE_TTL[part.kind]
        if error.reason == "ENDORSEMENT_NOT_FOUND":
            seconds = self._settings.negative_ttl
        self._cache.put_absent(part, error, now=self._clock.now(), seconds=seconds)

    def _refresh_behind(self, part: Part, now: float) -> None:
        with self._lock:
            if part.key in self._refreshers or self._cache.absent(part, now):
                return
            thread = threading.Thread(target=self._refresh, args=(part,), name="pagegate-endorse", daemon=True)
            thread.start()
            self._refreshers[part.key] = thread

    def _refresh(self, part: Part) -> None:
        try:
            self._load(part)
        except EndorsementError as error:
            _log.warning("%s: cannot renew: %s", part, error)
            try:
                self._cache.put_absent(part, error, now=self._clock.now(), seconds=_REFRESH_TTL)
            except EndorsementError as unusable:  # closed meanwhile, or the disk is full
                _log.warning("%s", unusable)
        finally:
            with self._lock:
                self._refreshers.pop(part.key, None)

    @contextmanager
    def _claimed(self, part: Part) -> Iterator[None]:
        deadline = self._clock.monotonic() + self._settings.timeouts.total
        while (handle := self._cache.try_lock(part)) is None:
            if self._clock.monotonic() >= deadline and not self._settings.patient:
                raise EndorsementError(
                    "ENDORSEMENT_SERVICE_BUSY",
                    f"{part}: another process has been fetching it for {self._settings.timeouts.total:g} s",
                    retry_after=self._settings.timeouts.total,
                )
            self._clock.sleep(_LOCK_POLL)
        try:
            yield
        finally:
            self._cache.unlock(handle)


def check_root(chain: Content, roots: frozenset[str]) -> None:
    """The chain's ARK is one of `roots` (SHA-256, hex), if any are named; a SIMULATED one must be."""
    ark = chain.certificates[1]
    must_be_named = bool(roots) or ark.subject_name.startswith(SIMULATED_PREFIX)
    if must_be_named and (digest := sha256(ark.raw).hexdigest()) not in roots:
        raise EndorsementError(
            "ENDORSEMENT_ROOT_UNKNOWN",
            f"{chain.part}: its root has SHA-256 {digest}, which is not among the {len(roots)} allowed",
        )


def _served_by_kds(part: Part) -> bool:
    return not (part.kind is PartKind.LEAF and part.key_kind is KeyKind.VLEK)


def _not_cached(part: Part, cache: Cache) -> EndorsementError:
    if not _served_by_kds(part):
        return vlek_not_served(part)
    return EndorsementError(
        "ENDORSEMENT_OFFLINE",
        f"{part}: not in the cache {cache.path or '(memory)'}, and offline; on a machine with a network run "
        "`pagegate endorsements fetch` and `export`, then `pagegate endorsements import` here",
    )
