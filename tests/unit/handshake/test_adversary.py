"""What the protocol must withstand (docs/protocol.md), each attack made by somebody on the path or at an end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

import enclave_bridge as eb
from pagegate.errors import HandshakeError
from pagegate.evidence.model import Appraiser, Evidence
from pagegate.handshake import wire
from pagegate.handshake.appraise import EvidenceRejectedError
from pagegate.handshake.client import Proof
from pagegate.handshake.server import Answer, Grant
from pagegate.v1 import attestation_pb2 as pb
from support.handshake import Pair, Showing, Unbound, Watched, edit
from support.platforms import CLIENT, SERVER, Guests

P384, P256 = eb.Suite.P384_SHA384_AES256GCM, eb.Suite.P256_SHA256_AES128GCM
MakePair = Callable[..., Pair]


def refused(reason: str, run: Callable[[], object], check: str = "") -> HandshakeError:
    """Asserts that a run is refused for this reason and, for evidence, that this check failed."""
    with pytest.raises(HandshakeError) as caught:
        run()
    assert caught.value.reason == reason
    if check:
        assert check in caught.value.metadata["checks"].split(",")
    return caught.value


def new_key(bridge: eb.Bridge, suite: int) -> bytes:
    """A public key whose private half the attacker has."""
    with bridge.handshake(eb.Role.CLIENT, [eb.Suite(suite)]) as keys:
        return keys.public_key(eb.Suite(suite))


# ---- replay and relay ----------------------------------------------------------------


def test_prove_when_server_evidence_is_of_an_earlier_handshake_then_rejected(pair: MakePair) -> None:
    earlier: list[bytes] = []
    pair().run(answer=lambda a: earlier.append(a.evidence) or a)  # type: ignore[func-returns-value]
    refused(
        "EVIDENCE_REJECTED",
        lambda: pair().run(answer=lambda a: replace(a, evidence=earlier[0])),
        "SNP_REPORT_DATA",
    )


def test_confirm_when_client_evidence_is_of_an_earlier_handshake_then_rejected(
    pair: MakePair, platform_for: Guests
) -> None:
    captured = platform_for(CLIENT).attest(bytes(64))
    attacker = Showing(lambda _: captured)
    refused("EVIDENCE_REJECTED", pair(client=attacker).run, "SNP_REPORT_DATA")


def test_answer_when_client_hello_is_replayed_then_the_attacker_cannot_finish(pair: MakePair) -> None:
    seen: dict[str, object] = {}
    pair().run(hello=lambda h: seen.setdefault("hello", h), proof=lambda p: seen.setdefault("proof", p))
    victim = pair()
    victim.server.answer(seen["hello"])  # type: ignore[arg-type]
    proof: Proof = seen["proof"]  # type: ignore[assignment]
    refused("FINISHED_INVALID", lambda: victim.server.confirm(proof.evidence, proof.finished))


def test_prove_when_evidence_is_relayed_from_an_honest_server_then_rejected(
    pair: MakePair, platform_for: Guests
) -> None:
    """The man in the middle opens a handshake of its own with the honest server and shows what it got."""

    def relay(_: bytes) -> Evidence:
        own = pair()
        answer = own.server.answer(own.client.hello())
        return wire.decode_evidence(answer.evidence, platform_for(SERVER).evidence_type)

    refused("EVIDENCE_REJECTED", pair(server=Showing(relay)).run, "SNP_REPORT_DATA")


def test_confirm_when_evidence_is_relayed_from_an_honest_client_then_rejected(
    pair: MakePair, platform_for: Guests
) -> None:
    """The man in the middle has an honest client attest to it, with a server that this client believes."""

    def relay(_: bytes) -> Evidence:
        own = pair()
        answer = own.server.answer(own.client.hello())
        proof = own.client.prove(answer.server_hello, answer.evidence)
        return wire.decode_evidence(proof.evidence, platform_for(CLIENT).evidence_type)

    refused("EVIDENCE_REJECTED", pair(client=Showing(relay)).run, "SNP_REPORT_DATA")


def test_prove_when_server_is_not_believed_then_the_client_never_attests(pair: MakePair, platform_for: Guests) -> None:
    client = Showing(platform_for(CLIENT).attest)
    refused("EVIDENCE_REJECTED", pair(client=client, server=platform_for("stranger")).run, "SNP_MEASUREMENT")
    assert client.asked == []


# ---- swapped keys --------------------------------------------------------------------


def test_run_when_the_clients_key_is_swapped_then_the_servers_evidence_is_rejected(
    pair: MakePair, bridge: eb.Bridge
) -> None:
    def swap(hello: pb.ClientHello) -> None:
        for share in hello.key_shares:
            share.public_key = new_key(bridge, share.suite)

    refused("EVIDENCE_REJECTED", lambda: pair().run(hello=lambda h: edit(pb.ClientHello, h, swap)), "SNP_REPORT_DATA")


def test_run_when_the_servers_key_is_swapped_then_its_evidence_is_rejected(pair: MakePair, bridge: eb.Bridge) -> None:
    def swap(hello: pb.ServerHello) -> None:
        hello.key_share.public_key = new_key(bridge, hello.key_share.suite)

    refused(
        "EVIDENCE_REJECTED",
        lambda: pair().run(answer=lambda a: replace(a, server_hello=edit(pb.ServerHello, a.server_hello, swap))),
        "SNP_REPORT_DATA",
    )


def test_run_when_a_key_is_swapped_and_evidence_is_not_bound_then_finished_still_fails(
    pair: MakePair, bridge: eb.Bridge, appraiser: Appraiser
) -> None:
    """Key confirmation alone finds the change too."""

    def swap(hello: pb.ServerHello) -> None:
        hello.key_share.public_key = new_key(bridge, hello.key_share.suite)

    one = pair(client_appraiser=Unbound(appraiser), server_appraiser=Unbound(appraiser))
    refused(
        "FINISHED_INVALID",
        lambda: one.run(answer=lambda a: replace(a, server_hello=edit(pb.ServerHello, a.server_hello, swap))),
    )


BAD_POINTS = {
    "empty": b"",
    "infinity": b"\0",
    "zeros": bytes(97),
    "not on the curve": b"\x04" + b"\x01" * 96,
    "compressed": b"\x02" + b"\x01" * 48,
    "of another curve": b"\x04" + bytes(64),
    "too long": b"\x04" + b"\x01" * 300,
}


@pytest.mark.parametrize("point", BAD_POINTS.values(), ids=BAD_POINTS)
def test_answer_when_the_clients_point_is_bad_then_key_share_invalid(pair: MakePair, point: bytes) -> None:
    def spoil(hello: pb.ClientHello) -> None:
        hello.key_shares[0].public_key = point

    refused("KEY_SHARE_INVALID", lambda: pair().run(hello=lambda h: edit(pb.ClientHello, h, spoil)))


@pytest.mark.parametrize("point", BAD_POINTS.values(), ids=BAD_POINTS)
def test_prove_when_the_servers_point_is_bad_then_key_share_invalid(
    pair: MakePair, appraiser: Appraiser, point: bytes
) -> None:
    def spoil(hello: pb.ServerHello) -> None:
        hello.key_share.public_key = point

    refused(
        "KEY_SHARE_INVALID",
        lambda: pair(client_appraiser=Unbound(appraiser)).run(
            answer=lambda a: replace(a, server_hello=edit(pb.ServerHello, a.server_hello, spoil))
        ),
    )


# ---- downgrade -----------------------------------------------------------------------


def test_run_when_the_better_suite_is_taken_out_of_the_offer_then_rejected(pair: MakePair) -> None:
    refused(
        "EVIDENCE_REJECTED",
        lambda: pair().run(hello=lambda h: edit(pb.ClientHello, h, lambda m: m.key_shares.pop(0))),
        "SNP_REPORT_DATA",
    )


def test_run_when_the_offer_is_reordered_then_rejected(pair: MakePair) -> None:
    def swap(hello: pb.ClientHello) -> None:
        hello.key_shares.insert(0, hello.key_shares.pop(1))

    refused("EVIDENCE_REJECTED", lambda: pair().run(hello=lambda h: edit(pb.ClientHello, h, swap)), "SNP_REPORT_DATA")


def test_prove_when_the_chosen_suite_is_changed_then_rejected(pair: MakePair, bridge: eb.Bridge) -> None:
    def weaken(hello: pb.ServerHello) -> None:
        hello.key_share.suite = pb.SUITE_P256_SHA256_AES128GCM
        hello.key_share.public_key = new_key(bridge, P256)

    refused(
        "EVIDENCE_REJECTED",
        lambda: pair().run(answer=lambda a: replace(a, server_hello=edit(pb.ServerHello, a.server_hello, weaken))),
        "SNP_REPORT_DATA",
    )


@pytest.mark.parametrize("suite", [0, P256, 3, 77])
def test_prove_when_the_chosen_suite_was_not_offered_then_suite_unsupported(pair: MakePair, suite: int) -> None:
    def choose(hello: pb.ServerHello) -> None:
        hello.key_share.suite = suite  # type: ignore[assignment]

    refused(
        "SUITE_UNSUPPORTED",
        lambda: pair(suites=[P384]).run(
            answer=lambda a: replace(a, server_hello=edit(pb.ServerHello, a.server_hello, choose))
        ),
    )


@pytest.mark.parametrize("version", [0, 2, 99])
@pytest.mark.parametrize("side", ["client", "server"])
def test_run_when_the_version_is_another_then_version_unsupported(pair: MakePair, side: str, version: int) -> None:
    def change(hello: pb.ClientHello | pb.ServerHello) -> None:
        hello.version = version  # type: ignore[assignment]

    if side == "client":
        refused("VERSION_UNSUPPORTED", lambda: pair().run(hello=lambda h: edit(pb.ClientHello, h, change)))
    else:
        refused(
            "VERSION_UNSUPPORTED",
            lambda: pair().run(answer=lambda a: replace(a, server_hello=edit(pb.ServerHello, a.server_hello, change))),
        )


# ---- reflection ----------------------------------------------------------------------


def test_prove_when_the_clients_hello_is_played_back_then_reflected(pair: MakePair) -> None:
    one = pair()
    hello = one.client.hello()
    answer = one.server.answer(hello)
    refused("REFLECTED", lambda: one.client.prove(hello, answer.evidence))


def test_prove_when_the_nonce_is_the_clients_own_then_reflected(pair: MakePair) -> None:
    one = pair()
    own = pb.ClientHello.FromString(one.client.hello()).client_nonce
    other = pair().client.hello()
    answer = one.server.answer(other)

    def reuse(hello: pb.ServerHello) -> None:
        hello.server_nonce = own

    refused("REFLECTED", lambda: one.client.prove(edit(pb.ServerHello, answer.server_hello, reuse), answer.evidence))


def test_prove_when_the_servers_key_is_the_clients_own_then_key_share_invalid(
    pair: MakePair, appraiser: Appraiser
) -> None:
    one = pair(client_appraiser=Unbound(appraiser))
    hello = one.client.hello()
    answer = one.server.answer(hello)
    own = pb.ClientHello.FromString(hello).key_shares[0]

    def reuse(message: pb.ServerHello) -> None:
        message.key_share.CopyFrom(own)

    refused(
        "KEY_SHARE_INVALID",
        lambda: one.client.prove(edit(pb.ServerHello, answer.server_hello, reuse), answer.evidence),
    )


def test_confirm_when_the_servers_own_evidence_comes_back_then_reflected(pair: MakePair) -> None:
    one = pair()
    answer = one.server.answer(one.client.hello())
    proof = one.client.prove(answer.server_hello, answer.evidence)
    refused("REFLECTED", lambda: one.server.confirm(answer.evidence, proof.finished))


def test_prove_when_the_server_shows_the_clients_own_evidence_then_reflected(
    pair: MakePair, platform_for: Guests, appraiser: Appraiser
) -> None:
    own = platform_for(CLIENT).attest(bytes(64))
    stuck = Showing(lambda _: own)
    one = pair(client=stuck, server=stuck, client_appraiser=Unbound(appraiser))
    answer = one.server.answer(one.client.hello())
    # By the client itself: the server would notice as well.
    refused("REFLECTED", lambda: one.client.prove(answer.server_hello, answer.evidence))


def test_confirm_when_evidence_was_made_for_the_other_role_then_rejected(pair: MakePair, platform_for: Guests) -> None:
    """The same transcript under the server's label is not the client's evidence."""
    one = pair()
    answer = one.server.answer(one.client.hello())
    server_report = wire.decode_evidence(answer.evidence, platform_for(SERVER).evidence_type).report
    client = Showing(lambda binding: platform_for(CLIENT).attest(server_report[0x50:0x90]))
    refused("EVIDENCE_REJECTED", pair(client=client).run, "SNP_REPORT_DATA")


def test_establish_when_the_clients_own_mac_comes_back_then_finished_invalid(pair: MakePair) -> None:
    one = pair()
    seen: list[bytes] = []
    refused(
        "FINISHED_INVALID",
        lambda: one.run(
            proof=lambda p: seen.append(p.finished) or p,  # type: ignore[func-returns-value]
            grant=lambda g: replace(g, finished=seen[0]),
        ),
    )


# ---- evidence that must not be believed ------------------------------------------------


@pytest.mark.parametrize("side", ["client", "server"])
def test_run_when_the_measurement_is_unknown_then_rejected(pair: MakePair, platform_for: Guests, side: str) -> None:
    refused("EVIDENCE_REJECTED", pair(**{side: platform_for("stranger")}).run, "SNP_MEASUREMENT")


def test_run_when_rejected_then_the_peer_is_told_codes_and_the_operator_values(
    pair: MakePair, platform_for: Guests
) -> None:
    error = refused("EVIDENCE_REJECTED", pair(client=platform_for("stranger")).run)
    assert isinstance(error, EvidenceRejectedError)
    assert error.verdict.failures[0].expected in error.message
    assert dict(error.metadata) == {"checks": "SNP_MEASUREMENT"}


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("number", [0, 2, 3, 99])
def test_run_when_evidence_is_of_another_type_then_evidence_type(pair: MakePair, side: str, number: int) -> None:
    def relabel(evidence: pb.Evidence) -> None:
        evidence.type = number  # type: ignore[assignment]

    change = {
        "client": {"proof": lambda p: replace(p, evidence=edit(pb.Evidence, p.evidence, relabel))},
        "server": {"answer": lambda a: replace(a, evidence=edit(pb.Evidence, a.evidence, relabel))},
    }[side]
    refused("EVIDENCE_TYPE", lambda: pair().run(**change))


@pytest.mark.parametrize("field", ["evidence_offered", "evidence_accepted"])
def test_answer_when_the_client_speaks_another_type_only_then_evidence_type(pair: MakePair, field: str) -> None:
    def other(hello: pb.ClientHello) -> None:
        getattr(hello, field)[:] = [pb.EVIDENCE_TYPE_TDX]

    refused("EVIDENCE_TYPE", lambda: pair().run(hello=lambda h: edit(pb.ClientHello, h, other)))


@pytest.mark.parametrize("number", [0, 3, 99])
def test_prove_when_the_server_wants_another_type_then_evidence_type(pair: MakePair, number: int) -> None:
    def want(hello: pb.ServerHello) -> None:
        hello.evidence_wanted = number  # type: ignore[assignment]

    refused(
        "EVIDENCE_TYPE",
        lambda: pair().run(answer=lambda a: replace(a, server_hello=edit(pb.ServerHello, a.server_hello, want))),
    )


def test_confirm_when_the_mac_is_wrong_then_evidence_is_not_even_judged(pair: MakePair, appraiser: Appraiser) -> None:
    watched = Watched(appraiser)
    refused(
        "FINISHED_INVALID",
        lambda: pair(server_appraiser=watched).run(proof=lambda p: replace(p, finished=bytes(len(p.finished)))),
    )
    assert watched.seen == []


def test_confirm_when_evidence_was_exchanged_on_the_way_then_finished_invalid(
    pair: MakePair, platform_for: Guests
) -> None:
    other = wire.encode_evidence(platform_for(CLIENT).attest(bytes(64)))
    refused("FINISHED_INVALID", lambda: pair().run(proof=lambda p: replace(p, evidence=other)))


# ---- messages changed on the way -------------------------------------------------------


def _change(name: str) -> Callable[[pb.SessionParameters], None]:
    def change(p: pb.SessionParameters) -> None:
        match name:
            case "session_id":
                p.session_id = bytes(16)
            case "lifetime":
                p.lifetime.seconds += 1
            case "base":
                p.regions[0].base_gpa += 4096
            case "pages":
                p.regions[0].pages += 1
            case "mode":
                p.regions[0].mode = pb.ACCESS_MODE_READ
            case "region":
                p.regions[0].region += 1
            case "no region":
                p.regions.pop()
            case "batch":
                p.max_batch_pages += 1
            case "flight":
                p.max_batches_in_flight += 1
            case "identity":
                p.identity = "root"
            case "simulated":
                p.simulated = not p.simulated

    return change


@pytest.mark.parametrize(
    "name",
    [
        "session_id", "lifetime", "base", "pages", "mode", "region", "no region", "batch", "flight", "identity",
        "simulated",
    ],
)  # fmt: skip
def test_establish_when_the_grant_was_changed_on_the_way_then_finished_invalid(pair: MakePair, name: str) -> None:
    refused(
        "FINISHED_INVALID",
        lambda: pair().run(
            grant=lambda g: replace(g, parameters=edit(pb.SessionParameters, g.parameters, _change(name)))
        ),
    )


def test_establish_when_the_grant_is_reserialized_with_an_unknown_field_then_finished_invalid(pair: MakePair) -> None:
    """The transcript holds the bytes, not their meaning."""
    refused(
        "FINISHED_INVALID", lambda: pair().run(grant=lambda g: replace(g, parameters=g.parameters + b"\xf8\x07\x01"))
    )


MACS = {"empty": lambda m: b"", "cut": lambda m: m[:-1], "longer": lambda m: m + b"\0", "flipped": lambda m: bytes([m[0] ^ 1]) + m[1:]}  # fmt: skip


@pytest.mark.parametrize("spoil", MACS.values(), ids=MACS)
@pytest.mark.parametrize("side", ["client", "server"])
def test_run_when_a_finished_mac_is_not_exact_then_finished_invalid(
    pair: MakePair, side: str, spoil: Callable[[bytes], bytes]
) -> None:
    def on_message(message: Proof | Grant) -> Proof | Grant:
        return replace(message, finished=spoil(message.finished))

    refused("FINISHED_INVALID", lambda: pair().run(**{"proof" if side == "client" else "grant": on_message}))


# ---- two sessions ------------------------------------------------------------------------


def _crossed(pair: MakePair) -> tuple[Pair, Pair, Answer, Answer]:
    one, other = pair(), pair()
    return one, other, one.server.answer(one.client.hello()), other.server.answer(other.client.hello())


def test_prove_when_the_answers_of_two_handshakes_are_crossed_then_rejected(pair: MakePair) -> None:
    one, _, _, foreign = _crossed(pair)
    refused("EVIDENCE_REJECTED", lambda: one.client.prove(foreign.server_hello, foreign.evidence), "SNP_REPORT_DATA")


def test_confirm_when_the_proofs_of_two_handshakes_are_crossed_then_finished_invalid(pair: MakePair) -> None:
    one, other, _, answer = _crossed(pair)
    proof = other.client.prove(answer.server_hello, answer.evidence)
    refused("FINISHED_INVALID", lambda: one.server.confirm(proof.evidence, proof.finished))


def test_establish_when_the_grants_of_two_handshakes_are_crossed_then_finished_invalid(pair: MakePair) -> None:
    grants: list[Grant] = []
    pair().run(grant=lambda g: grants.append(g) or g)  # type: ignore[func-returns-value]
    refused("FINISHED_INVALID", lambda: pair().run(grant=lambda g: grants[0]))


def _open(bridge: eb.Bridge, session: eb.Session, record: bytes) -> None:
    with bridge.transfer(bytes(16), region=1, base_gpa=1 << 32, pages=1) as transfer:
        transfer.target_memory(bytearray(eb.PAGE_SIZE))
        session.open(transfer, record)


def _seal(session: eb.Session) -> bytes:
    return session.seal(None, region=1, first_gpa=1 << 32, plain=b"p" * eb.PAGE_SIZE)[0]


def test_open_when_the_record_is_of_another_session_then_wrong_session(pair: MakePair, bridge: eb.Bridge) -> None:
    (one, _), (_, other) = pair().run(), pair().run()
    with pytest.raises(eb.BridgeStatusError) as failed:
        _open(bridge, other.session, _seal(one.session))
    assert failed.value.reason == "WRONG_SESSION"


def test_open_when_the_session_id_is_rewritten_then_tampered(pair: MakePair, bridge: eb.Bridge) -> None:
    (one, _), (_, other) = pair().run(), pair().run()
    record = other.session_id + _seal(one.session)[len(other.session_id) :]
    with pytest.raises(eb.BridgeStatusError) as failed:
        _open(bridge, other.session, record)
    assert failed.value.reason == "TAMPERED"


def test_open_when_the_own_record_comes_back_then_tampered(pair: MakePair, bridge: eb.Bridge) -> None:
    client, _ = pair().run()
    with pytest.raises(eb.BridgeStatusError) as failed:
        _open(bridge, client.session, _seal(client.session))
    assert failed.value.reason == "TAMPERED"


def test_check_mac_when_made_in_another_session_then_mac(pair: MakePair) -> None:
    (one, _), (_, other) = pair().run(), pair().run()
    mac = one.session.mac(eb.MacPurpose.TRANSFER, b"m")
    with pytest.raises(eb.BridgeStatusError) as failed:
        other.session.check_mac(eb.MacPurpose.TRANSFER, b"m", mac)
    assert failed.value.reason == "MAC"
