"""Five attacks on a running server, each over a real socket; each must be refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc

import enclave_bridge as eb
from pagegate.client import Client
from pagegate.errors import PagegateError
from pagegate.evidence.model import Evidence, EvidenceType
from pagegate.platforms.model import Platform
from pagegate.rpc.errors import from_rpc_error
from pagegate.v1 import transfer_pb2 as pb
from pagegate.v1 import transfer_pb2_grpc as pb_grpc


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack and what came of it."""

    name: str
    expected: str
    """Reason code that must come, and for evidence the check that must fail."""
    reason: str
    message: str

    @property
    def refused(self) -> bool:
        """True when the server refused for the right reason."""
        return all(part in self.reason for part in self.expected.split(":"))


class ReplayedEvidence:
    """A platform that shows again what another one showed in an earlier handshake."""

    def __init__(self, captured: Evidence, name: str) -> None:
        self._captured = captured
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def evidence_type(self) -> EvidenceType:
        return self._captured.type

    @property
    def simulated(self) -> bool:
        return True

    def attest(self, report_data: bytes) -> Evidence:
        """The captured evidence, whatever this handshake's binding is."""
        return self._captured


def outcome(name: str, expected: str, attack: Callable[[], object]) -> Attack:
    """Runs one attack."""
    try:
        attack()
    except grpc.RpcError as error:
        refusal: PagegateError = from_rpc_error(error)
    except PagegateError as error:
        refusal = error
    else:
        return Attack(name, expected, "ACCEPTED", "the server let it through")
    checks = refusal.metadata.get("checks")
    return Attack(name, expected, f"{refusal.reason}:{checks}" if checks else refusal.reason, refusal.message)


def attack(
    target: str,
    region: str,
    honest: Client,
    client_with: Callable[[Platform], Client],
    platform: Platform,
    impostor: Platform,
) -> list[Attack]:
    """Attacks the server at `target`. `platform` is one it accepts, `impostor` runs something else."""
    with grpc.insecure_channel(target) as channel:
        stub = pb_grpc.PageTransferStub(channel)
        session = honest.session
        granted = session.regions[region]
        gpa = granted.base_gpa + (granted.pages - 1) * eb.PAGE_SIZE

        def send(record: bytes, session_id: bytes = session.session_id) -> None:
            stub.TransferPage(pb.TransferPageRequest(session_id=session_id, record=record), timeout=10)

        def seal() -> bytes:
            record, _ = session.session.seal(None, region=granted.number, first_gpa=gpa, plain=bytes(eb.PAGE_SIZE))
            return record

        def tampered() -> None:
            record = bytearray(seal())
            record[eb.HEADER_SIZE + 1000] ^= 1
            send(bytes(record))

        def replayed() -> None:
            record = seal()
            send(record)
            send(record)

        def unattested() -> None:
            send(seal(), bytes(range(16)))

        def wrong_measurement() -> None:
            with client_with(impostor) as client:
                client.attest()

        captured = platform.attest(bytes(64))

        def replayed_evidence() -> None:
            with client_with(ReplayedEvidence(captured, platform.name)) as client:
                client.attest()

        return [
            outcome("a tampered page (one bit of ciphertext)", "TAMPERED", tampered),
            outcome("a replayed page (the same record twice)", "REPLAYED", replayed),
            outcome("an unattested caller (no session)", "SESSION_UNKNOWN", unattested),
            outcome("a wrong measurement", "EVIDENCE_REJECTED:MEASUREMENT", wrong_measurement),
            outcome("evidence of an earlier handshake", "EVIDENCE_REJECTED:REPORT_DATA", replayed_evidence),
        ]
