"""A real headless Chromium, spoken to by the W3C WebDriver protocol, and a server status with everything in it."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import sin
from pathlib import Path
from typing import Any

import pytest

from pagegate.evidence.model import AccessMode, Failure
from pagegate.status import (
    Refusal,
    RegionStatus,
    ServerState,
    ServerStatus,
    SessionStatus,
    StatusPage,
    ThroughputPoint,
)
from pagegate.telemetry.records import EventRecord, SpanRecord, TraceRecorder

CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


class Browser:
    """The few WebDriver commands the tests need."""

    def __init__(self, driver: str, session: str) -> None:
        self._base = f"{driver}/session/{session}"

    def open(self, url: str) -> None:
        self._call("url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """Runs the body of a JavaScript function and returns what it returns."""
        return self._call("execute/sync", {"script": script, "args": list(arguments)})

    def wait_for(self, script: str, *arguments: object) -> Any:
        """Waits until the expression is true."""
        waiting = (
            "const done = arguments[arguments.length - 1], end = Date.now() + 20000;"
            f"const test = () => {{ let v = false; try {{ v = ({script}); }} catch (e) {{}}"
            "if (v || Date.now() > end) done(v); else setTimeout(test, 50); }; test();"
        )
        found = self._call("execute/async", {"script": waiting, "args": list(arguments)})
        assert found, f"never became true in the page: {script}"
        return found

    def viewport(self, width: int, height: int, *, dark: bool = False) -> None:
        self._cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._cdp("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = self._cdp("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def console(self) -> list[dict[str, Any]]:
        """What the browser logged since the last call."""
        return list(self._call("se/log", {"type": "browser"}))

    def _cdp(self, command: str, **parameters: object) -> Any:
        return self._call("goog/cdp/execute", {"cmd": command, "params": parameters})

    def _call(self, path: str, body: object) -> Any:
        return post(f"{self._base}/{path}", body)


def post(url: str, body: object) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["value"]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        message = "no Chromium: run .ci/setup chromium chromium-driver"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    driver = subprocess.Popen([chromedriver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert driver.stdout is not None
    try:
        port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        base = f"http://127.0.0.1:{port}"
        profile = tmp_path_factory.mktemp("chromium")
        options = {"binary": chromium, "args": [*CHROMIUM_FLAGS, f"--user-data-dir={profile}"]}
        capabilities = {
            "alwaysMatch": {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
                "timeouts": {"script": 30000},
            }
        }
        session = post(f"{base}/session", {"capabilities": capabilities})["sessionId"]
        try:
            yield Browser(base, session)
        finally:
            urllib.request.urlopen(
                urllib.request.Request(f"{base}/session/{session}", method="DELETE"), timeout=30
            ).close()
    finally:
        driver.terminate()
        driver.wait(timeout=10)
        driver.stdout.close()


class Stage:
    """A StatusSource whose status a test can change while the page shows it."""

    def __init__(self) -> None:
        self.current = busy_status()

    def status(self) -> ServerStatus:
        return self.current

    def change(self, **fields: Any) -> None:
        self.current = replace(self.current, **fields)


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def traces() -> TraceRecorder:
    recorder = TraceRecorder()
    for span in [*transfer_spans("a1" * 16, 0), *refused_spans("b2" * 16, 4_000_000_000)]:
        recorder.add(span)
    return recorder


@pytest.fixture
def page(stage: Stage, traces: TraceRecorder) -> Iterator[StatusPage]:
    with StatusPage(stage, traces) as running:
        yield running


@pytest.fixture
def shots() -> Path:
    """Where screenshots go: docs/img when PAGEGATE_SHOTS is set to 1, else nowhere that is kept."""
    return Path(__file__).parents[3] / "docs" / "img"


NOW = datetime(2026, 11, 3, 14, 30, 7, tzinfo=UTC)
MEASUREMENT = "3f7a8c21d0" * 9 + "5e19b4"
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


def busy_status() -> ServerStatus:
    tcb = {"bootloader": 4, "TEE": 0, "SNP": 24, "microcode": 219}
    return ServerStatus(
        name="pagegate-0",
        version="0.1.0",
        state=ServerState.SERVING,
        now=NOW,
        started_at=NOW - timedelta(hours=49, minutes=12),
        listening=("10.4.0.17:7443",),
        platform="AMD SEV-SNP guest, /dev/sev-guest, VMPL 0",
        simulated=False,
        policy="/etc/pagegate/policy.yaml",
        policy_digest="9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab",
        bridge="isolated, vaes256, memfd_secret",
        sessions=(
            session("trader-blue", "10.4.0.31:50112", "c0ffee11" * 4, 91, tcb, pages_in=1_843_200),
            session("trader-green", "10.4.0.32:41876", "5eed5eed" * 4, 2710, tcb, pages_in=524_288, pages_out=98_304),
            session(
                "risk-snapshot-reader", "10.4.2.9:33050", "0badcafe" * 4, 14, tcb, product="Genoa", pages_out=16_384
            ),
        ),
        sessions_total=1284,
        regions=(
            RegionStatus(
                "orderbook", 0x1_0000_0000, 262_144, 311, "memfd", NOW - timedelta(seconds=3), 176_128, 262_144
            ),
            RegionStatus(
                "market-data", 0x2_0000_0000, 1_048_576, 97, "/dev/shm/market-data", NOW - timedelta(minutes=4)
            ),
            RegionStatus("risk", 0x4_0000_0000, 16_384, 0, "file /var/lib/pagegate/risk"),
        ),
        refusals=(
            Refusal(
                NOW - timedelta(seconds=21),
                "EVIDENCE_REJECTED",
                "the peer's evidence failed 2 checks of policy identity trader-blue: update its firmware or the floor",
                peer_address="10.4.7.66:40122",
                identity="trader-blue",
                trace_id="b2" * 16,
                failures=(
                    Failure(
                        "SNP_TCB_BELOW_FLOOR",
                        "reported_tcb.snp",
                        "at least 24",
                        "21",
                        "AMD 56860, table 3; policy tcb.reported",
                        "update the SNP firmware of that host, then fetch its new VCEK",
                    ),
                    Failure(
                        "SNP_MEASUREMENT_UNKNOWN",
                        "measurement",
                        "one of 2 measurements",
                        MEASUREMENT,
                        "policy identities[0].measurements",
                        "compare with pagegate measure",
                    ),
                ),
            ),
            Refusal(
                NOW - timedelta(minutes=7),
                "PAGE_REPLAYED",
                "page record 88213 was seen before in this session: it was replayed on the way, or a proxy resent it",
                peer_address="10.4.0.31:50112",
                session_id="c0ffee11" * 4,
            ),
            Refusal(NOW - timedelta(hours=3), "NOT_ATTESTED", f"no session {HOSTILE}", peer_address="10.9.9.9:1234"),
        ),
        refusals_total=17,
        throughput=tuple(
            ThroughputPoint(
                NOW - timedelta(seconds=119 - i),
                1.0,
                int(2.1e8 + 9e7 * sin(i / 7) + 2e7 * sin(i * 1.7)),
                int(6e7 + 3e7 * sin(i / 11 + 2) + 8e6 * sin(i * 2.3)),
            )
            for i in range(120)
        ),
    )


def session(identity: str, peer: str, id: str, age: float, tcb: dict[str, int], **more: Any) -> SessionStatus:
    fields: dict[str, Any] = {"product": "Milan", "simulated": False, **more}
    return SessionStatus(
        id=id,
        peer_address=peer,
        identity=identity,
        evidence_type="sev-snp",
        measurement=MEASUREMENT,
        platform_id=id * 4,
        tcb=tcb,
        since=NOW - timedelta(seconds=age),
        expires_at=NOW + timedelta(seconds=3600 - age),
        grants={"orderbook": AccessMode.WRITE, "market-data": AccessMode.READ},
        **fields,
    )


def span(
    trace: str, ident: int, parent: int | None, name: str, service: str, begin: float, end: float, **more: Any
) -> SpanRecord:
    """Times in microseconds from the start of the trace's day."""
    start = int(NOW.timestamp()) * 10**9 - 9 * 10**9
    return SpanRecord(
        trace, f"{ident:016x}", None if parent is None else f"{parent:016x}", name, "internal", service,
        start + int(begin * 1000), start + int(end * 1000), **more,
    )  # fmt: skip


