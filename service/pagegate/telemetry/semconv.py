"""The one table of what pagegate's telemetry may say: span names, attributes, events, metrics.

Anything not listed here is refused (strict mode) or dropped, so a secret or page data cannot slip
into a span by accident. docs/telemetry.md is generated from this table. The `rpc.*`, `server.*`,
`client.*` and `error.*` names follow OpenTelemetry's semantic conventions (1.40: the RPC ones with
`rpc.system.name` and a fully qualified `rpc.method`); `pagegate.*` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

REFUSED: Final = "refused"
"""Name of the span event that marks a refusal; its trace is always kept, whatever the sampler said."""

RPC_SPAN_PREFIXES: Final = ("pagegate.v1.", "grpc.")
"""A span for a call is named by its full method, so these name spaces need no row each."""

SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FINE_SECONDS: Final = (1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 5e-2)


class Instrument(StrEnum):
    """Which kind of series a metric is; decides which verb feeds it."""

    COUNTER = "counter"
    """`count`: only ever grows."""
    UP_DOWN_COUNTER = "up-down counter"
    """`count` with +1 and -1."""
    HISTOGRAM = "histogram"
    """`record`: a distribution, with exemplars inside a sampled span."""
    GAUGE = "gauge"
    """`record`: the newest value stands."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """A key that spans, events or metrics may carry."""

    key: str
    type: str
    meaning: str


@dataclass(frozen=True, slots=True)
class SpanName:
    """One hop."""

    name: str
    kind: str
    meaning: str


@dataclass(frozen=True, slots=True)
class EventName:
    """Something that happened inside a span."""

    name: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Metric:
    """One series; `attributes` are the only keys it may be split by, so its cardinality is bounded."""

    name: str
    instrument: Instrument
    unit: str
    meaning: str
    attributes: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, in `unit`."""


_ATTRIBUTES: Final = (
    Attribute("rpc.system.name", "string", 'RPC system: "grpc".'),
    Attribute("rpc.method", "string", "Fully qualified method, for example `pagegate.v1.Attestation/Attest`."),
    Attribute("rpc.response.status_code", "string", "gRPC status by name, for example `PERMISSION_DENIED`."),
    Attribute("server.address", "string", "Host the client called."),
    Attribute("server.port", "int", "Port the client called."),
    Attribute("client.address", "string", "Address of the peer as the server saw it."),
    Attribute("error.type", "string", "Reason code of a pagegate error, else the class of the exception."),
    Attribute("pagegate.role", "string", '"server" or "client".'),
    Attribute("pagegate.reason", "string", "Stable upper-case reason code."),
    Attribute("pagegate.message", "string", "What the operator reads: what, value, limit, what to do."),
    Attribute("pagegate.outcome", "string", '"ok" or "refused".'),
    Attribute("pagegate.session.id", "string", "Session, hex. A name, not a credential."),
    Attribute("pagegate.transfer.id", "string", "Transfer, hex."),
    Attribute("pagegate.region", "string", "Region's name."),
    Attribute("pagegate.generation", "int", "Generation of the region that was read or committed."),
    Attribute("pagegate.direction", "string", '"in" (into this process\'s regions) or "out".'),
    Attribute("pagegate.mode", "string", '"page", "replace" or "delta".'),
    Attribute("pagegate.pages", "int", "Pages in this step."),
    Attribute("pagegate.bytes", "int", "Bytes of page contents in this step."),
    Attribute("pagegate.gpa", "int", "Guest-physical address a refusal is about."),
    Attribute("pagegate.batch.number", "int", "Number of the batch in its stream, from 0."),
    Attribute("pagegate.batches", "int", "Batches in this transfer."),
    Attribute("pagegate.source", "string", '"file", "stdin", "process" or "buffer".'),
    Attribute("pagegate.attempt", "int", "Which try this is, from 1."),
    Attribute("pagegate.suite", "string", "Cipher suite of the session."),
    Attribute("pagegate.evidence.type", "string", 'Kind of evidence, for example "sev-snp".'),
    Attribute("pagegate.evidence.product", "string", '"Milan", "Genoa" or "Turin".'),
    Attribute("pagegate.simulated", "bool", "True when the evidence is simulated: it proves nothing."),
    Attribute("pagegate.identity", "string", "Policy identity that matched the peer."),
    Attribute("pagegate.measurement", "string", "Launch measurement of the peer, hex."),
    Attribute("pagegate.tcb", "string", "Reported TCB of the peer, part by part."),
    Attribute("pagegate.platform.id", "string", "Chip identity, hex; empty when masked."),
    Attribute("pagegate.verdict", "string", '"accepted" or "rejected".'),
    Attribute("pagegate.failures", "string[]", "Reason codes of every failed check."),
    Attribute("pagegate.policy.digest", "string", "SHA-256 of the policy file in force, hex."),
    Attribute(
        "pagegate.endorsement.source", "string", "Where certificates came from: evidence, directory, cache, kds."
    ),
    Attribute("pagegate.endorsement.part", "string", '"leaf", "chain" or "crl".'),
    Attribute("pagegate.certificate", "string", '"ARK", "ASK", "ASVK", "VCEK", "VLEK" or "CRL".'),
    Attribute("pagegate.bridge.operation", "string", '"seal", "open", "derive", "mac" or "rekey".'),
    Attribute("pagegate.bridge.backend", "string", '"in-process" or "isolated".'),
    Attribute("pagegate.bridge.kernel", "string", "AES-GCM kernel chosen by CPUID."),
    Attribute("pagegate.bridge.memory", "string", 'How keys are held: "memfd_secret" or "mlock".'),
    Attribute("pagegate.bridge.libcrypto", "string", "Version of libcrypto the bridge uses."),
    Attribute("pagegate.reload", "string", 'What was loaded again: "policy", "tls" or "config".'),
    Attribute("pagegate.host.event", "string", 'Kind of kernel event, for example "rmp-violation".'),
    Attribute("pagegate.host.severity", "string", '"info", "warning" or "critical".'),
    Attribute("pagegate.host.origin", "string", '"log" (kernel log) or "trace" (tracefs).'),
    Attribute("pagegate.host.text", "string", "The kernel's line without its prefix."),
    Attribute("pagegate.host.uptime", "float", "Seconds since boot at which the kernel wrote the line."),
)

