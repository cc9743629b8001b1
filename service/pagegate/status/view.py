"""The status as JSON for the page: bounded, and with nothing a browser would have to work out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Final

from pagegate.status.model import Refusal, RegionStatus, ServerStatus, SessionStatus, ThroughputPoint
from pagegate.telemetry.records import TraceRecord
from pagegate.telemetry.tree import human_time, trace_json

MAX_SESSIONS: Final = 200
MAX_REGIONS: Final = 200
MAX_REFUSALS: Final = 50
MAX_POINTS: Final = 300
MAX_TRACES: Final = 20
MAX_SPANS: Final = 200


def status_json(status: ServerStatus, traces: Sequence[TraceRecord]) -> dict[str, object]:
    """Times are seconds before `now` (positive in the past), so that a wrong browser clock does not matter."""
    return {
        "server": {
            "name": status.name,
            "version": status.version,
            "state": status.state.value,
            "uptime_s": _ago(status.now, status.started_at),
            "listening": list(status.listening),
            "platform": status.platform,
            "simulated": status.simulated,
            "policy": status.policy,
            "policy_digest": status.policy_digest,
            "policy_problem": status.policy_problem,
            "other_problems": list(status.other_problems),
            "bridge": status.bridge,
        },
        "simulated_sessions": sum(session.simulated for session in status.sessions),
        "sessions_live": len(status.sessions),
        "sessions_total": status.sessions_total,
        "sessions": [_session(status.now, session) for session in status.sessions[:MAX_SESSIONS]],
        "regions": [_region(status.now, region) for region in status.regions[:MAX_REGIONS]],
        "refusals_total": status.refusals_total,
        "refusals": [_refusal(status.now, refusal) for refusal in status.refusals[:MAX_REFUSALS]],
        "throughput": [_point(status.now, point) for point in status.throughput[-MAX_POINTS:]],
        "traces": [_trace(status.now, trace) for trace in traces[:MAX_TRACES]],
    }


def _session(now: datetime, session: SessionStatus) -> dict[str, object]:
    return {
        "id": session.id,
        "peer": session.peer_address,
        "identity": session.identity,
        "evidence": session.evidence_type,
        "product": session.product,
        "measurement": session.measurement,
        "platform_id": session.platform_id,
        "tcb": [{"part": part, "version": version} for part, version in session.tcb.items()],
        "simulated": session.simulated,
        "age_s": _ago(now, session.since),
        "expires_in_s": None if session.expires_at is None else -_ago(now, session.expires_at),
        "grants": [{"region": region, "mode": mode.value} for region, mode in session.grants.items()],
        "pages_in": session.pages_in,
        "pages_out": session.pages_out,
    }


def _region(now: datetime, region: RegionStatus) -> dict[str, object]:
    return {
        "name": region.name,
        "base_gpa": f"{region.base_gpa:#x}",
        "pages": region.pages,
        "generation": region.generation,
        "backing": region.backing,
        "committed_s": None if region.committed_at is None else _ago(now, region.committed_at),
        "staged_pages": region.staged_pages,
        "expected_pages": region.expected_pages,
    }


def _refusal(now: datetime, refusal: Refusal) -> dict[str, object]:
    return {
        "key": f"{refusal.at.timestamp():.6f} {refusal.reason} {refusal.peer_address}",
        "at": refusal.at.isoformat(timespec="seconds"),
        "ago_s": _ago(now, refusal.at),
        "reason": refusal.reason,
        "message": refusal.message,
        "peer": refusal.peer_address,
        "identity": refusal.identity,
        "session_id": refusal.session_id,
        "trace_id": refusal.trace_id,
        "failures": [asdict(failure) for failure in refusal.failures],
    }


def _point(now: datetime, point: ThroughputPoint) -> dict[str, object]:
    seconds = max(point.seconds, 1e-9)
    return {
        "ago_s": _ago(now, point.at),
        "in_bps": point.bytes_in * 8 / seconds,
        "out_bps": point.bytes_out * 8 / seconds,
    }


def _trace(now: datetime, trace: TraceRecord) -> dict[str, object]:
    data = trace_json(trace)
    spans = data.pop("spans")
    assert isinstance(spans, list)
    whole = max(1, trace.duration_ns)
    root = spans[0]["name"] if spans else ""
    return {
        "trace_id": trace.trace_id,
        "root": root,
        "duration": human_time(trace.duration_ns),
        "services": list(trace.services),
        "refusals": list(trace.refusals),
        "ago_s": round(max(0.0, now.timestamp() - trace.end_ns / 1e9), 3),
        "dropped_spans": trace.dropped + max(0, len(spans) - MAX_SPANS),
        "spans": [
            {
                "id": span["span_id"],
                "name": span["name"],
                "service": span["service"],
                "depth": span["depth"],
                "duration": human_time(span["duration_ns"]),
                "offset": span["start_ns"] / whole,
                "width": span["duration_ns"] / whole,
                "error": span["error"],
                "message": span["message"],
                "attributes": span["attributes"],
            }
            for span in spans[:MAX_SPANS]
        ],
    }


def _ago(now: datetime, then: datetime) -> float:
    """Seconds from `then` to `now`; negative for a time to come."""
    return round((now - then).total_seconds(), 3)
