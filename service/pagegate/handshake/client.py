"""The client's side of Attest as a state machine: bytes in, bytes out, no sockets (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import enclave_bridge as eb
from pagegate.errors import HandshakeError
from pagegate.evidence.model import AccessMode, Appraiser, Verdict
from pagegate.handshake import wire
from pagegate.handshake.appraise import appraise
from pagegate.handshake.bridge_errors import handshake_faults
from pagegate.handshake.model import (
    MAX_HELLO_SIZE,
    NONCE_SIZE,
    SESSION_ID_SIZE,
    SUITES_DEFAULT,
    Established,
    GrantedRegion,
    Limits,
)
from pagegate.platforms.model import Platform
from pagegate.v1 import attestation_pb2 as pb

_MAX_PARAMETERS_SIZE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Proof:
    """What the client sends once it believes the server."""

    evidence: bytes
    finished: bytes


class ClientHandshake:
    """One handshake. Call hello, prove, establish in this order; close on every path."""

    def __init__(
        self,
        bridge: eb.Bridge,
        platform: Platform,
        appraiser: Appraiser,
        regions: Mapping[str, AccessMode],
        *,
        tls_binding: bytes = b"",
        suites: Sequence[eb.Suite] = SUITES_DEFAULT,
    ) -> None:
        """`tls_binding`: SHA-256 of the server certificate's SPKI as this side sees it, empty without TLS."""
        self._bridge = bridge
        self._platform = platform
        self._appraiser = appraiser
        self._wanted = {wire.region_name(name): mode for name, mode in regions.items()}
        self._tls_binding = tls_binding
        self._suites = tuple(suites)
        with handshake_faults():
            self._handshake = bridge.handshake(eb.Role.CLIENT, self._suites)
        self._suite = self._suites[0]
        self._hello = b""
        self._peer: Verdict | None = None

    def hello(self) -> bytes:
        """Makes the serialized ClientHello."""
        kind = wire.EVIDENCE_TYPES[self._platform.evidence_type]
        with handshake_faults():
            hello = pb.ClientHello(
                version=pb.PROTOCOL_VERSION_1,
                client_nonce=self._bridge.random(NONCE_SIZE),
                key_shares=[
                    pb.KeyShare(suite=pb.Suite.ValueType(suite), public_key=self._handshake.public_key(suite))
                    for suite in self._suites
                ],
                evidence_offered=[kind],
                evidence_accepted=[kind],
                regions=[
                    pb.RegionRequest(name=name, mode=wire.ACCESS_MODES[mode]) for name, mode in self._wanted.items()
                ],
                tls_binding=self._tls_binding,
            )
            self._hello = hello.SerializeToString(deterministic=True)
            self._handshake.absorb(self._hello)
        return self._hello

    def prove(self, server_hello: bytes, server_evidence: bytes) -> Proof:
        """Judges the server and, only when it is believed, makes this side's evidence.

        Raises HandshakeError; EvidenceRejectedError when the server's evidence is not believed.
        """
        suite, peer_key = self._read_server_hello(server_hello)
        with handshake_faults():
            self._handshake.select(suite)
            self._handshake.absorb(server_hello)
            binding = self._handshake.binding(eb.Role.SERVER)
        evidence = wire.decode_evidence(server_evidence, self._platform.evidence_type)
        self._peer = appraise(self._appraiser, evidence, binding)
        with handshake_faults():
            self._handshake.absorb(server_evidence)
            self._handshake.derive(peer_key)
            own = self._platform.attest(self._handshake.binding(eb.Role.CLIENT))
            if own.report == evidence.report:
                raise HandshakeError("REFLECTED", "the server showed this side's own evidence; refuse to go on")
            own_bytes = wire.encode_evidence(own)
            self._handshake.absorb(own_bytes)
            finished = self._handshake.finished()
            self._handshake.absorb(finished)
        return Proof(own_bytes, finished)

    def _read_server_hello(self, data: bytes) -> tuple[eb.Suite, bytes]:
        hello = wire.parse(pb.ServerHello, data, MAX_HELLO_SIZE, "ServerHello")
        wire.version(hello.version)
        wire.nonce(hello.server_nonce, "server_nonce")
        if hello.server_nonce == pb.ClientHello.FromString(self._hello).client_nonce:
            raise HandshakeError("REFLECTED", "the server sent this side's nonce back; refuse to go on")
        self._suite = wire.choose_suite([hello.key_share.suite], self._suites)
        if wire.evidence_type(hello.evidence_wanted) is not self._platform.evidence_type:
            raise HandshakeError(
                "EVIDENCE_TYPE", f"the server wants evidence of type {hello.evidence_wanted}, which was not offered"
            )
        if hello.tls_binding != self._tls_binding:
            raise HandshakeError(
                "TLS_BINDING",
                "the TLS certificate this side sees is not the one the server attests: something terminates TLS "
                "between them, or only one side uses TLS. Connect directly, with the server's own certificate.",
            )
        return self._suite, hello.key_share.public_key

    def establish(self, parameters: bytes, server_finished: bytes) -> Established:
        """Checks the server's key confirmation and opens the session."""
        peer = self._peer
        if peer is None:
            raise HandshakeError("OUT_OF_ORDER", "the server finished before it proved anything")
        with handshake_faults():
            self._handshake.absorb(parameters)
            self._handshake.check_finished(server_finished)
        message = wire.parse(pb.SessionParameters, parameters, _MAX_PARAMETERS_SIZE, "SessionParameters")
        if len(message.session_id) != SESSION_ID_SIZE:
            raise wire.malformed(f"session_id is {len(message.session_id)} bytes; it must be {SESSION_ID_SIZE}")
        regions = self._read_regions(message)
        limits = Limits(
            lifetime_s=message.lifetime.seconds + message.lifetime.nanos / 1e9,
            max_batch_pages=message.max_batch_pages,
            max_batches_in_flight=message.max_batches_in_flight,
        )
        if limits.lifetime_s <= 0 or limits.max_batch_pages < 1 or limits.max_batches_in_flight < 1:
            raise wire.malformed("SessionParameters has a limit of zero")
        with handshake_faults():
            session = self._handshake.session(message.session_id)
        simulated = peer.simulated or message.simulated or self._platform.simulated
        return Established(session, message.session_id, peer, regions, limits, self._suite, simulated)

    def _read_regions(self, message: pb.SessionParameters) -> dict[str, GrantedRegion]:
        regions: dict[str, GrantedRegion] = {}
        for grant in message.regions:
            mode = wire.access_mode(grant.mode)
            wanted = self._wanted.get(wire.region_name(grant.name))
            if wanted is None or grant.name in regions or not mode.allows(wanted):
                raise wire.malformed(f"the server granted region {grant.name!r} otherwise than asked")
            if grant.base_gpa % eb.PAGE_SIZE or not 1 <= grant.pages <= 1 << 28:
                raise wire.malformed(f"region {grant.name!r} is not whole pages")
            if grant.base_gpa + grant.pages * eb.PAGE_SIZE > 1 << 64:
                raise wire.malformed(f"region {grant.name!r} ends past the last address")
            regions[grant.name] = GrantedRegion(grant.name, grant.region, grant.base_gpa, grant.pages, mode)
        if missing := sorted(self._wanted.keys() - regions.keys()):
            raise wire.malformed(f"the server did not grant {', '.join(missing)}")
        return regions

    def close(self) -> None:
        """Destroys what is left of the keys."""
        self._handshake.close()
