"""The status page as an operator sees it, in a real browser."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest

from pagegate.status import ServerState

pytestmark = pytest.mark.timeout(180)

SHOWN = "document.querySelectorAll('#sessions tr').length === 3"

# Every element with text of its own, with the contrast of its colour against what lies behind it (WCAG 2.2, 1.4.3).
LOW_CONTRAST = """
const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const lum = (c) => { const f = c.map((v) => linear(v / 255));
  return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
const rgba = (s) => { const n = s.match(/[\\d.]+/g).map(Number); return n.length === 3 ? [...n, 1] : n; };
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3] === 1) return c.slice(0, 3);
  }
  return [255, 255, 255]; };
const low = [];
let seen = 0;
for (const e of document.body.querySelectorAll('*')) {
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
  const style = getComputedStyle(e), a = lum(rgba(style.color).slice(0, 3)), b = lum(behind(e));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  seen += 1;
  if (ratio < 4.5) low.push(`${e.tagName}.${e.className} ${e.textContent.slice(0, 20)} ${ratio.toFixed(2)}`);
}
return [seen, low];
"""

# Of each hop in the waterfall: its words, and where its bar begins and how long it is, as parts of the time line.
BARS = """
return [...document.querySelectorAll('#spans li')].map((row) => {
  const rail = row.querySelector('.rail').getBoundingClientRect();
  const bar = row.querySelector('.bar').getBoundingClientRect();
  return [row.innerText, (bar.left - rail.left) / rail.width, bar.width / rail.width];
});
"""


def opened(browser, page, *, width=1280, height=900, dark=False, ready=SHOWN):
    browser.viewport(width, height, dark=dark)
    browser.open(page.url)
    browser.wait_for(ready)


def body(browser) -> str:
    return browser.run("return document.body.innerText")


def simulate(stage) -> None:
    sessions = tuple(replace(session, simulated=index < 2) for index, session in enumerate(stage.current.sessions))
    stage.change(simulated=True, platform="simulated chip SIM-1", sessions=sessions)


def test_page_when_open_then_shows_sessions_identities_and_tcb(browser, page):
    opened(browser, page)
    row = browser.run("return document.querySelector('#sessions tr').innerText")
    for shown in (
        "trader-blue",
        "10.4.0.31:50112",
        "sev-snp · Milan",
        "microcode 219",
        "write orderbook",
        "1,843,200 in",
    ):
        assert shown in row


def test_page_when_open_then_shows_regions_and_a_running_transfer(browser, page):
    opened(browser, page)
    row = browser.run("return document.querySelector('#regions tr').innerText")
    for shown in ("orderbook", "0x100000000", "1.00 GiB", "311", "67 % verified", "176,128 of 262,144 pages"):
        assert shown in row


def test_page_when_open_then_shows_throughput_now(browser, page, stage):
    opened(browser, page)
    newest = stage.current.throughput[-1]
    assert f"{newest.bytes_in * 8 / 1e9:.2f}" in browser.run("return document.getElementById('figure-in').textContent")
    assert browser.run("return document.getElementById('line-in').getAttribute('d').match(/[ML]/g).length") == 120


def test_page_when_nothing_external_then_browser_logs_nothing(browser, page):
    browser.console()
    opened(browser, page)
    assert browser.console() == []
    loaded = browser.run("return performance.getEntriesByType('resource').map((e) => new URL(e.name).origin)")
    assert set(loaded) == {page.url.rstrip("/")}


def test_refusal_when_opened_then_shows_every_failed_check_and_keeps_open(browser, page, stage):
    opened(browser, page)
    browser.run("document.querySelector('#refusals summary').click()")
    stage.change(sessions_total=2000)
    browser.wait_for("document.getElementById('note-sessions').textContent.startsWith('2,000')")
    why = browser.run("return document.querySelector('#refusals details[open]').innerText")
    for shown in (
        "SNP_TCB_BELOW_FLOOR",
        "reported_tcb.snp",
        "at least 24",
        "AMD 56860, table 3",
        "SNP_MEASUREMENT_UNKNOWN",
    ):
        assert shown in why


def test_refusal_when_its_trace_is_asked_for_then_waterfall_shows_it(browser, page):
    opened(browser, page)
    browser.run("document.querySelectorAll('#traces button')[1].click()")
    assert browser.run("return document.getElementById('trace-name').textContent") == "client.send"
    browser.run(
        "document.querySelector('#refusals summary').click(); document.querySelector('#refusals button.link').click()"
    )
    assert "b2b2b2" in browser.run("return document.getElementById('trace-about').textContent")


def test_waterfall_when_two_processes_then_bars_lie_on_one_time_line(browser, page):
    opened(browser, page)
    browser.run("document.querySelectorAll('#traces button')[1].click()")
    bars = browser.run(BARS)
    assert "trader-blue" in bars[0][0]
    assert bars[0][1:] == pytest.approx([0, 1], abs=0.01)
    commit = next(bar for bar in bars if "server.commit" in bar[0])
    assert commit[1:] == pytest.approx([4610 / 5210, 430 / 5210], abs=0.01)


def test_hostile_text_when_shown_then_is_text_only(browser, page):
    opened(browser, page)
    time.sleep(0.3)
    assert 'onerror="document.title' in body(browser)
    assert browser.run("return document.querySelectorAll('#refusals img').length") == 0
    assert "owned" not in browser.run("return document.title")


def test_page_when_all_is_real_then_no_simulated_banner(browser, page):
    opened(browser, page)
    assert not browser.run("return document.getElementById('simulated').checkVisibility()")


def test_page_when_something_is_simulated_then_a_loud_banner_says_so(browser, page, stage):
    simulate(stage)
    opened(browser, page)
    assert browser.run("return document.getElementById('simulated').checkVisibility()")
    banner = browser.run("return document.getElementById('simulated').innerText")
    assert "SIMULATED" in banner
    assert "this server's platform and 2 of 3 sessions" in banner
    assert browser.run("return document.querySelectorAll('#sessions .simulated-tag').length") == 2


def test_page_when_scrolled_then_simulated_banner_stays_in_view(browser, page, stage):
    simulate(stage)
    opened(browser, page, height=500)
    browser.run("scrollTo(0, 900)")
    assert browser.run("return document.getElementById('simulated').getBoundingClientRect().top") == 0


def test_page_when_the_server_changes_then_follows(browser, page, stage):
    opened(browser, page)
    stage.change(
        state=ServerState.DRAINING, policy_problem="policy.yaml line 3: unknown key 'measurments'", sessions=()
    )
    browser.wait_for("document.getElementById('state').textContent === 'draining'")
    shown = body(browser)
    assert "unknown key 'measurments'" in shown
    assert "No attested peer is connected." in shown


def test_page_when_the_server_goes_away_then_says_that_values_are_old(browser, page):
    opened(browser, page)
    page.close()
    browser.wait_for("document.getElementById('contact').dataset.contact === 'lost'")
    assert "values are old" in body(browser)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_text_when_measured_then_has_contrast_of_wcag_aa(browser, page, stage, dark, width):
    simulate(stage)
    opened(browser, page, width=width, dark=dark)
    browser.run("document.querySelector('#refusals summary').click()")
    seen, low = browser.run(LOW_CONTRAST)
    assert seen > 100
    assert low == []


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_page_when_narrow_then_does_not_scroll_sideways(browser, page, stage, width):
    simulate(stage)
    opened(browser, page, width=width)
    browser.run("for (const d of document.querySelectorAll('details')) d.open = true")
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_page_when_used_by_keyboard_then_everything_that_acts_can_be_focused_and_named(browser, page):
    opened(browser, page)
    nameless = browser.run(
        "return [...document.querySelectorAll('a, button, summary, [tabindex]')].filter((e) => e.checkVisibility()"
        " && !e.innerText.trim() && !e.getAttribute('aria-label')).map((e) => e.outerHTML)"
    )
    assert nameless == []
    assert browser.run(
        "return document.querySelector('table th[scope=col]') !== null && document.documentElement.lang === 'en'"
    )


@pytest.mark.skipif(os.environ.get("PAGEGATE_SHOTS") != "1", reason="PAGEGATE_SHOTS=1 remakes the pictures of docs/img")
@pytest.mark.parametrize(
    ("name", "width", "height", "dark", "simulated"),
    [
        ("status-light", 1280, 900, False, False),
        ("status-dark", 1280, 900, True, False),
        ("status-phone", 375, 812, False, True),
    ],
)
def test_screenshots_when_asked_for_then_are_remade(browser, page, stage, shots, name, width, height, dark, simulated):
    if simulated:
        simulate(stage)
    opened(browser, page, width=width, height=height, dark=dark)
    browser.run("document.querySelector('#refusals summary').click()")
    browser.wait_for("document.querySelectorAll('#spans li').length > 3")
    (shots / f"{name}.png").write_bytes(browser.picture())
