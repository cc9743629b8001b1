"""A verdict as plain data, and as text a human reads at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from pagegate.evidence.model import Failure, Verdict


def verdict_to_dict(verdict: Verdict) -> dict[str, object]:
    """Plain JSON values; the names are stable."""
    claims = verdict.claims
    return {
        "accepted": verdict.accepted,
        "simulated": verdict.simulated,
        "identity": verdict.identity,
        "grants": {region: str(mode) for region, mode in verdict.grants.items()},
        "failures": [asdict(failure) for failure in verdict.failures],
        "warnings": [asdict(warning) for warning in verdict.warnings],
        "claims": None
        if claims is None
        else {
            "type": str(claims.type),
            "measurement": claims.measurement.hex(),
            "host_data": claims.host_data.hex(),
            "report_data": claims.report_data.hex(),
            "platform_id": claims.platform_id,
            "details": dict(claims.details),
        },
        "appraised_at": verdict.appraised_at.isoformat() if verdict.appraised_at is not None else None,
        "policy_digest": verdict.policy_digest or None,
    }


def render_verdict(verdict: Verdict) -> str:
    """A few lines for a terminal: the outcome, what was found, then every failure and warning."""
    return "\n".join(_lines(verdict))


def _lines(verdict: Verdict) -> Iterator[str]:
    count = len(verdict.failures)
    yield "ACCEPTED" if verdict.accepted else f"REJECTED: {count} check{'s' if count != 1 else ''} failed"
    if verdict.simulated:
        yield "SIMULATED: the root is a simulated platform's. This evidence proves nothing."
    if verdict.identity is not None:
        granted = ", ".join(f"{region} {mode}" for region, mode in verdict.grants.items())
        yield f"  identity     {verdict.identity}; may: {granted or 'nothing'}"
    if verdict.claims is not None:
        details = verdict.claims.details
        yield f"  product      {details.get('product')}, report version {details.get('version')}"
        yield f"  measurement  {verdict.claims.measurement.hex()}"
        yield f"  chip         {verdict.claims.platform_id or 'not told'}"
    else:
        yield "  No claim of this evidence is verified."
    yield from _listed("failed", verdict.failures)
    yield from _listed("warning", verdict.warnings)


def _listed(what: str, failures: Sequence[Failure]) -> Iterator[str]:
    for failure in failures:
        yield ""
        yield f"  {what}: {failure.code}  {failure.field}"
        yield f"    expected  {failure.expected}"
        yield f"    found     {failure.found}"
        yield f"    source    {failure.source}"
        if failure.hint:
            yield f"    hint      {failure.hint}"
