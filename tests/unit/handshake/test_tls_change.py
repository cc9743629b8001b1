"""The handshake's TLS binding while a server's certificate changes, and what a middle can do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pagegate.errors import HandshakeError
from pagegate.handshake.server import Answer, ServerSettings
from pagegate.v1 import attestation_pb2 as pb
from support.handshake import Pair, edit

OLD, NEW, NEVER = b"o" * 32, b"n" * 32, b"x" * 32
CHANGED = ServerSettings(tls_binding=NEW, tls_former=(OLD,))
MakePair = Callable[..., Pair]


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(HandshakeError) as refused:
        run()
    return refused.value.reason


def claim(binding: bytes) -> Callable[[bytes], bytes]:
    """A middle that makes the client say it sees another certificate."""

    def change(hello: pb.ClientHello) -> None:
        hello.tls_binding = binding

    return lambda data: edit(pb.ClientHello, data, change)


def answer_with(binding: bytes) -> Callable[[Answer], Answer]:
    """A middle that makes the server attest another certificate."""

    def change(hello: pb.ServerHello) -> None:
        hello.tls_binding = binding

    return lambda answer: replace(answer, server_hello=edit(pb.ServerHello, answer.server_hello, change))


@pytest.mark.parametrize("seen", [OLD, NEW])
def test_run_when_the_client_sees_a_certificate_in_force_or_just_replaced_then_bound_to_that(
    pair: MakePair, seen: bytes
) -> None:
    shown: list[bytes] = []

    def look(answer: Answer) -> Answer:
        shown.append(pb.ServerHello.FromString(answer.server_hello).tls_binding)
        return answer

    pair(tls_binding=seen, settings=CHANGED).run(answer=look)
    assert shown == [seen]


def test_run_when_the_client_sees_one_the_server_never_had_then_refused_before_any_evidence(pair: MakePair) -> None:
    assert refusal(pair(tls_binding=NEVER, settings=CHANGED).run) == "TLS_BINDING"


def test_run_when_an_older_client_names_none_then_it_gets_the_one_in_force(pair: MakePair) -> None:
    one = pair(tls_binding=NEW, settings=CHANGED)
    hello = edit(pb.ClientHello, one.client.hello(), lambda h: h.ClearField("tls_binding"))
    assert pb.ServerHello.FromString(one.server.answer(hello).server_hello).tls_binding == NEW


@pytest.mark.parametrize("other", [NEW, b""], ids=["another", "none"])
def test_run_when_a_middle_changes_what_the_client_sees_then_refused(pair: MakePair, other: bytes) -> None:
    assert refusal(lambda: pair(tls_binding=OLD, settings=CHANGED).run(hello=claim(other))) == "TLS_BINDING"


def test_run_when_a_middle_changes_both_hellos_then_the_evidence_does_not_fit(pair: MakePair) -> None:
    one = pair(tls_binding=NEVER, settings=CHANGED)
    assert refusal(lambda: one.run(hello=claim(NEW), answer=answer_with(NEVER))) == "EVIDENCE_REJECTED"


@pytest.mark.parametrize("size", [1, 31, 33, 64])
def test_answer_when_the_binding_is_of_another_length_then_malformed(pair: MakePair, size: int) -> None:
    assert refusal(lambda: pair().run(hello=claim(bytes(size)))) == "MALFORMED_MESSAGE"
