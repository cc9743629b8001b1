"""AMD's Key Distribution Service over HTTP: patient, polite and bounded."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from pagegate.endorsements.cache import Cache
from pagegate.endorsements.clock import Clock, SystemClock
from pagegate.endorsements.content import MAX_BODY, Content, parse
from pagegate.endorsements.http import Answer, HttpClient, TransportError
from pagegate.endorsements.pace import MAX_HOLD
from pagegate.endorsements.part import Part, PartKind
from pagegate.endorsements.request import part_url
from pagegate.endorsements.settings import EndorsementSettings
from pagegate.errors import EndorsementError

BACKOFF_BASE = 1.0
BACKOFF_CAP = 30.0
"""Seconds; the pause before try n is drawn from 0 to min(cap, base * 2^n): full jitter."""
_SLEEP_SLACK = 0.1
"""Seconds by which a sleep may end early on the wall clock."""

OnWait = Callable[[Part, float, str], None]
"""Hears of each wait: part, seconds, reason."""

_log = logging.getLogger(__name__)


class KdsClient:
    """Fetches parts from KDS or a mirror. Safe for use by several threads."""

    def __init__(
        self,
        settings: EndorsementSettings,
        cache: Cache,
        *,
        clock: Clock | None = None,
        draw: Callable[[], float] | None = None,
        on_wait: OnWait | None = None,
    ) -> None:
        """`cache` keeps the queue that all processes of the machine share; `draw` gives 0..1 for the jitter."""
        self._settings = settings
        self._turns = cache
        self._clock: Clock = clock or SystemClock()
        self._draw = draw or random.SystemRandom().random
        self._on_wait = on_wait
        self._http = HttpClient(settings.timeouts, proxy=settings.proxy, ca_file=settings.ca_file)

    @property
    def name(self) -> str:
        """For the operator: where parts come from."""
        return f"kds {self._settings.kds_url}"

    def fetch(self, part: Part) -> Content:
        """Fetches and parses `part`, queueing and retrying up to timeouts.total (timeouts.crl; a day when patient).

        Raises EndorsementError: ENDORSEMENT_NOT_FOUND, ENDORSEMENT_SERVICE_BUSY (with `retry_after`),
        ENDORSEMENT_SERVICE_UNREACHABLE, ENDORSEMENT_SERVICE_REFUSED, ENDORSEMENT_CONTENT_INVALID,
        ENDORSEMENT_CERTIFICATE_MISMATCH, ENDORSEMENT_VLEK_NOT_SERVED.
        """
        url = part_url(part, self._settings.kds_url)
        limits = self._settings.timeouts
        total = limits.total if part.kind is not PartKind.CRL else min(limits.crl, limits.total)
        deadline = self._clock.monotonic() + total
        patience = self._clock.monotonic() + MAX_HOLD
        attempt = 0
        while True:
            waited = self._await_turn(part, url, patience if self._settings.patient else deadline)
            if self._settings.patient:
                deadline += waited
            remaining = deadline - self._clock.monotonic()
            failure = self._try(part, url, remaining)
            if isinstance(failure, Content):
                return failure
            if failure.retry_after is None:
                pause = self._draw() * min(BACKOFF_CAP, BACKOFF_BASE * 2**attempt)
                if pause >= deadline - self._clock.monotonic():
                    raise _exhausted(failure, attempt + 1, total)
                self._wait(part, pause, f"try {attempt + 2} after: {failure.message}")
            attempt += 1

    def close(self) -> None:
        """Closes idle connections."""
        self._http.close()

    def _await_turn(self, part: Part, url: str, deadline: float) -> float:
        """Sleeps until it is this request's turn; returns the seconds it took."""
        queue, interval = self._queue(part)
        waited = 0.0
        while True:
            now = self._clock.now()
            latest = now + deadline - self._clock.monotonic()
            at = self._turns.take_turn(queue, now=now, interval=interval, latest=latest)
            if at is None:
                turns = self._turns.turns(queue)
                raise _busy(part, url, max(turns.next_at, turns.held_until) - now, self._settings)
            if at > now:
                self._wait(part, at - now, "waiting for a turn at KDS, which rations requests")
                waited += at - now
            if not self._turns.turns(queue).is_held(self._clock.now() + _SLEEP_SLACK):
                return waited

    def _try(self, part: Part, url: str, seconds: float) -> Content | EndorsementError:
        """One request. Returns what came or the failure to retry; raises what no retry can mend."""
        try:
            answer = self._http.get(url, limit=MAX_BODY[part.kind], seconds=max(seconds, 0.001))
        except TransportError as error:
            return EndorsementError("ENDORSEMENT_SERVICE_UNREACHABLE", f"{part}: {url}: {error}")
        if answer.status == 200:
            try:
                return parse(part, answer.body)
            except EndorsementError as error:
                failure = EndorsementError(error.reason, f"{url} answered with the wrong content: {error.message}")
                if error.reason != "ENDORSEMENT_CONTENT_INVALID":
                    raise failure from error
                return failure  # a proxy's error page or a cut-off file: the next try may be whole
        return self._failure(part, url, answer)

    def _failure(self, part: Part, url: str, answer: Answer) -> EndorsementError:
        status = answer.status
        pause = retry_after_seconds(answer.headers.get("retry-after"), self._clock.now())
        if status in (429, 503) and pause:
            self._turns.hold(self._queue(part)[0], self._clock.now() + min(pause, MAX_HOLD))
            return EndorsementError("ENDORSEMENT_SERVICE_BUSY", f"{url}: HTTP {status}", retry_after=pause)
        if status in (408, 425, 429) or status >= 500:
            reason = "ENDORSEMENT_SERVICE_BUSY" if status == 429 else "ENDORSEMENT_SERVICE_UNREACHABLE"
            return EndorsementError(reason, f"{part}: {url}: HTTP {status}")
        if status in (404, 410):
            hint = (
                "; check product, chip id and TCB: KDS has certificates only for levels that AMD released"
                if part.kind is PartKind.LEAF
                else "; check the product and the base URL"
            )
            raise EndorsementError("ENDORSEMENT_NOT_FOUND", f"{part}: {url}: HTTP {status}{hint}")
        raise EndorsementError(
            "ENDORSEMENT_SERVICE_REFUSED", f"{part}: {url}: HTTP {status}; check base URL, proxy and its credentials"
        )

    def _queue(self, part: Part) -> tuple[str, float]:
        """KDS rations leaves; chains and CRLs have their own queue without a pause."""
        if part.kind is PartKind.LEAF:
            return f"{self._settings.kds_url} leaf", self._settings.leaf_interval
        return f"{self._settings.kds_url} other", 0.0

    def _wait(self, part: Part, seconds: float, why: str) -> None:
        _log.info("%s: %.1f s: %s", part, seconds, why)
        if self._on_wait is not None:
            self._on_wait(part, seconds, why)
        self._clock.sleep(seconds)


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """Reads Retry-After (RFC 9110, 10.2.3): seconds or an HTTP date. None when absent or not understood."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit() and len(value) <= 9:
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.fromtimestamp(now, UTC)).total_seconds())


def _busy(part: Part, url: str, seconds: float, settings: EndorsementSettings) -> EndorsementError:
    how = (
        f"the limit is {MAX_HOLD:g} s"
        if settings.patient
        else f"timeouts.total is {settings.timeouts.total:g} s; set "
        "patient (fetch --wait) to wait, or prewarm the cache"
    )
    return EndorsementError(
        "ENDORSEMENT_SERVICE_BUSY",
        f"{part}: {url}: the next turn at KDS is in {seconds:.0f} s; {how}",
        retry_after=seconds,
    )


def _exhausted(failure: EndorsementError, attempts: int, total: float) -> EndorsementError:
    return EndorsementError(failure.reason, f"{failure.message} (gave up after {attempts} tries in {total:g} s)")
