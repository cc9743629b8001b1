"""Watches what a running server's own trust leans on: its certificates, its revocation list, the endorsement cache.

Ages and remaining times go out as metrics; the operator is warned before the end; readiness says when no peer could
believe this machine any more; new endorsements (`pagegate rotate`), or a new revocation list, make every session attest
again.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pagegate.endorsements import Cache, EndorsementStatus, endorsement_status
from pagegate.endorsements.part import PartKind
from pagegate.errors import EvidenceError, PagegateError
from pagegate.evidence.model import Appraiser, Evidence, KeyKind, Verdict
from pagegate.evidence.own import expiries, hindrances, leaf_of
from pagegate.evidence.snp.report import REPORT_DATA_BYTES, SigningKey, parse_report
from pagegate.platforms.model import Platform
from pagegate.rpc.events import Observer, ServerEvent, ignore
from pagegate.server import Server
from pagegate.telemetry import NO_TELEMETRY, Tracing

_log = logging.getLogger("pagegate.trust")


class Upkeep:
    """Looks every so often, in a thread of its own: an appraisal may wait for the network."""

    def __init__(
        self,
        platform: Platform,
        appraiser: Callable[[], Appraiser],
        cache: Cache,
        telemetry: Tracing = NO_TELEMETRY,
        observer: Observer = ignore,
        *,
        warn_before: timedelta = timedelta(days=14),
        every_s: float = 60.0,
        notice_s: float = 1.0,
    ) -> None:
        """`appraiser` gives the one in force. Looks every `every_s` seconds, and within `notice_s` of a change of the
        cache's file."""
        self._platform = platform
        self._appraiser = appraiser
        self._cache = cache
        self._telemetry = telemetry
        self._observer = observer
        self._warn_before = warn_before
        self._every_s = every_s
        self._notice_s = notice_s
        self._evidence: Evidence | None = None
        self._leaf: bytes | None = None
        self._rows: frozenset[tuple[str, float]] = frozenset()
        self._lists: dict[str, float] = {}
        self._told: frozenset[str] = frozenset()
        self._asked = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, server: Server) -> None:
        """Begins to watch on behalf of `server`."""
        self._thread = threading.Thread(target=self._run, args=(server,), name="pagegate-upkeep", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Has new evidence made and looked at now: for SIGHUP."""
        self._asked.set()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Ends the watch; a look under way may go on in the background, it ends with the process."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def look(self, server: Server, *, anew: bool = False) -> None:
        """One look: metrics, own evidence (made anew when asked or when its endorsements changed), readiness."""
        status = endorsement_status(self._cache, datetime.now(UTC).timestamp())
        self._measure(status)
        self._notice_new_lists(server, status)
        rows = self._own_rows(status)
        try:
            if anew or self._evidence is None or rows != self._rows:
                self._evidence = self._platform.attest(secrets.token_bytes(REPORT_DATA_BYTES))
                rows = self._own_rows(status)
            verdict = self._appraiser().appraise(self._evidence, report_data=None, now=datetime.now(UTC))
        except PagegateError as error:
            self._tell({error.reason: f"no evidence of this machine: {error}"})
            self._ready(server, ready=False)
            return
        self._rows = rows
        self._judge(server, verdict)
        self._notice_rotation(server, verdict)

    def _run(self, server: Server) -> None:
        seen: object = None
        waited = self._every_s
        while not self._stopped.is_set():
            asked, stamp = self._asked.is_set(), _stamp(self._cache.path)
            if asked or waited >= self._every_s or stamp != seen:
                self._asked.clear()
                seen, waited = stamp, 0.0
                try:
                    self.look(server, anew=asked)
                except Exception:
                    # Whatever went wrong, the watch itself must not end unseen.
                    _log.exception("looking at this machine's own trust failed; trying again")
            self._stopped.wait(self._notice_s)
            waited += self._notice_s

    def _measure(self, status: EndorsementStatus) -> None:
        for kind in PartKind:
            parts = [part for part in status.parts if part.kind is kind]
            if parts:
                label = {"pagegate.endorsement.part": kind.value}
                self._telemetry.record("pagegate.endorsement.age", max(part.age for part in parts), label)
                self._telemetry.record("pagegate.endorsement.remaining", min(part.expires_in for part in parts), label)

    def _own_rows(self, status: EndorsementStatus) -> frozenset[tuple[str, float]]:
        """The cached leaves that may endorse this machine, with when they came."""
        if self._evidence is None:
            return frozenset()
        try:
            report = parse_report(self._evidence.report)
        except EvidenceError:
            return frozenset()
        own = KeyKind.VLEK if report.signing_key == SigningKey.VLEK else KeyKind.VCEK
        chip = report.chip_id.hex()
        return frozenset(
            (part.chip_id + part.tcb, part.fetched_at)
            for part in status.parts
            if part.kind is PartKind.LEAF and part.key_kind is own and chip.startswith(part.chip_id)
        )

    def _judge(self, server: Server, verdict: Verdict) -> None:
        now = datetime.now(UTC)
        remaining = {what: end - now for what, end in expiries(verdict).items()}
        for what, left in remaining.items():
            self._telemetry.record("pagegate.own.remaining", left.total_seconds(), {"pagegate.certificate": what})
        blocking = hindrances(verdict)
        said = {
            f"{what} {left.days}": f"{what} of this machine's own evidence ends in {left.days} days"
            for what, left in remaining.items()
            if timedelta() < left <= self._warn_before
        }
        for one in (*blocking, *verdict.warnings):
            text = f"{one.code} {one.field}: expected {one.expected}, found {one.found}. {one.hint}"
            said[f"{one.code} {one.field} {one in blocking}"] = text
        self._tell(said)
        self._ready(server, ready=not blocking)

    def _ready(self, server: Server, *, ready: bool) -> None:
        self._telemetry.record("pagegate.ready", float(ready))
        server.trusted(trusted=ready)

    def _tell(self, said: Mapping[str, str]) -> None:
        """Each thing once, when it is new; the keys tell things apart, for a message may hold a time."""
        for key, line in said.items():
            if key not in self._told:
                _log.warning("%s", line)
        if self._told and not said:
            _log.info("nothing is left to warn of")
        self._told = frozenset(said)

    def _notice_new_lists(self, server: Server, status: EndorsementStatus) -> None:
        """Open sessions were judged by the list of their handshake: a newer one may name their peers."""
        made = {f"{part.product} {part.key_kind}": part.made_at for part in status.parts if part.kind is PartKind.CRL}
        renewed = sorted(name for name, at in made.items() if self._lists.get(name, at) != at)
        self._lists = made
        if renewed:
            self._attest_again(server, f"a new revocation list of {', '.join(renewed)}", {"crl": ", ".join(renewed)})

    def _notice_rotation(self, server: Server, verdict: Verdict) -> None:
        leaf = leaf_of(verdict)
        former, self._leaf = self._leaf, leaf or self._leaf
        if leaf is None or former is None or leaf == former:
            return
        tcb = str(verdict.claims.details.get("reported_tcb", "")) if verdict.claims is not None else ""
        self._attest_again(server, "this machine has new endorsements", {"tcb": tcb})

    def _attest_again(self, server: Server, why: str, details: Mapping[str, str]) -> None:
        closed = server.attest_again()
        self._observer(ServerEvent("rotation", self._platform.name, {**details, "closed": closed}))
        _log.warning("%s; %d sessions must attest again", why, closed)


def _stamp(path: Path | None) -> tuple[tuple[int, int], ...]:
    """Changes when the cache's file or its write-ahead log does."""
    if path is None:
        return ()
    found = []
    for file in (path, Path(f"{path}-wal")):
        try:
            about = file.stat()
        except OSError:
            continue
        found.append((about.st_mtime_ns, about.st_size))
    return tuple(found)
