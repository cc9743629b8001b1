"""The server's side of Attest as a state machine: bytes in, bytes out, no sockets (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.duration_pb2 import Duration

import enclave_bridge as eb
from pagegate.errors import HandshakeError
from pagegate.evidence.model import AccessMode, Appraiser, Verdict
from pagegate.handshake import wire
from pagegate.handshake.appraise import appraise
from pagegate.handshake.bridge_errors import handshake_faults
from pagegate.handshake.model import NONCE_SIZE, SESSION_ID_SIZE, SUITES_DEFAULT, Established, GrantedRegion, Limits
from pagegate.platforms.model import Platform
from pagegate.v1 import attestation_pb2 as pb


class Regions(Protocol):
    """What the handshake asks of the server's regions."""

    def grant(self, wanted: Mapping[str, AccessMode], verdict: Verdict) -> Mapping[str, GrantedRegion]:
        """All regions wanted, as policy allows them. Raises TransferError REGION_NOT_GRANTED or REGION_UNKNOWN."""
        ...


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server brings to every handshake."""

    limits: Limits = Limits()
    suites: Sequence[eb.Suite] = SUITES_DEFAULT
    tls_binding: bytes = b""
    """SHA-256 of this server's certificate SPKI when TLS is on, else empty."""
    tls_former: Sequence[bytes] = ()
    """The same of certificates that were replaced a short time ago: connections from before still show them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's hello and proof."""

    server_hello: bytes
    evidence: bytes


@dataclass(frozen=True, slots=True)
class Grant:
    """The server's last message."""

    parameters: bytes
    finished: bytes


class ServerHandshake:
    """One handshake. Call answer, confirm in this order; close on every path."""

    def __init__(
        self,
        bridge: eb.Bridge,
        platform: Platform,
        appraiser: Appraiser,
        regions: Regions,
        settings: ServerSettings,
    ) -> None:
        self._bridge = bridge
        self._platform = platform
        self._appraiser = appraiser
        self._regions = regions
        self._settings = settings
        self._handshake: eb.Handshake | None = None
        self._client_binding = b""
        self._own_report = b""
        self._wanted: dict[str, AccessMode] = {}
        self._suite = settings.suites[0]

    def answer(self, client_hello: bytes) -> Answer:
        """Reads the offer, chooses, and makes this server's evidence over both hellos."""
        if self._handshake is not None:
            raise HandshakeError("OUT_OF_ORDER", "a second ClientHello on one stream")
        hello = wire.client_hello(client_hello)
        self._suite = wire.choose_suite([share.suite for share in hello.key_shares], self._settings.suites)
        kind = wire.EVIDENCE_TYPES[self._platform.evidence_type]
        if kind not in hello.evidence_accepted or kind not in hello.evidence_offered:
            raise HandshakeError(
                "EVIDENCE_TYPE",
                f"this server speaks {self._platform.evidence_type.value} evidence; the client offers "
                f"{list(hello.evidence_offered)} and accepts {list(hello.evidence_accepted)}",
            )
        self._wanted = {region.name: wire.access_mode(region.mode) for region in hello.regions}
        client_key = next(share.public_key for share in hello.key_shares if int(share.suite) == self._suite)
        with handshake_faults():
            handshake = self._handshake = self._bridge.handshake(eb.Role.SERVER, [self._suite])
            handshake.select(self._suite)
            handshake.absorb(client_hello)
            server_hello = pb.ServerHello(
                version=pb.PROTOCOL_VERSION_1,
                server_nonce=self._bridge.random(NONCE_SIZE),
                key_share=pb.KeyShare(
                    suite=pb.Suite.ValueType(self._suite), public_key=handshake.public_key(self._suite)
                ),
                evidence_wanted=kind,
                tls_binding=self._binding(hello.tls_binding),
            ).SerializeToString(deterministic=True)
            handshake.absorb(server_hello)
            own = self._platform.attest(handshake.binding(eb.Role.SERVER))
            self._own_report = own.report
            evidence = wire.encode_evidence(own)
            handshake.absorb(evidence)
            # Fails on a bad point before the client can make this side do anything costlier.
            handshake.derive(client_key)
            self._client_binding = handshake.binding(eb.Role.CLIENT)
        return Answer(server_hello, evidence)

    def _binding(self, seen: bytes) -> bytes:
        """The certificate key to attest: the one the client sees on this connection, if it is this server's.

        The server cannot tell which of its certificates a connection was opened with; the client can. Both
        messages are in the transcript, and a key this server does not hold is never attested.
        """
        if not seen or seen == self._settings.tls_binding or seen in self._settings.tls_former:
            return seen or self._settings.tls_binding
        raise HandshakeError(
            "TLS_BINDING",
            "the TLS certificate the client sees is not this server's, or was replaced too long ago. Connect anew and "
            "directly, with the server's present certificate.",
        )

    def confirm(self, evidence: bytes, client_finished: bytes) -> tuple[Grant, Established]:
        """Checks the client's key confirmation (cheap) and then its evidence (dear), and grants.

        Raises HandshakeError; EvidenceRejectedError when the evidence is not believed; TransferError when
        policy does not grant what was asked.
        """
        handshake = self._handshake
        if handshake is None:
            raise HandshakeError("OUT_OF_ORDER", "ClientEvidence before ClientHello")
        shown = wire.decode_evidence(evidence, self._platform.evidence_type)
        if shown.report == self._own_report:
            raise HandshakeError("REFLECTED", "the client showed this server's own evidence")
        with handshake_faults():
            handshake.absorb(evidence)
            handshake.check_finished(client_finished)
        verdict = appraise(self._appraiser, shown, self._client_binding)
        regions = self._regions.grant(self._wanted, verdict)
        simulated = verdict.simulated or self._platform.simulated
        limits = self._settings.limits
        with handshake_faults():
            session_id = self._bridge.random(SESSION_ID_SIZE)
        parameters = pb.SessionParameters(
            session_id=session_id,
            lifetime=Duration(seconds=int(limits.lifetime_s), nanos=int(limits.lifetime_s % 1 * 1e9)),
            regions=[
                pb.RegionGrant(
                    name=r.name, region=r.number, base_gpa=r.base_gpa, pages=r.pages, mode=wire.ACCESS_MODES[r.mode]
                )
                for r in regions.values()
            ],
            max_batch_pages=limits.max_batch_pages,
            max_batches_in_flight=limits.max_batches_in_flight,
            identity=verdict.identity or "",
            simulated=simulated,
        ).SerializeToString(deterministic=True)
        with handshake_faults():
            handshake.absorb(client_finished)
            handshake.absorb(parameters)
            finished = handshake.finished()
            session = handshake.session(session_id)
        established = Established(session, session_id, verdict, regions, limits, self._suite, simulated)
        return Grant(parameters, finished), established

    def close(self) -> None:
        """Destroys what is left of the keys."""
        if self._handshake is not None:
            self._handshake.close()
