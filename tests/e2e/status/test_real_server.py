"""The status page of a real `pagegate serve`, in a real browser: a transfer, a refusal, a drain."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pagegate.client import Client
from pagegate.config import PeerConfig, PlatformName
from pagegate.connect import build_appraiser, build_platform
from pagegate.demo.run import CLIENT_WORKLOAD
from pagegate.errors import HandshakeError
from pagegate.platforms.simulated import SimulatedRoot
from support.certificates import self_signed
from support.pages import HandStream

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def client_of(site, simulated_root: SimulatedRoot) -> Callable[..., Any]:
    """client_of(address, workload): a client in this process, a context manager."""

    @contextmanager
    def make(address: str, workload: str = CLIENT_WORKLOAD) -> Iterator[Client]:
        config = PeerConfig(
            platform=PlatformName.SIMULATED,
            policy=site.policy,
            allow_simulated=True,
            simulated_root=simulated_root._directory,
            simulated_workload=workload,
            offline=True,
            state_dir=site.directory / "client",
        )
        with Client(
            address,
            platform=build_platform(config),
            appraiser=build_appraiser(config),
            regions={"book": "read-write"},
        ) as client:
            yield client

    return make


@pytest.fixture
def shown(site, serving):
    """A server with a status page: the process, and the page's address."""
    server = serving(*site.server_flags("book=16MiB@0x100000000"), "--status-listen=127.0.0.1:0", "--drain-seconds=60")
    line = server.process.stdout.readline()
    assert line.startswith("status page at http://127.0.0.1:")
    return server, line.removeprefix("status page at ").strip()


def text(browser, element: str) -> str:
    return browser.run("return document.querySelector(arguments[0]).innerText", element)


def test_page_when_a_peer_transfers_and_another_is_refused_then_shows_both(browser, shown, client_of, shots):
    server, url = shown
    browser.viewport(1280, 900)
    browser.open(url)
    with client_of(server.address) as client, client_of(server.address, "stranger") as stranger:
        client.send("book", os.urandom(16 << 20))
        client.read("book")
        with pytest.raises(HandshakeError, match="EVIDENCE_REJECTED"):
            stranger.attest()
        with HandStream(client, server.address, pages=4096) as stream:
            stream.begin()
            for _ in range(10):
                stream.batch(256)
            browser.wait_for("document.querySelector('#regions tr').innerText.includes('2,560 of 4,096 pages')")
            row = text(browser, "#sessions tr")
            for part in ("trading-engine", "sev-snp · Milan", "6,656 in", "4,096 out", "read-write book"):
                assert part in row
            browser.wait_for("/[1-9]/.test(document.getElementById('axis-peak').innerText)")
            browser.wait_for("/[ML]/.test(document.getElementById('line-in').getAttribute('d'))")
            browser.run("document.querySelector('#refusals summary').click()")
            refusal = text(browser, "#refusals")
            for part in ("EVIDENCE_REJECTED", "SNP_MEASUREMENT", "measurement"):
                assert part in refusal
            browser.wait_for("document.querySelector('#traces').innerText.includes('TransferPages')")
            browser.run(
                "[...document.querySelectorAll('#traces button')].find((b) => b.innerText.includes('TransferPages'))"
                ".click()"
            )
            browser.wait_for("document.getElementById('spans').innerText.includes('server.commit')")
            facts = text(browser, "#facts")
            for part in (server.address, str(client._bridge.info.gcm_kernel), "simulated"):
                assert part in facts
            if os.environ.get("PAGEGATE_SHOTS") == "1":
                (shots / "status-serve.png").write_bytes(browser.picture())


def test_page_when_the_server_drains_then_says_so(browser, shown, client_of):
    server, url = shown
    browser.open(url)
    with client_of(server.address) as client, HandStream(client, server.address, pages=2) as stream:
        stream.begin()
        browser.wait_for("document.getElementById('state').innerText.toLowerCase() === 'serving'")
        server.process.send_signal(signal.SIGTERM)
        browser.wait_for("document.getElementById('state').innerText.toLowerCase() === 'draining'")
        stream.batch(2)
        stream.commit()
        list(stream.answers())


def test_page_when_a_policy_is_refused_then_says_why(browser, shown, site):
    _, url = shown
    browser.open(url)
    site.policy.write_text("version: nonsense\n")
    browser.wait_for("!document.getElementById('policy-problem').hidden")
    assert "POLICY" in text(browser, "#policy-problem")


def test_page_when_a_certificate_is_refused_then_says_why(browser, site, serving):
    files = site.directory / "tls.crt", site.directory / "tls.key"
    for path, content in zip(files, self_signed(), strict=True):
        path.write_bytes(content)
    flags = ("--status-listen=127.0.0.1:0", f"--tls-cert={files[0]}", f"--tls-key={files[1]}")
    server = serving(*site.server_flags(), *flags)
    browser.open(server.process.stdout.readline().removeprefix("status page at ").strip())
    files[1].write_bytes(self_signed()[1])
    browser.wait_for("!document.getElementById('other-problems').hidden")
    assert "TLS_KEY_MISMATCH" in text(browser, "#other-problems")
