"""Both state machines of a handshake side by side, with every message in the open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from google.protobuf.message import Message

import enclave_bridge as eb
from pagegate.evidence.model import AccessMode, Appraiser, Evidence, EvidenceType, Verdict
from pagegate.handshake import wire
from pagegate.handshake.client import ClientHandshake, Proof
from pagegate.handshake.model import NONCE_SIZE, Established
from pagegate.handshake.server import Answer, Grant, ServerHandshake
from pagegate.platforms.model import Platform
from pagegate.v1 import attestation_pb2 as pb

_M = TypeVar("_M", bound=Message)
_T = TypeVar("_T")


def edit(kind: type[_M], data: bytes, change: Callable[[_M], object]) -> bytes:
    """A serialized message with a change made to it, as a machine in the middle would."""
    message = kind.FromString(data)
    change(message)
    return message.SerializeToString(deterministic=True)


def _same(value: _T) -> _T:
    return value


@dataclass
class Pair:
    """A client and a server that have not spoken yet."""

    client: ClientHandshake
    server: ServerHandshake
    opened: list[Established] = field(default_factory=list)

    def run(
        self,
        *,
        hello: Callable[[bytes], bytes] = _same,
        answer: Callable[[Answer], Answer] = _same,
        proof: Callable[[Proof], Proof] = _same,
        grant: Callable[[Grant], Grant] = _same,
    ) -> tuple[Established, Established]:
        """Carries the four messages across; each hook may change one on the way. Returns client's and server's end."""
        answered = answer(self.server.answer(hello(self.client.hello())))
        proven = proof(self.client.prove(answered.server_hello, answered.evidence))
        granted, at_server = self.server.confirm(proven.evidence, proven.finished)
        self.opened.append(at_server)
        granted = grant(granted)
        at_client = self.client.establish(granted.parameters, granted.finished)
        self.opened.append(at_client)
        return at_client, at_server


class Showing:
    """A platform that shows what `show` gives, and keeps the bindings it was asked for."""

    name = "showing"
    simulated = True

    def __init__(self, show: Callable[[bytes], Evidence], kind: EvidenceType = EvidenceType.SEV_SNP) -> None:
        self._show = show
        self.evidence_type = kind
        self.asked: list[bytes] = []
        """REPORT_DATA of each call: empty when the side never came to attest."""

    def attest(self, report_data: bytes) -> Evidence:
        """As `pagegate.platforms.model.Platform`."""
        self.asked.append(report_data)
        return self._show(report_data)


class Unbound:
    """An appraiser that does not look at REPORT_DATA, to reach the checks behind that one."""

    def __init__(self, inner: Appraiser) -> None:
        self._inner = inner

    def appraise(self, evidence: Evidence, *, report_data: bytes | None, now: datetime) -> Verdict:
        """As `pagegate.evidence.model.Appraiser`."""
        return self._inner.appraise(evidence, report_data=None, now=now)


class Watched:
    """An appraiser that keeps what it was asked to judge."""

    def __init__(self, inner: Appraiser) -> None:
        self._inner = inner
        self.seen: list[Evidence] = []
        """Empty when the side refused before the costly checks."""

    def appraise(self, evidence: Evidence, *, report_data: bytes | None, now: datetime) -> Verdict:
        """As `pagegate.evidence.model.Appraiser`."""
        self.seen.append(evidence)
        return self._inner.appraise(evidence, report_data=report_data, now=now)


class Granting:
    """The server's regions, granting exactly what it is told, whatever was asked."""

    def __init__(self, regions: Mapping[str, object]) -> None:
        self._regions = regions

    def grant(self, wanted: Mapping[str, AccessMode], verdict: Verdict) -> Mapping[str, object]:
        """As `pagegate.handshake.server.Regions`."""
        return self._regions


class AttestedLiar:
    """A server that is believed and holds the keys, and ends the handshake with any parameters it likes."""

    def __init__(self, bridge: eb.Bridge, platform: Platform) -> None:
        self._bridge, self._platform = bridge, platform

    def finish(self, client: ClientHandshake, parameters: bytes) -> Established:
        """Runs `client` against this server; the last message is authentic and holds `parameters`."""
        suite = eb.Suite.P384_SHA384_AES256GCM
        with self._bridge.handshake(eb.Role.SERVER, [suite]) as keys:
            client_hello = client.hello()
            offered = pb.ClientHello.FromString(client_hello).key_shares[0]
            hello = pb.ServerHello(
                version=pb.PROTOCOL_VERSION_1,
                server_nonce=self._bridge.random(NONCE_SIZE),
                key_share=pb.KeyShare(suite=offered.suite, public_key=keys.public_key(suite)),
                evidence_wanted=pb.EVIDENCE_TYPE_SEV_SNP,
            ).SerializeToString()
            keys.select(suite)
            keys.absorb(client_hello)
            keys.absorb(hello)
            evidence = wire.encode_evidence(self._platform.attest(keys.binding(eb.Role.SERVER)))
            keys.absorb(evidence)
            keys.derive(offered.public_key)
            proof = client.prove(hello, evidence)
            keys.absorb(proof.evidence)
            keys.check_finished(proof.finished)
            keys.absorb(proof.finished)
            keys.absorb(parameters)
            return client.establish(parameters, keys.finished())
