"""What two honest sides agree on."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from datetime import datetime

import pytest

import enclave_bridge as eb
from pagegate.errors import BridgeError, HandshakeError, TransferError
from pagegate.evidence.model import AccessMode, Appraiser, Evidence, Verdict
from pagegate.handshake.model import GrantedRegion, Limits
from pagegate.handshake.server import ServerSettings
from pagegate.v1 import attestation_pb2 as pb
from support.handshake import Pair

P384, P256 = eb.Suite.P384_SHA384_AES256GCM, eb.Suite.P256_SHA256_AES128GCM


def test_run_when_both_are_honest_then_they_hold_the_same_keys(pair: Callable[..., Pair]) -> None:
    client, server = pair().run()
    mac = client.session.mac(eb.MacPurpose.TRANSFER, b"message")
    server.session.check_mac(eb.MacPurpose.TRANSFER, b"message", mac)
    assert client.session_id == server.session_id


def test_run_when_both_are_honest_then_each_knows_who_the_other_is(pair: Callable[..., Pair]) -> None:
    client, server = pair().run()
    assert (client.peer.identity, server.peer.identity) == ("server", "client")


def test_run_when_the_region_is_granted_then_both_sides_have_the_same_grant(pair: Callable[..., Pair]) -> None:
    client, server = pair(wanted={"book": AccessMode.READ}).run()
    expected = {"book": GrantedRegion("book", 1, 1 << 32, 16, AccessMode.READ)}
    assert client.regions == server.regions == expected


def test_run_when_the_server_sets_limits_then_the_client_learns_them(pair: Callable[..., Pair]) -> None:
    limits = Limits(lifetime_s=1.5, max_batch_pages=7, max_batches_in_flight=3)
    client, server = pair(settings=ServerSettings(limits=limits)).run()
    assert client.limits == server.limits == limits


@pytest.mark.parametrize(
    ("offered", "allowed", "chosen"),
    [
        ([P384, P256], [P384, P256], P384),
        ([P256, P384], [P384, P256], P384),
        ([P384, P256], [P256], P256),
        ([P256], [P384, P256], P256),
    ],
)
def test_run_when_suites_overlap_then_the_servers_first_is_used(
    pair: Callable[..., Pair], offered: list[eb.Suite], allowed: list[eb.Suite], chosen: eb.Suite
) -> None:
    client, server = pair(suites=offered, settings=ServerSettings(suites=allowed)).run()
    assert client.suite is server.suite is chosen


def test_run_when_no_suite_is_common_then_suite_unsupported(pair: Callable[..., Pair]) -> None:
    with pytest.raises(HandshakeError) as refused:
        pair(suites=[P256], settings=ServerSettings(suites=[P384])).run()
    assert refused.value.reason == "SUITE_UNSUPPORTED"


def test_run_when_tls_bindings_are_equal_then_accepted(pair: Callable[..., Pair]) -> None:
    client, _ = pair(tls_binding=b"b" * 32, settings=ServerSettings(tls_binding=b"b" * 32)).run()
    assert client.peer.accepted


@pytest.mark.parametrize(("at_client", "at_server"), [(b"a" * 32, b"b" * 32), (b"a" * 32, b""), (b"", b"b" * 32)])
def test_run_when_tls_bindings_differ_then_tls_binding(
    pair: Callable[..., Pair], at_client: bytes, at_server: bytes
) -> None:
    with pytest.raises(HandshakeError) as refused:
        pair(tls_binding=at_client, settings=ServerSettings(tls_binding=at_server)).run()
    assert refused.value.reason == "TLS_BINDING"


def test_run_when_nothing_is_wanted_then_attested_without_regions(pair: Callable[..., Pair]) -> None:
    client, server = pair(wanted={}).run()
    assert client.regions == server.regions == {}


def test_run_when_region_does_not_exist_then_region_unknown(pair: Callable[..., Pair]) -> None:
    with pytest.raises(TransferError) as refused:
        pair(wanted={"nowhere": AccessMode.READ}).run()
    assert refused.value.reason == "REGION_UNKNOWN"


def test_run_when_own_region_name_is_bad_then_refused_before_anything_is_sent(pair: Callable[..., Pair]) -> None:
    with pytest.raises(HandshakeError) as refused:
        pair(wanted={"Book": AccessMode.READ})
    assert refused.value.reason == "MALFORMED_MESSAGE"


def test_run_when_session_slots_are_used_up_then_too_many_sessions_with_a_time_to_retry(
    pair: Callable[..., Pair],
) -> None:
    with eb.Bridge(max_sessions=1, max_handshakes=4) as small:
        first = pair(server_bridge=small)
        second = pair(server_bridge=small)
        first.run()
        with pytest.raises(HandshakeError) as refused:
            second.run()
        second.server.close()
        first.server.close()
    assert refused.value.reason == "TOO_MANY_SESSIONS"
    assert refused.value.retry_after


def test_hello_when_the_bridge_is_closed_then_bridge_error_and_not_the_peers_fault(
    pair: Callable[..., Pair],
) -> None:
    closed = eb.Bridge(max_sessions=1, max_handshakes=1)
    closed.close()
    one = pair(server_bridge=closed)
    with pytest.raises(BridgeError) as failed:
        one.run()
    assert failed.value.reason == "STATE"


def test_close_when_nothing_was_said_then_slots_are_free_again(pair: Callable[..., Pair], bridge: eb.Bridge) -> None:
    one = pair()
    one.server.close()
    one.client.close()
    assert bridge.info.handshakes_live == 0


def test_run_when_finished_then_handshake_secrets_are_gone(pair: Callable[..., Pair], bridge: eb.Bridge) -> None:
    one = pair()
    one.run()
    one.client.close()
    one.server.close()
    assert bridge.info.handshakes_live == 0
    assert bridge.info.sessions_live == 2


@pytest.mark.parametrize("step", ["establish", "confirm"])
def test_step_when_it_comes_first_then_out_of_order(pair: Callable[..., Pair], step: str) -> None:
    one = pair()
    with pytest.raises(HandshakeError) as refused:
        one.client.establish(b"p", b"f") if step == "establish" else one.server.confirm(b"e", b"f")
    assert refused.value.reason == "OUT_OF_ORDER"


def test_answer_when_asked_twice_then_out_of_order(pair: Callable[..., Pair]) -> None:
    one = pair()
    hello = one.client.hello()
    one.server.answer(hello)
    with pytest.raises(HandshakeError) as refused:
        one.server.answer(hello)
    assert refused.value.reason == "OUT_OF_ORDER"


def test_hello_when_made_twice_then_nonces_and_keys_differ(pair: Callable[..., Pair]) -> None:
    one, other = (pb.ClientHello.FromString(pair().client.hello()) for _ in range(2))
    assert one.client_nonce != other.client_nonce
    assert [s.public_key for s in one.key_shares] != [s.public_key for s in other.key_shares]


def test_confirm_when_the_bridge_dies_while_evidence_is_appraised_then_says_so(
    pair: Callable[..., Pair], appraiser: Appraiser
) -> None:
    class Killing:
        def appraise(self, evidence: Evidence, *, report_data: bytes | None, now: datetime) -> Verdict:
            os.kill(isolated.info.process, signal.SIGKILL)
            assert select.select([isolated.pidfd], [], [], 20)[0]
            return appraiser.appraise(evidence, report_data=report_data, now=now)

    with eb.IsolatedBridge(max_sessions=2, max_handshakes=2) as isolated:
        with pytest.raises(HandshakeError) as caught:
            pair(server_bridge=isolated, server_appraiser=Killing()).run()
    assert caught.value.reason == "BRIDGE_DIED"
