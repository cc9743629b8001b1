"""Sources in order: each is asked only for what those before it lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from pagegate.endorsements.clock import Clock, SystemClock
from pagegate.endorsements.content import Content, parse_crl, parse_leaf
from pagegate.errors import EndorsementError
from pagegate.evidence.model import EndorsementRequest, Endorsements, EndorsementSource, KeyKind


class SourceChain:
    """The first source that has a part gives it; an expired leaf or CRL is kept only if no later source has better."""

    def __init__(self, sources: Sequence[EndorsementSource], *, clock: Clock | None = None) -> None:
        self._sources = tuple(sources)
        self._clock: Clock = clock or SystemClock()

    def find(self, request: EndorsementRequest) -> Endorsements:
        """Merges what the sources have; raises EndorsementError when a needed leaf or chain is in none of them."""
        found = Endorsements(leaf=None, chain=(), crl=None, source="")
        errors: list[EndorsementError] = []
        for source in self._sources:
            wants = replace(
                request,
                need_leaf=request.need_leaf and not self._current_leaf(found),
                need_chain=request.need_chain and not found.chain,
            )
            if self._complete(found, wants):
                break
            try:
                found = self._merge(found, source.find(wants))
            except EndorsementError as error:
                errors.append(error)
        if (request.need_leaf and found.leaf is None) or (request.need_chain and not found.chain):
            raise _not_had(request, found, errors)
        return replace(found, problems=(*found.problems, *map(str, errors)))

    def _complete(self, found: Endorsements, wants: EndorsementRequest) -> bool:
        return not wants.need_leaf and not wants.need_chain and self._current_crl(found, wants)

    def _merge(self, first: Endorsements, second: Endorsements) -> Endorsements:
        leaf = first.leaf if self._current_leaf(first) else second.leaf or first.leaf
        keeps_crl = first.crl is not None and (second.crl is None or _made_at(first.crl) >= _made_at(second.crl))
        used = [s.source for s in (first, second) if s.source and (s.leaf or s.chain or s.crl)]
        return Endorsements(
            leaf=leaf,
            chain=first.chain or second.chain,
            crl=first.crl if keeps_crl else second.crl,
            source=", ".join(used),
            fetched_at=first.fetched_at if keeps_crl else second.fetched_at,
            problems=(*first.problems, *second.problems),
        )

    def _current_leaf(self, found: Endorsements) -> bool:
        return found.leaf is not None and self._in_force(parse_leaf(found.leaf))

    def _current_crl(self, found: Endorsements, request: EndorsementRequest) -> bool:
        return found.crl is not None and self._in_force(parse_crl(found.crl, request.kind))

    def _in_force(self, content: Content) -> bool:
        return datetime.fromtimestamp(self._clock.now(), UTC) < content.expires_at


def _made_at(crl: bytes) -> datetime:
    return parse_crl(crl, KeyKind.VCEK).made_at


def _not_had(request: EndorsementRequest, found: Endorsements, errors: list[EndorsementError]) -> EndorsementError:
    last = errors[-1] if errors else None
    missing = [
        what
        for what, lacks in (("leaf", request.need_leaf and found.leaf is None), ("chain", not found.chain))
        if lacks
    ]
    why = [*(e.message for e in errors), *found.problems] or ["no source is configured"]
    return EndorsementError(
        last.reason if last else "ENDORSEMENT_NOT_FOUND",
        f"{request.product} {request.kind.upper()}: no {' and no '.join(missing)}: {'; '.join(why)}",
        retry_after=last.retry_after if last else None,
    )
