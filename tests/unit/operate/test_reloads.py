"""The account of what was loaded again, and the options that may be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from pagegate.config import ServeConfig
from pagegate.errors import ConfigError, PolicyError
from pagegate.operate.certificate import CertificateInForce
from pagegate.operate.options import OptionsInForce, flight_of, pace_of, server_options
from pagegate.operate.page import open_page, status_address
from pagegate.operate.reloads import Reloads
from pagegate.server import Server
from pagegate.telemetry import NO_TELEMETRY, Telemetry
from support.certificates import self_signed


@pytest.fixture
def reloads(telemetry: Telemetry) -> Reloads:
    made = Reloads(telemetry, clock=lambda: 1000.0)
    made.first("policy")
    return made


def test_loaded_when_changed_then_the_generation_grows_and_the_problem_goes(reloads: Reloads) -> None:
    reloads.refused("policy", PolicyError("POLICY", "line 3"))
    assert "line 3" in reloads.problem("policy")
    reloads.loaded("policy", "two identities")
    standing = reloads.standing("policy")
    assert standing is not None
    assert (standing.generation, standing.problem) == (2, "")


def test_loaded_when_it_is_the_same_then_the_generation_stays(reloads: Reloads) -> None:
    reloads.loaded("policy", "as before", changed=False)
    standing = reloads.standing("policy")
    assert standing is not None
    assert standing.generation == 1


def test_refused_when_seen_twice_then_said_once(reloads: Reloads, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        reloads.refused("policy", PolicyError("POLICY", "line 3"))
    assert caplog.text.count("the former one stays in force") == 1


def test_metrics_when_refused_then_tell_so(reloads: Reloads, scrape: Callable[[], list[str]]) -> None:
    reloads.publish()
    assert 'pagegate_reload_ok{pagegate_reload="policy"} 1' in scrape()
    reloads.refused("policy", PolicyError("POLICY", "line 3"))
    found = scrape()
    assert 'pagegate_reload_ok{pagegate_reload="policy"} 0' in found
    assert 'pagegate_reload_time_seconds{pagegate_reload="policy"} 1000' in found
    assert 'pagegate_reloads_total{pagegate_outcome="refused",pagegate_reload="policy"} 1' in found


def test_span_when_refused_then_carries_the_reason(reloads: Reloads, telemetry: Telemetry) -> None:
    reloads.refused("policy", PolicyError("POLICY_X", "line 3"))
    assert telemetry.recorder is not None
    (span,) = telemetry.recorder.traces()[0].spans
    assert (span.name, span.error) == ("pagegate.reload", True)


# ---- options ----------------------------------------------------------------------------


def test_flight_when_it_cannot_hold_two_batches_then_refused() -> None:
    with pytest.raises(ConfigError, match="two batches"):
        flight_of(ServeConfig(max_bytes_in_flight="1MiB"))


def test_pace_when_the_rate_is_zero_then_refused() -> None:
    with pytest.raises(ConfigError, match="slow_peer_rate"):
        pace_of(ServeConfig(slow_peer_rate="0"))


def test_server_options_when_configured_then_carry_every_limit() -> None:
    config = ServeConfig(
        max_streams=7,
        max_bytes_in_flight="16MiB",
        slow_peer_seconds=3,
        slow_peer_rate="1KiB",
        keepalive_seconds=5,
        keepalive_timeout=2,
        tls_overlap=60,
    )
    options = server_options(config, None)
    admission = options.admission
    assert (admission.max_streams, admission.max_bytes_in_flight) == (7, 16 << 20)
    assert (admission.pace.wait_s, admission.pace.bytes_per_s) == (3.0, 1024)
    assert (options.keepalive_s, options.keepalive_timeout_s, options.tls_overlap_s) == (5.0, 2.0, 60.0)


def test_reload_when_options_change_then_the_gate_has_them_and_the_rest_waits(server: Server) -> None:
    settled = ServeConfig()
    new = ServeConfig(max_bytes_in_flight="64MiB", slow_peer_seconds=2, drain_seconds=1, max_sessions=5)
    options = OptionsInForce(settled, lambda: new, Reloads(NO_TELEMETRY))
    options.reload(server)
    assert server.gate.flight.limit == 64 << 20
    assert server.gate.pace.wait_s == 2.0
    assert (options.config.drain_seconds, options.config.max_sessions) == (1.0, 256)


def test_reload_when_the_options_are_broken_then_nothing_changes(server: Server) -> None:
    def broken() -> ServeConfig:
        raise ConfigError("CONFIG_INVALID", "no")

    reloads = Reloads(NO_TELEMETRY)
    options = OptionsInForce(ServeConfig(), broken, reloads)
    before = server.gate.flight.limit
    options.reload(server)
    assert (server.gate.flight.limit, reloads.problem("config")) == (before, "no [CONFIG_INVALID]")


# ---- certificate ------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "tls.crt", tmp_path / "tls.key"
    for path, content in zip(paths, self_signed(), strict=True):
        path.write_bytes(content)
    return paths


def test_certificate_when_only_half_is_given_then_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="both"):
        CertificateInForce(ServeConfig(tls_cert=files[0]), Reloads(NO_TELEMETRY))


def test_certificate_when_its_files_change_then_the_server_has_it(
    serve: Callable[..., Server], files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    reloads = Reloads(NO_TELEMETRY)
    followed = CertificateInForce(ServeConfig(tls_cert=files[0], tls_key=files[1]), reloads)
    server = serve(tls=followed.tls)
    assert server.tls is not None
    before = server.tls.current
    for path, content in zip(files, self_signed(), strict=True):
        path.write_bytes(content)
    followed.tend(server, asked=False)
    assert server.tls.current != before
    assert server.tls.former() == (before.binding,)
    files[1].write_bytes(b"broken")
    followed.tend(server, asked=False)
    assert "TLS_KEY" in reloads.problem("tls")


def test_certificate_when_asked_without_a_change_then_says_so(
    serve: Callable[..., Server], files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    followed = CertificateInForce(ServeConfig(tls_cert=files[0], tls_key=files[1]), Reloads(NO_TELEMETRY))
    server = serve(tls=followed.tls)
    with caplog.at_level(logging.INFO, "pagegate.reload"):
        followed.tend(server, asked=True)
    assert "the same as before" in caplog.text


def test_certificate_when_there_is_no_tls_then_nothing_to_tend(server: Server) -> None:
    CertificateInForce(ServeConfig(), Reloads(NO_TELEMETRY)).tend(server, asked=True)
    assert server.tls is None


# ---- status page address ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "found"),
    [
        ("127.0.0.1:7480", ("127.0.0.1", 7480)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:9", ("localhost", 9)),
        (None, None),
    ],
)
def test_status_address_when_loopback_then_taken(listen: str | None, found: tuple[str, int] | None) -> None:
    assert status_address(ServeConfig(status_listen=listen)) == found


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.1.2.3:1", "status.example:1"])
def test_status_address_when_not_loopback_then_refused_unless_allowed(listen: str) -> None:
    with pytest.raises(ConfigError) as refused:
        status_address(ServeConfig(status_listen=listen))
    assert refused.value.reason == "STATUS_PUBLIC"
    assert status_address(ServeConfig(status_listen=listen, status_public=True))


@pytest.mark.parametrize("listen", ["127.0.0.1", ":80", "127.0.0.1:port", "127.0.0.1:65536", "127.0.0.1:-1"])
def test_status_address_when_it_is_none_then_says_what_to_write(listen: str) -> None:
    with pytest.raises(ConfigError) as refused:
        status_address(ServeConfig(status_listen=listen))
    assert refused.value.reason == "ADDRESS"


def test_open_page_when_off_then_none() -> None:
    assert open_page(ServeConfig(), None, None) is None  # type: ignore[arg-type]