_SPANS: Final = (
    SpanName("pagegate.send", "internal", "The command `pagegate send`, from attestation to receipt."),
    SpanName("pagegate.client.attest", "internal", "Client's handshake, from hello to finished."),
    SpanName("pagegate.client.evidence", "internal", "Client asks its platform for a report."),
    SpanName("pagegate.client.appraise", "internal", "Client appraises the server's evidence."),
    SpanName("pagegate.client.send", "internal", "One transfer, from first page to receipt."),
    SpanName("pagegate.client.receive", "internal", "One read of a region."),
    SpanName("pagegate.server.evidence", "internal", "Server asks its platform for a report."),
    SpanName("pagegate.server.appraise", "internal", "Server appraises the client's evidence."),
    SpanName("pagegate.server.commit", "internal", "The new generation becomes visible."),
    SpanName("pagegate.appraise.endorsements", "internal", "Endorsements are gathered for an appraisal."),
    SpanName("pagegate.appraise.signature", "internal", "The report's signature is verified."),
    SpanName("pagegate.appraise.chain", "internal", "The certificate chain and revocation lists are verified."),
    SpanName("pagegate.appraise.policy", "internal", "Dates, revocation and claims are held against the policy."),
    SpanName("pagegate.bridge.seal", "internal", "The bridge seals a batch: timed in C, linked to its transfer."),
    SpanName(
        "pagegate.bridge.open", "internal", "The bridge opens a batch into staging: timed in C, linked to its transfer."
    ),
    SpanName("pagegate.host.event", "internal", "The kernel told of something about SEV-SNP; it has no duration."),
    SpanName("pagegate.reload", "internal", "Policy, certificate or options are loaded again."),
)

_EVENTS: Final = (
    EventName(REFUSED, "The gate said no; `pagegate.reason` says why. The whole trace is kept."),
    EventName("accepted", "An appraisal accepted its evidence."),
    EventName("retry", "A step is tried again; `pagegate.attempt` says which try."),
    EventName("resumed", "A transfer went on from where a broken stream left it."),
    EventName("rekeyed", "The session's keys were replaced."),
)

