"""What dashboards and alerts ask for is what a real server exports; a real Prometheus answers each query."""

from __future__ import annotations

import http
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pagegate.client import Client
from pagegate.errors import HandshakeError
from pagegate.host.events import parse_line
from pagegate.operate.kernel import measured
from pagegate.rpc.tls import ClientTls
from pagegate.telemetry import Telemetry, TelemetrySettings
from support.appraiser import appraiser_for
from support.certificates import self_signed
from support.platforms import Guests

from .conftest import DEPLOY, ROOT, VALUES, free_port, running_pod

promql = pytest.importorskip("promql_parser", reason="run .ci/deploy")

DASHBOARDS = sorted((DEPLOY / "dashboards").glob("*.json"))
TARGET_LABELS = {"instance", "job"}  # given by Prometheus itself
FAULT = "SEV-SNP: RMPUPDATE failed for PFN 1234, pg_level: 0, ret: 3"


def queries(dashboard: Path) -> list[tuple[str, str, str]]:
    """(panel, legend, query) of a dashboard, Grafana's variables filled in."""
    panels = json.loads(dashboard.read_text())["panels"]
    return [
        (
            panel["title"],
            target["legendFormat"],
            target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m"),
        )
        for panel in panels
        for target in panel["targets"]
    ]


def alert_queries() -> list[tuple[str, str]]:
    groups = yaml.safe_load((DEPLOY / "alerts" / "pagegate.rules.yaml").read_text())["groups"]
    return [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def targets(render, simulated_root, tmp_path_factory) -> Iterator[dict[str, str]]:
    """Scrape texts by host:port: a server over TLS after a transfer and a refusal, and a watched kernel's fault."""
    directory = tmp_path_factory.mktemp("exporting")
    certificate, key = self_signed()
    (directory / "tls.crt").write_bytes(certificate)
    (directory / "tls.key").write_bytes(key)
    cache = directory / "endorsements.sqlite"
    amd = ROOT / "service" / "pagegate" / "evidence" / "snp" / "amd"
    pagegate("endorsements", "import", str(amd), "--cache", str(cache))
    policy = (
        "version: 1\nidentities:\n  - name: client\n"
        f"    measurements: ['{Guests.measurement('client').hex()}']\n    regions: {{book: read-write}}\n"
    )
    options = {
        "tls_cert": str(directory / "tls.crt"),
        "tls_key": str(directory / "tls.key"),
        "watch_host": True,
        "endorsement_cache": str(cache),
    }
    manifests = render("-f", VALUES / "plain.yaml")
    guests = Guests(simulated_root)
    believes = appraiser_for(simulated_root, {"page-server": {"*": "read-write"}})
    kernel = Telemetry.start(TelemetrySettings("kernel", prometheus_port=free_port()))
    with running_pod(manifests, directory, simulated_root._directory, policy, **options) as pod:
        try:
            event = parse_line(f"<3>1,2,3,-;{FAULT}")
            assert event is not None
            with measured(event, kernel):
                pass

            def client(label: str) -> Client:
                return Client(
                    pod.address,
                    platform=guests(label),
                    appraiser=believes,
                    regions={"book": "read-write"},
                    tls=ClientTls.pinned(directory / "tls.crt"),
                )

            with client("stranger") as stranger, pytest.raises(HandshakeError):
                _ = stranger.session
            with client("client") as sender:
                sender.send("book", bytes(1 << 20))
                sender.read("book")
                deadline = time.monotonic() + 30
                while "pagegate_peers{" not in pod.scrape() or "pagegate_own_" not in pod.scrape():
                    assert time.monotonic() < deadline, pod.scrape()
                    time.sleep(0.2)
                host = f"127.0.0.1:{kernel.prometheus_port}"
                with urllib.request.urlopen(f"http://{host}/metrics", timeout=10) as answer:
                    watched = answer.read().decode()
                yield {pod.metrics.split("/")[2]: pod.scrape(), host: watched}
        finally:
            kernel.shutdown()


def pagegate(*arguments: str) -> None:
    import sys

    subprocess.run([sys.executable, "-m", "pagegate", *arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def exported(targets) -> dict[str, set[str]]:
    """Name of each series that is exported, and its labels."""
    found: dict[str, set[str]] = {"up": set()}
    for text in targets.values():
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def prometheus(tools: Path, targets, tmp_path_factory) -> Iterator[str]:
    """A real Prometheus that has scraped the targets a few times; gives its address."""
    directory = tmp_path_factory.mktemp("prometheus")
    address = f"127.0.0.1:{free_port()}"
    scrape = {"job_name": "pagegate", "scrape_interval": "1s", "static_configs": [{"targets": list(targets)}]}
    (directory / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
    command = [
        tools / "bin" / "prometheus",
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    ]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 60
            while len(ask(address, "count_over_time(up[1m]) >= 3 and up == 1")) < len(targets):
                assert time.monotonic() < deadline
                time.sleep(0.3)
            yield address
        finally:
            process.terminate()


def ask(address: str, query: str) -> list[Any]:
    """The result of an instant query; empty while nothing answers, or Prometheus says that it is starting."""
    url = f"http://{address}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return list(json.loads(answer.read())["data"]["result"])
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:
            return []
        pytest.fail(f"{query}: {error.read().decode()}")
    except OSError:
        return []


def check(expression: Any, exported: dict[str, set[str]]) -> set[str]:
    """Labels that the result may have; fails on a name or label that is not exported."""
    match expression:
        case promql.VectorSelector():
            assert expression.name in exported, f"{expression.name} is not exported"
            known = exported[expression.name] | TARGET_LABELS
            asked = {matcher.name for matcher in expression.matchers.matchers}
            assert asked <= known, f"{expression.name} has no label {asked - known}"
            return known
        case promql.MatrixSelector():
            return check(expression.vector_selector, exported)
        case promql.AggregateExpr():
            inner = check(expression.expr, exported)
            by = set(expression.modifier.labels) if expression.modifier else set()
            assert by <= inner, f"nothing under {expression} has {by - inner}"
            return by
        case promql.Call():
            labels = [check(argument, exported) for argument in expression.args if not isinstance(argument, _LITERALS)]
            made = {expression.args[1].val} if expression.func.name == "label_replace" else set()
            dropped = {"le"} if expression.func.name == "histogram_quantile" else set()
            return set().union(*labels) - dropped | made
        case promql.BinaryExpr():
            sides = [check(side, exported) for side in (expression.lhs, expression.rhs)]
            return set().union(*sides)
        case promql.ParenExpr() | promql.UnaryExpr():
            return check(expression.expr, exported)
        case promql.NumberLiteral():
            return set()
    raise AssertionError(f"not understood: {expression!r}")


_LITERALS = (promql.NumberLiteral, promql.StringLiteral)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_when_it_asks_uses_names_and_labels_that_are_exported(dashboard, exported):
    for panel, legend, query in queries(dashboard):
        labels = check(promql.parse(query), exported)
        assert set(re.findall(r"{{(\w+)}}", legend)) <= labels, panel


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_when_a_real_prometheus_is_asked_has_something_in_every_panel(dashboard, prometheus):
    for panel, _, query in queries(dashboard):
        assert ask(prometheus, query), f"{panel}: {query}"


@pytest.mark.parametrize(("alert", "query"), alert_queries(), ids=[alert for alert, _ in alert_queries()])
def test_alert_when_it_asks_uses_names_and_labels_that_are_exported(alert, query, exported):
    check(promql.parse(query), exported)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("pagegate_nonsense", "is not exported"),
        ("rate(pagegate_refusals_total{reason='x'}[5m])", "has no label"),
        ("sum by (pagegate_reasn) (pagegate_refusals_total)", "nothing under"),
    ],
)
def test_query_when_it_asks_for_what_is_not_there_is_caught(query, says, exported):
    with pytest.raises(AssertionError, match=says):
        check(promql.parse(query), exported)


def test_dashboards_when_made_again_are_the_files():
    import importlib.util

    spec = importlib.util.spec_from_file_location("generate", DEPLOY / "dashboards" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    made = {f"{name}.json": generate.render(dashboard) for name, dashboard in generate.dashboards().items()}
    assert made == {path.name: path.read_text() for path in DASHBOARDS}, "run python deploy/dashboards/generate.py"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_when_read_by_grafanas_own_model_keeps_every_field(dashboard):
    plugins = pytest.importorskip("grafana_foundation_sdk.cog.plugins", reason="run .ci/deploy")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    given = json.loads(dashboard.read_text())
    kept = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(given)))
    # A copy of the query that Grafana shows in its list of variables; the model leaves it out.
    assert lost(given, kept) == ["/templating/list/1/definition"]


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Paths in `given` that `kept` has not, or has otherwise."""
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        given, kept = dict(enumerate(given)), dict(enumerate(kept))
    if isinstance(given, dict) and isinstance(kept, dict):
        return [
            found
            for key, value in given.items()
            for found in (lost(value, kept[key], f"{path}/{key}") if key in kept else [f"{path}/{key}"])
        ]
    return [] if given == kept else [path]


def test_dashboards_when_listed_are_the_four():
    assert [path.stem for path in DASHBOARDS] == [
        "attestation-and-refusals",
        "fleet-overview",
        "transfer-performance",
        "trust",
    ]
