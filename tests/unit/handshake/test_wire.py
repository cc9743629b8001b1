"""What a hostile peer may write into a message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration

import enclave_bridge as eb
from pagegate.errors import HandshakeError
from pagegate.evidence.model import AccessMode, Evidence, EvidenceType
from pagegate.handshake import wire
from pagegate.handshake.model import GrantedRegion, Limits
from pagegate.handshake.server import ServerSettings
from pagegate.v1 import attestation_pb2 as pb
from support.handshake import AttestedLiar, Granting, Pair, edit
from support.platforms import SERVER, Guests

MakePair = Callable[..., Pair]


def hello() -> pb.ClientHello:
    """A ClientHello that is in order."""
    return pb.ClientHello(
        version=pb.PROTOCOL_VERSION_1,
        client_nonce=bytes(range(32)),
        key_shares=[pb.KeyShare(suite=pb.SUITE_P384_SHA384_AES256GCM, public_key=b"k")],
        evidence_offered=[pb.EVIDENCE_TYPE_SEV_SNP],
        evidence_accepted=[pb.EVIDENCE_TYPE_SEV_SNP],
        regions=[pb.RegionRequest(name="book", mode=pb.ACCESS_MODE_READ)],
    )


def reason_of(run: Callable[[], object]) -> str:
    """The reason of the HandshakeError that a call must raise."""
    with pytest.raises(HandshakeError) as caught:
        run()
    return caught.value.reason


def test_client_hello_when_in_order_then_read() -> None:
    assert wire.client_hello(hello().SerializeToString()) == hello()


SPOILED: dict[str, Callable[[pb.ClientHello], object]] = {
    "no nonce": lambda h: h.ClearField("client_nonce"),
    "short nonce": lambda h: setattr(h, "client_nonce", bytes(range(31))),
    "long nonce": lambda h: setattr(h, "client_nonce", bytes(range(33))),
    "zero nonce": lambda h: setattr(h, "client_nonce", bytes(32)),
    "constant nonce": lambda h: setattr(h, "client_nonce", b"\xff" * 32),
    "no key shares": lambda h: h.ClearField("key_shares"),
    "five key shares": lambda h: h.key_shares.extend(pb.KeyShare(suite=n) for n in range(10, 14)),  # type: ignore[arg-type]
    "a suite twice": lambda h: h.key_shares.append(h.key_shares[0]),
    "no evidence offered": lambda h: h.ClearField("evidence_offered"),
    "no evidence accepted": lambda h: h.ClearField("evidence_accepted"),
    "nine types offered": lambda h: h.evidence_offered.extend([pb.EVIDENCE_TYPE_TDX] * 8),
    "nine types accepted": lambda h: h.evidence_accepted.extend([pb.EVIDENCE_TYPE_TDX] * 8),
    "65 regions": lambda h: h.regions.extend(pb.RegionRequest(name=f"r{n}") for n in range(64)),
    "a region twice": lambda h: h.regions.append(h.regions[0]),
    "no region name": lambda h: h.regions.add(name=""),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_client_hello_when_out_of_bounds_then_malformed(spoil: Callable[[pb.ClientHello], object]) -> None:
    message = hello()
    spoil(message)
    assert reason_of(lambda: wire.client_hello(message.SerializeToString())) == "MALFORMED_MESSAGE"


def test_client_hello_when_at_its_bounds_then_read() -> None:
    message = hello()
    message.key_shares.extend(pb.KeyShare(suite=n) for n in range(10, 13))  # type: ignore[arg-type]
    message.evidence_offered.extend([99] * 7)  # type: ignore[list-item]
    message.regions.extend(pb.RegionRequest(name=f"r{n}") for n in range(63))
    assert wire.client_hello(message.SerializeToString()) == message


@pytest.mark.parametrize("name", ["Book", "1st", "-a", "a_b", "a.b", "a/b", "../x", "a\n", "ä", "a" * 64, "*", " "])
def test_region_name_when_not_allowed_then_malformed(name: str) -> None:
    assert reason_of(lambda: wire.region_name(name)) == "MALFORMED_MESSAGE"


@pytest.mark.parametrize("name", ["a", "book", "a-1", "a" * 63])
def test_region_name_when_allowed_then_returned(name: str) -> None:
    assert wire.region_name(name) == name


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x0a", bytes(16), b"\x12\xff\xff\xff\xff\x0f"])
def test_client_hello_when_garbage_then_malformed(data: bytes) -> None:
    assert reason_of(lambda: wire.client_hello(data)) == "MALFORMED_MESSAGE"


def test_client_hello_when_oversize_then_malformed_whatever_it_holds() -> None:
    padding = b"\xfa\x07" + b"\xff\x80\x01" + bytes(16 * 1024 - 1)
    data = hello().SerializeToString() + padding
    assert reason_of(lambda: wire.client_hello(data)) == "MALFORMED_MESSAGE"


@pytest.mark.parametrize("mode", [0, 4, 99])
def test_answer_when_the_access_mode_is_unknown_then_malformed(pair: MakePair, mode: int) -> None:
    def change(message: pb.ClientHello) -> None:
        message.regions[0].mode = mode  # type: ignore[assignment]

    assert reason_of(lambda: pair().run(hello=lambda h: edit(pb.ClientHello, h, change))) == "MALFORMED_MESSAGE"


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, bytes(17 * 1024)])
def test_prove_when_the_server_hello_is_garbage_then_malformed(pair: MakePair, data: bytes) -> None:
    assert reason_of(lambda: pair().run(answer=lambda a: replace(a, server_hello=data))) == "MALFORMED_MESSAGE"


# ---- evidence ------------------------------------------------------------------------


def test_decode_evidence_when_encoded_by_us_then_the_same() -> None:
    evidence = Evidence(EvidenceType.SEV_SNP, b"report", (b"one", b"two"), {"quote": b"q"})
    assert wire.decode_evidence(wire.encode_evidence(evidence), EvidenceType.SEV_SNP) == evidence


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.Evidence(type=pb.EVIDENCE_TYPE_SEV_SNP), "EVIDENCE_MISSING"),
        (pb.Evidence(report=b"r"), "EVIDENCE_TYPE"),
        (pb.Evidence(type=pb.EVIDENCE_TYPE_TDX, report=b"r"), "EVIDENCE_TYPE"),
        (pb.Evidence(type=pb.EVIDENCE_TYPE_SEV_SNP, report=b"r", certificates=[b"c"] * 9), "MALFORMED_MESSAGE"),
        (
            pb.Evidence(type=pb.EVIDENCE_TYPE_SEV_SNP, report=b"r", certificates=[bytes(16 * 1024 + 1)]),
            "MALFORMED_MESSAGE",
        ),
        (pb.Evidence(type=pb.EVIDENCE_TYPE_SEV_SNP, report=bytes(256 * 1024)), "MALFORMED_MESSAGE"),
    ],
    ids=["empty", "no type", "another type", "nine certificates", "a large certificate", "oversize"],
)
def test_decode_evidence_when_out_of_bounds_then_refused(message: pb.Evidence, reason: str) -> None:
    assert reason_of(lambda: wire.decode_evidence(message.SerializeToString(), EvidenceType.SEV_SNP)) == reason


@pytest.mark.parametrize(("data", "reason"), [(b"", "EVIDENCE_MISSING"), (b"\xff" * 9, "MALFORMED_MESSAGE")])
@pytest.mark.parametrize("side", ["client", "server"])
def test_run_when_evidence_is_no_evidence_then_refused(pair: MakePair, side: str, data: bytes, reason: str) -> None:
    hook = "proof" if side == "client" else "answer"
    assert reason_of(lambda: pair().run(**{hook: lambda m: replace(m, evidence=data)})) == reason


def test_evidence_type_when_unknown_then_none() -> None:
    assert wire.evidence_type(77) is None


# ---- grants that an attested server must not make ------------------------------------------

BOOK = GrantedRegion("book", 1, 1 << 32, 16, AccessMode.READ_WRITE)
GRANTS = {
    "less than asked": {"book": replace(BOOK, mode=AccessMode.READ)},
    "another region": {"book": BOOK, "other": replace(BOOK, name="other")},
    "the same region twice": {"book": BOOK, "again": BOOK},
    "no region": {},
    "an unaligned base": {"book": replace(BOOK, base_gpa=1 << 32 | 1)},
    "no pages": {"book": replace(BOOK, pages=0)},
    "too many pages": {"book": replace(BOOK, pages=(1 << 28) + 1)},
    "past the last address": {"book": replace(BOOK, base_gpa=(1 << 64) - 4096, pages=2)},
    "a name that is none": {"book": replace(BOOK, name="../book")},
}


@pytest.mark.parametrize("grant", GRANTS.values(), ids=GRANTS)
def test_establish_when_granted_otherwise_than_asked_then_malformed(
    pair: MakePair, grant: dict[str, GrantedRegion]
) -> None:
    assert reason_of(pair(regions=Granting(grant)).run) == "MALFORMED_MESSAGE"


@pytest.mark.parametrize(
    "limits", [Limits(lifetime_s=0), Limits(max_batch_pages=0), Limits(max_batches_in_flight=0)], ids=str
)
def test_establish_when_a_limit_is_zero_then_malformed(pair: MakePair, limits: Limits) -> None:
    assert reason_of(pair(settings=ServerSettings(limits=limits)).run) == "MALFORMED_MESSAGE"


@pytest.mark.parametrize(
    "parameters",
    [
        b"\xff" * 20,
        pb.SessionParameters(session_id=b"short", lifetime=Duration(seconds=9)).SerializeToString(),
        pb.SessionParameters(
            session_id=bytes(16), lifetime=Duration(seconds=-9), max_batch_pages=1, max_batches_in_flight=1
        ).SerializeToString(),
        bytes(65 * 1024),
    ],
    ids=["garbage", "short session id", "negative lifetime", "oversize"],
)
def test_establish_when_an_attested_server_sends_nonsense_then_malformed(
    pair: MakePair, bridge: eb.Bridge, platform_for: Guests, parameters: bytes
) -> None:
    liar = AttestedLiar(bridge, platform_for(SERVER))
    client = pair(wanted={}).client
    assert reason_of(lambda: liar.finish(client, parameters)) == "MALFORMED_MESSAGE"


def test_establish_when_the_attested_server_is_honest_then_accepted(
    pair: MakePair, bridge: eb.Bridge, platform_for: Guests
) -> None:
    """Shows that the refusals above are for the parameters and nothing else."""
    parameters = pb.SessionParameters(
        session_id=bytes(16), lifetime=Duration(seconds=9), max_batch_pages=1, max_batches_in_flight=1
    ).SerializeToString()
    established = AttestedLiar(bridge, platform_for(SERVER)).finish(pair(wanted={}).client, parameters)
    established.session.close()
    assert established.limits == Limits(9.0, 1, 1)