_METRICS: Final = (
    Metric(
        "pagegate.pages",
        Instrument.COUNTER,
        "{page}",
        "Pages that crossed, verified.",
        ("pagegate.direction", "pagegate.region"),
    ),
    Metric(
        "pagegate.bytes",
        Instrument.COUNTER,
        "By",
        "Bytes of page contents that crossed, verified.",
        ("pagegate.direction", "pagegate.region"),
    ),
    Metric(
        "pagegate.transfers",
        Instrument.COUNTER,
        "{transfer}",
        "Transfers that ended.",
        ("pagegate.direction", "pagegate.outcome"),
    ),
    Metric(
        "pagegate.refusals",
        Instrument.COUNTER,
        "{refusal}",
        "What the gate refused, by reason.",
        ("pagegate.reason", "pagegate.role"),
    ),
    Metric(
        "pagegate.sessions.live",
        Instrument.UP_DOWN_COUNTER,
        "{session}",
        "Attested sessions open now.",
        ("pagegate.role", "pagegate.simulated"),
    ),
    Metric(
        "pagegate.peers",
        Instrument.UP_DOWN_COUNTER,
        "{session}",
        "Open sessions by the peer's machine: its chip (the first 16 digits of its id) and reported TCB.",
        ("pagegate.evidence.product", "pagegate.identity", "pagegate.platform.id", "pagegate.tcb"),
    ),
    Metric(
        "pagegate.handshake.duration",
        Instrument.HISTOGRAM,
        "s",
        "A whole handshake.",
        ("pagegate.role", "pagegate.outcome"),
        SECONDS,
    ),
    Metric(
        "pagegate.appraisal.duration",
        Instrument.HISTOGRAM,
        "s",
        "One appraisal, endorsements included.",
        ("pagegate.evidence.type", "pagegate.verdict"),
        SECONDS,
    ),
    Metric(
        "pagegate.commit.duration",
        Instrument.HISTOGRAM,
        "s",
        "Commit of a generation.",
        ("pagegate.mode", "pagegate.region"),
        SECONDS,
    ),
    Metric(
        "pagegate.bridge.duration",
        Instrument.HISTOGRAM,
        "s",
        "A batch inside the bridge, timed in C: the first 4 of a stream, then each 32nd.",
        ("pagegate.bridge.operation",),
        FINE_SECONDS,
    ),
    Metric(
        "pagegate.endorsement.age",
        Instrument.GAUGE,
        "s",
        "Since the oldest cached part of its kind was fetched.",
        ("pagegate.endorsement.part",),
    ),
    Metric(
        "pagegate.endorsement.remaining",
        Instrument.GAUGE,
        "s",
        "Until the first cached part of its kind expires; negative once it has.",
        ("pagegate.endorsement.part",),
    ),
    Metric(
        "pagegate.own.remaining",
        Instrument.GAUGE,
        "s",
        "Until a certificate of this machine's own evidence, or the CRL, ends; negative once it has.",
        ("pagegate.certificate",),
    ),
    Metric("pagegate.ready", Instrument.GAUGE, "1", "1 while peers can believe this machine, else 0."),
    Metric(
        "rpc.server.call.duration",
        Instrument.HISTOGRAM,
        "s",
        "One call as the server saw it.",
        ("rpc.system.name", "rpc.method", "rpc.response.status_code"),
        SECONDS,
    ),
    Metric(
        "rpc.client.call.duration",
        Instrument.HISTOGRAM,
        "s",
        "One call as the client saw it.",
        ("rpc.system.name", "rpc.method", "rpc.response.status_code"),
        SECONDS,
    ),
    Metric(
        "pagegate.sessions.limit",
        Instrument.GAUGE,
        "{session}",
        "Most sessions that may be open (--max-sessions).",
    ),
    Metric("pagegate.handshakes.live", Instrument.GAUGE, "{handshake}", "Handshakes under way."),
    Metric(
        "pagegate.handshakes.limit",
        Instrument.GAUGE,
        "{handshake}",
        "Most handshakes that may be under way (--max-handshakes).",
    ),
    Metric("pagegate.streams.live", Instrument.GAUGE, "{stream}", "Calls being served."),
    Metric(
        "pagegate.streams.limit", Instrument.GAUGE, "{stream}", "Most calls that may be served at once (--max-streams)."
    ),
    Metric(
        "pagegate.flight",
        Instrument.GAUGE,
        "By",
        "Bytes in flight: batches taken from peers and not yet staged, and sealed and not yet taken by a reader.",
    ),
    Metric(
        "pagegate.flight.limit",
        Instrument.GAUGE,
        "By",
        "Most bytes that may be in flight (--max-bytes-in-flight).",
    ),
    Metric(
        "pagegate.region.generation",
        Instrument.GAUGE,
        "{generation}",
        "Committed generation; 0 before the first commit.",
        ("pagegate.region",),
    ),
    Metric(
        "pagegate.region.pages",
        Instrument.GAUGE,
        "{page}",
        "Size of a region.",
        ("pagegate.region",),
    ),
    Metric(
        "pagegate.region.staged",
        Instrument.GAUGE,
        "{page}",
        "Pages verified and waiting for their commit.",
        ("pagegate.region",),
    ),
    Metric(
        "pagegate.policy.generation",
        Instrument.GAUGE,
        "{generation}",
        "Policies that have been in force since the start, the present one included.",
    ),
    Metric(
        "pagegate.reload.ok",
        Instrument.GAUGE,
        "{flag}",
        "1 when the newest file is in force, 0 when it was refused and the former one stays.",
        ("pagegate.reload",),
    ),
    Metric(
        "pagegate.reload.time",
        Instrument.GAUGE,
        "s",
        "Unix time at which the one in force was loaded.",
        ("pagegate.reload",),
    ),
    Metric(
        "pagegate.reloads",
        Instrument.COUNTER,
        "{reload}",
        "Loaded again, or refused, since the start.",
        ("pagegate.reload", "pagegate.outcome"),
    ),
    Metric("pagegate.server.draining", Instrument.GAUGE, "{flag}", "1 while the server takes no new work."),
    Metric("pagegate.server.started", Instrument.GAUGE, "s", "Unix time at which the server started."),
    Metric(
        "pagegate.tls.expiry",
        Instrument.GAUGE,
        "s",
        "Unix time at which the server certificate in force expires; absent without TLS.",
    ),
    Metric(
        "pagegate.simulated.allowed",
        Instrument.GAUGE,
        "{flag}",
        "1 when simulated evidence is made or accepted: it proves nothing.",
    ),
    Metric(
        "pagegate.bridge.info",
        Instrument.GAUGE,
        "{flag}",
        "Always 1; its labels say how the bridge seals and where it keeps keys.",
        (
            "pagegate.bridge.backend",
            "pagegate.bridge.kernel",
            "pagegate.bridge.memory",
            "pagegate.bridge.libcrypto",
        ),
    ),
    Metric(
        "pagegate.bridge.replaced",
        Instrument.COUNTER,
        "{bridge}",
        "Bridge processes that have died and been replaced since the start.",
    ),
    Metric(
        "pagegate.host.events",
        Instrument.COUNTER,
        "{event}",
        "What the kernel told about SEV-SNP, RMP faults among it (--watch-host, pagegate watch).",
        ("pagegate.host.event", "pagegate.host.severity"),
    ),
    Metric(
        "pagegate.host.watched",
        Instrument.GAUGE,
        "{flag}",
        "1 when the kernel's log or trace events are watched, 0 when nothing of them can be seen.",
    ),
)


ATTRIBUTES: Final[Mapping[str, Attribute]] = MappingProxyType({row.key: row for row in _ATTRIBUTES})
SPANS: Final[Mapping[str, SpanName]] = MappingProxyType({row.name: row for row in _SPANS})
EVENTS: Final[Mapping[str, EventName]] = MappingProxyType({row.name: row for row in _EVENTS})
METRICS: Final[Mapping[str, Metric]] = MappingProxyType({row.name: row for row in _METRICS})


def rpc_attributes(full_method: str) -> dict[str, str]:
    """Attributes of a gRPC call's span; `full_method` as gRPC gives it ("/package.Service/Method")."""
    return {"rpc.system.name": "grpc", "rpc.method": full_method.removeprefix("/")}


def is_known_span(name: str) -> bool:
    """True for a listed hop and for a call named by its full method."""
    return name in SPANS or name.startswith(RPC_SPAN_PREFIXES)
