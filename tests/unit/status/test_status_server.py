"""The status page's web server: what it answers, and to whom."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from pagegate.errors import ConfigError
from pagegate.status import Refusal, ServerState, ServerStatus, SessionStatus, StatusPage, ThroughputPoint
from pagegate.status import server as server_module
from pagegate.status.view import MAX_REFUSALS, MAX_SPANS, status_json
from pagegate.telemetry.records import SpanRecord, TraceRecord

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)


def make_status(**fields: object) -> ServerStatus:
    known: dict[str, object] = {
        "name": "pagegate-0",
        "version": "0.1.0",
        "state": ServerState.SERVING,
        "now": NOW,
        "started_at": NOW - timedelta(minutes=1),
        "listening": ("127.0.0.1:7443",),
        "platform": "simulated",
        "simulated": True,
        "policy": "policy.yaml",
        "policy_digest": "00",
    }
    return ServerStatus(**{**known, **fields})  # type: ignore[arg-type]


class Source:
    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None

    def status(self) -> ServerStatus:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return make_status(sessions_total=self.asked)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def page(source: Source) -> Iterator[StatusPage]:
    with StatusPage(source) as running:
        yield running


def ask(
    page: StatusPage, path: str, *, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host if host is not None else f"127.0.0.1:{page.port}")
        connection.endheaders()
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def raw(page: StatusPage, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as peer:
        peer.sendall(data)
        got = b""
        while chunk := peer.recv(65536):
            got += chunk
    return got


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/app.js", "text/javascript"), ("/style.css", "text/css"), ("/icon.svg", "image/svg+xml")],
)
def test_file_when_asked_for_then_is_served_with_its_type(page: StatusPage, path: str, kind: str) -> None:
    status, headers, body = ask(page, path)
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind)
    assert len(body) == int(headers["Content-Length"]) > 100


def test_answer_when_given_then_forbids_everything_from_elsewhere(page: StatusPage) -> None:
    _, headers, _ = ask(page, "/")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "no-store"


def test_files_when_read_then_name_no_other_host(page: StatusPage) -> None:
    for path in ("/", "/app.js", "/style.css"):
        assert b"http" not in ask(page, path)[2].replace(b"http-equiv", b""), path


def test_status_when_asked_for_then_is_json(page: StatusPage) -> None:
    status, headers, body = ask(page, "/api/status?x=1")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body)["server"]["uptime_s"] == 60


def test_status_when_asked_often_then_source_is_asked_once(page: StatusPage, source: Source, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "FRESH_FOR", 60)
    bodies = {ask(page, "/api/status")[2] for _ in range(5)}
    assert (len(bodies), source.asked) == (1, 1)


def test_status_when_source_fails_then_500_without_its_words_and_page_lives(
    page: StatusPage, source: Source, caplog
) -> None:
    source.error = RuntimeError("secret inside")
    status, _, body = ask(page, "/api/status")
    assert status == 500
    assert b"secret" not in body
    assert ask(page, "/")[0] == 200


def test_head_when_asked_then_gives_no_body(page: StatusPage) -> None:
    status, headers, body = ask(page, "/", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 100


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_method_when_not_reading_then_405(page: StatusPage, method: str) -> None:
    status, headers, _ = ask(page, "/", method=method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/nothing", "/../server.py", "/page/index.html", "/style.css/", "/%2e%2e/model.py"])
def test_path_when_unknown_then_404(page: StatusPage, path: str) -> None:
    assert ask(page, path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "[::1.evil]", "127.0.0.1.evil.example"]
)
def test_host_when_foreign_name_then_421(page: StatusPage, host: str) -> None:
    status, _, body = ask(page, "/api/status", host=host)
    assert status == 421
    assert b"pagegate-0" not in body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80", "10.0.0.7:9090"])
def test_host_when_own_name_or_address_then_answers(page: StatusPage, host: str) -> None:
    assert ask(page, "/api/status", host=host)[0] == 200


def test_host_when_allowed_by_option_then_answers(source: Source) -> None:
    with StatusPage(source, allowed_hosts=("pagegate-0.pagegate.svc",)) as page:
        assert ask(page, "/", host="Pagegate-0.pagegate.svc:8080")[0] == 200


def test_host_when_given_twice_then_421(page: StatusPage) -> None:
    assert b" 421 " in raw(page, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\xff\x00",
    ],
    ids=["empty", "garbage", "version", "long", "tls"],
)
def test_request_when_malformed_then_page_goes_on_serving(page: StatusPage, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as peer:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
    assert ask(page, "/")[0] == 200


def test_connections_when_too_many_then_the_next_is_turned_away(source: Source, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    with StatusPage(source) as page:
        idle = [socket.create_connection(("127.0.0.1", page.port), timeout=10) for _ in range(2)]
        try:
            with socket.create_connection(("127.0.0.1", page.port), timeout=10) as third:
                assert third.recv(1) == b""
        finally:
            for peer in idle:
                peer.close()


def test_connection_when_silent_then_is_cut_off(source: Source, monkeypatch) -> None:
    monkeypatch.setattr(server_module._Handler, "timeout", 0.2)
    with StatusPage(source) as page, socket.create_connection(("127.0.0.1", page.port), timeout=10) as peer:
        assert peer.recv(1) == b""


def test_start_when_port_is_taken_then_config_error(page: StatusPage, source: Source) -> None:
    with pytest.raises(ConfigError, match="choose another port") as caught:
        StatusPage(source, port=page.port)
    assert caught.value.reason == "STATUS_ADDRESS"


def test_url_when_ipv6_then_has_brackets(source: Source) -> None:
    with StatusPage(source, host="::1") as page:
        assert page.url == f"http://[::1]:{page.port}/"


def test_json_when_session_is_simulated_then_is_counted() -> None:
    session = SessionStatus("aa", "1.2.3.4:5", "t", "sev-snp", "00", "", {"SNP": 8}, simulated=True, since=NOW)
    data = status_json(make_status(sessions=(session, session)), ())
    assert (data["simulated_sessions"], data["sessions_live"]) == (2, 2)


def test_json_when_many_refusals_then_is_bounded() -> None:
    refusals = tuple(Refusal(NOW, "TAMPERED", "x") for _ in range(MAX_REFUSALS + 5))
    data = status_json(make_status(refusals=refusals), ())
    assert isinstance(data["refusals"], list)
    assert len(data["refusals"]) == MAX_REFUSALS


def test_json_when_trace_is_long_then_says_how_many_spans_are_missing() -> None:
    spans = tuple(
        SpanRecord("a" * 32, f"{i:016x}", None, "pagegate.server.batch", "internal", "s", i, i + 1)
        for i in range(MAX_SPANS + 7)
    )
    data = status_json(make_status(), [TraceRecord("a" * 32, spans, dropped=3)])
    assert isinstance(data["traces"], list)
    assert data["traces"][0]["dropped_spans"] == 10
    assert len(data["traces"][0]["spans"]) == MAX_SPANS


def test_json_when_interval_is_not_a_second_then_rate_is_per_second() -> None:
    data = status_json(make_status(throughput=(ThroughputPoint(NOW, 2.0, 1000, 0),)), ())
    assert data["throughput"] == [{"ago_s": 0.0, "in_bps": 4000.0, "out_bps": 0.0}]
