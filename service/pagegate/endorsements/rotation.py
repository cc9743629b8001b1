"""New endorsements of this machine after a firmware or TCB update: found, checked against its own report, swapped in.

Nothing touches the cache before everything has been checked, and then everything changes in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pagegate.endorsements.cache import Cache
from pagegate.endorsements.cached import CachedSource, check_root
from pagegate.endorsements.chain import SourceChain
from pagegate.endorsements.clock import Clock, SystemClock
from pagegate.endorsements.content import Content, check_crl_link, check_leaf_link, parse
from pagegate.endorsements.directory import DirectorySource, best, collect
from pagegate.endorsements.kds import KdsClient, OnWait
from pagegate.endorsements.part import Part, PartKind, chain_part, crl_part, leaf_part
from pagegate.endorsements.request import request_from_report
from pagegate.endorsements.settings import EndorsementSettings
from pagegate.errors import EndorsementError
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.model import EndorsementRequest, Endorsements, Evidence, Failure, KeyKind, Verdict
from pagegate.evidence.own import hindrances
from pagegate.evidence.policy import Policy
from pagegate.evidence.snp.anchors import TrustAnchor, amd_certificates


@dataclass(frozen=True, slots=True)
class Rotation:
    """What would enter the cache, and what would leave it."""

    leaf: Content
    others: tuple[Content, ...]
    """The chain, and the CRL if one was to be had."""
    outdated: tuple[Part, ...]
    """Cached VCEKs of this chip for other TCBs."""
    known: bool
    """True when the cache has this very leaf already."""
    verdict: Verdict
    """Of this machine's report with these endorsements alone."""
    source: str
    problems: tuple[str, ...]

    @property
    def hindrances(self) -> tuple[Failure, ...]:
        """Why these endorsements must not be put in force; empty when they may."""
        return hindrances(self.verdict)

    @property
    def changes(self) -> bool:
        """False when the cache already has this leaf and no outdated one."""
        return not self.known or bool(self.outdated)

    def put_in_force(self, cache: Cache, now: float) -> None:
        """Swaps everything in one transaction. Raises EndorsementError ENDORSEMENT_ROTATION_REFUSED, cache errors."""
        if self.hindrances:
            raise EndorsementError(
                "ENDORSEMENT_ROTATION_REFUSED",
                f"{self.leaf.part} does not endorse this machine's report: "
                + "; ".join(f"{one.code} {one.field}" for one in self.hindrances),
            )
        cache.swap((self.leaf, *self.others), self.outdated, source=self.source, now=now)


@dataclass(frozen=True, slots=True)
class _Only:
    """A source of these parts and no others."""

    endorsements: Endorsements

    def find(self, request: EndorsementRequest) -> Endorsements:
        return self.endorsements


def plan_rotation(
    evidence: Evidence,
    settings: EndorsementSettings,
    cache: Cache,
    *,
    anchors: Sequence[TrustAnchor],
    policy: Policy | None = None,
    allow_simulated: bool = False,
    product: str | None = None,
    clock: Clock | None = None,
    on_wait: OnWait | None = None,
) -> Rotation:
    """Finds the endorsements for `evidence`, this machine's own and just made, and holds them against its report.

    Directory and KDS come first; what they lack (a VLEK, or all when offline) comes from the evidence. `product` names
    that of a version 2 report. Raises EndorsementError when leaf or chain are not to be had or do not hang together.
    """
    clock = clock or SystemClock()
    request = request_from_report(evidence.report, product)
    wanted = leaf_part(request)
    found, problems = _ask(request, settings, cache, clock, on_wait)
    blobs = [found.leaf, *found.chain, *evidence.certificates, *amd_certificates()]
    files = [(f"{request.kind} endorsement", blob) for blob in (*blobs, found.crl) if blob is not None]
    contents, now = collect(files).contents, datetime.fromtimestamp(clock.now(), UTC)
    leaf = best(contents, now).get(wanted)
    if leaf is None:
        raise _not_had(str(wanted), problems)
    linked = (one for one in contents if one.part.kind is PartKind.CHAIN and _holds(check_leaf_link, leaf, one))
    chain = best(linked, now).get(chain_part(request.product, request.kind))
    if chain is None:
        raise _not_had(f"a chain that signed {wanted}", problems)
    check_root(chain, settings.roots)
    lists = (one for one in contents if one.part.kind is PartKind.CRL and _holds(check_crl_link, one, chain))
    crl = best(lists, now).get(crl_part(request.product, request.kind))
    alone = Endorsements(
        leaf.body, tuple(one.raw for one in chain.certificates), None if crl is None else crl.body, "rotation"
    )
    appraiser = EvidenceAppraiser(policy, anchors=anchors, endorsements=_Only(alone), allow_simulated=allow_simulated)
    verdict = appraiser.appraise(Evidence(evidence.type, evidence.report), report_data=None, now=now)
    held = cache.get(wanted, clock.now())
    return Rotation(
        leaf=leaf,
        others=(chain,) if crl is None else (chain, crl),
        outdated=_outdated(wanted, cache),
        known=held is not None and held.body == leaf.body,
        verdict=verdict,
        source=found.source if found.leaf == leaf.body else "evidence",
        problems=tuple(problems),
    )


def _holds(link: Callable[[Content, Content], None], signed: Content, chain: Content) -> bool:
    try:
        link(signed, chain)
    except EndorsementError:
        return False
    return True


def _not_had(what: str, problems: Sequence[str]) -> EndorsementError:
    why = "; ".join(problems) or "no source has it, and the evidence did not bring it"
    return EndorsementError("ENDORSEMENT_NOT_FOUND", f"{what}: {why}")


def _ask(
    request: EndorsementRequest, settings: EndorsementSettings, cache: Cache, clock: Clock, on_wait: OnWait | None
) -> tuple[Endorsements, list[str]]:
    """What directory and KDS have. KDS is asked anew but for a leaf that the cache has: leaves are rationed."""
    staging = Cache(None, max_bytes=settings.cache_max_bytes)
    part, now = leaf_part(request), clock.now()
    held = cache.get(part, now)
    if held is not None and now < held.expires_at:
        staging.put(parse(part, held.body), source=held.source, now=now, fetched_at=held.fetched_at)
    kds = None if settings.offline else KdsClient(settings, cache, clock=clock, on_wait=on_wait)
    online = CachedSource(settings, staging, kds, clock=clock)
    nearby = [] if settings.directory is None else [DirectorySource(settings.directory, clock=clock)]
    source = SourceChain([*nearby, online], clock=clock)
    problems: list[str] = []
    try:
        try:
            found = source.find(request)
        except EndorsementError as error:
            problems.append(error.message)
            found = source.find(replace(request, need_leaf=False, need_chain=False))
    finally:
        online.close()
    return found, [*problems, *found.problems]


def _outdated(current: Part, cache: Cache) -> tuple[Part, ...]:
    """A VLEK is not this machine's alone: other hosts of its provider may still run the former TCB."""
    if current.key_kind is KeyKind.VLEK:
        return ()
    return tuple(
        stored.part
        for stored in cache.stored()
        if stored.part.kind is PartKind.LEAF and stored.part.hwid == current.hwid and stored.part != current
    )