def transfer_spans(trace: str, at: int) -> list[SpanRecord]:
    c, s, base = "trader-blue", "pagegate-0", at / 1000
    spans = [
        span(trace, 1, None, "pagegate.client.send", c, base, base + 5210, attributes={"pagegate.region": "orderbook"}),
        span(trace, 2, 1, "pagegate.v1.PageTransfer/TransferPages", s, base + 420, base + 5080),
    ]
    for i in range(3):
        begin = base + 500 + 1300 * i
        spans += [
            span(trace, 10 + i * 10, 1, "pagegate.client.seal", c, begin - 400, begin),
            span(trace, 11 + i * 10, 2, "pagegate.server.batch", s, begin + 180, begin + 1200),
            span(trace, 12 + i * 10, 11 + i * 10, "pagegate.bridge.open", s, begin + 220, begin + 790),
            span(trace, 13 + i * 10, 11 + i * 10, "pagegate.server.stage", s, begin + 800, begin + 1180),
        ]
    return [*spans, span(trace, 90, 2, "pagegate.server.commit", s, base + 4610, base + 5040)]


def refused_spans(trace: str, at: int) -> list[SpanRecord]:
    s, base = "pagegate-0", at / 1000
    event = EventRecord("refused", 0, {"pagegate.reason": "EVIDENCE_REJECTED"})
    return [
        span(trace, 1, None, "pagegate.v1.Attestation/Attest", s, base, base + 4100, error=True),
        span(trace, 2, 1, "pagegate.server.endorse", s, base + 210, base + 820),
        span(
            trace, 3, 1, "pagegate.server.appraise", s, base + 830, base + 3900,
            error=True, message="2 checks failed [EVIDENCE_REJECTED]", events=(event,),
        ),
        span(trace, 4, 3, "pagegate.appraise.signature", s, base + 850, base + 2100),
        span(trace, 5, 3, "pagegate.appraise.chain", s, base + 2110, base + 3650),
        span(trace, 6, 3, "pagegate.appraise.policy", s, base + 3660, base + 3890),
    ]  # fmt: skip
