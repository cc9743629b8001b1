"""The Helm chart, rendered by Helm for every values file and checked against Kubernetes' own schemas."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from .conftest import CHART, DEPLOY, KUBERNETES, VALUES

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="run .ci/deploy")

SITES = ["plain", "ec2", "aks", "bare-metal"]
MINIMAL = ("--set", "regions[0].name=book,regions[0].size=1MiB", "--set", "policy.existingConfigMap=p")
SERVE_OPTIONS = json.loads((CHART / "values.schema.json").read_text())["properties"]["options"]["properties"]


def one(manifests, kind: str):
    found = [manifest for manifest in manifests if manifest["kind"] == kind]
    assert len(found) == 1, [manifest["kind"] for manifest in manifests]
    return found[0]


def pod_of(manifests):
    return one(manifests, "StatefulSet")["spec"]["template"]["spec"]


def serve_file(manifests) -> dict:
    maps = [m for m in manifests if m["kind"] == "ConfigMap" and "serve.yaml" in m["data"]]
    return yaml.safe_load(maps[0]["data"]["serve.yaml"])


@pytest.mark.parametrize("site", SITES)
def test_chart_when_rendered_for_a_site_is_valid_for_kubernetes(render, custom_schemas, site):
    manifests = render("-f", VALUES / f"{site}.yaml")
    kinds = {manifest["kind"] for manifest in manifests}
    assert {"StatefulSet", "Service", "NetworkPolicy", "ServiceAccount", "ConfigMap"} <= kinds
    for manifest in manifests:
        schema = custom_schemas.get((manifest["apiVersion"], manifest["kind"]))
        if schema is not None:
            jsonschema.validate(manifest, schema)
        else:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        (("--set", "snp.nodeFeatureRule=true"), "NodeFeatureRule"),
        (("--set", "metrics.serviceMonitor.enabled=true"), "ServiceMonitor"),
        (("--set", "metrics.prometheusRule.enabled=true"), "PrometheusRule"),
        (("--set", "tls.mode=certManager,tls.issuerRef.name=i"), "Certificate"),
    ],
)
def test_chart_when_a_custom_resource_is_asked_for_has_a_schema_that_refuses_a_typo(
    render, custom_schemas, extra, kind
):
    manifest = one(render(*MINIMAL, *extra), kind)
    schema = custom_schemas[manifest["apiVersion"], kind]
    jsonschema.validate(manifest, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**manifest, "spec": {**manifest["spec"], "typo": 1}}, schema)


def test_chart_when_linted_strictly_has_no_finding(tool):
    done = tool("helm", "lint", "--strict", CHART, "-f", VALUES / "ec2.yaml", f"--kube-version={KUBERNETES}.0")
    assert done.returncode == 0, done.stdout


def test_chart_when_packaged_renders_the_same(tool, helm, tmp_path: Path):
    # Alerts and dashboards are links out of the chart's folder: the package must hold what they lead to.
    assert tool("helm", "package", CHART, "--destination", tmp_path).returncode == 0
    (package,) = tmp_path.glob("*.tgz")
    everything = ("-f", VALUES / "bare-metal.yaml", f"--kube-version={KUBERNETES}.0", "--namespace=ns")
    assert tool("helm", "template", "t", package, *everything).stdout == helm("-f", VALUES / "bare-metal.yaml").stdout


def test_sites_when_listed_are_those_that_are_tested():
    assert sorted(path.stem for path in VALUES.glob("*.yaml")) == sorted(SITES)


@pytest.mark.parametrize(
    "given",
    [
        ("--set", "replcias=3"),
        ("--set", "options.drain_secs=3"),
        ("--set", "snp.device.mode=deviceplugin"),
        ("--set", "tls.modus=none"),
        ("--set", "regions[0].sise=1MiB"),
        ("--set", "regions[0].size=1 MiB"),
        ("--set", "networkPolicy.clients[0].podSelectr.a=b"),
        ("--set", "image.digest=sha256:12"),
        ("--set", "resources.limits.memory=lots"),
        ("--set", "metrics.port=7444"),
    ],
)
def test_values_when_mistyped_are_refused_by_the_schema(helm, given):
    done = helm(*MINIMAL, *given)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "nothing to serve"),
        (("--set", "regions[0].name=book,regions[0].size=1MiB"), "no policy"),
        ((*MINIMAL, "--set", "policy.content=x"), "not both"),
        ((*MINIMAL, "--set", "tls.mode=secret"), "tls.secretName"),
        ((*MINIMAL, "--set", "tls.mode=certManager"), "tls.issuerRef.name"),
        ((*MINIMAL, "--set", "snp.device.mode=hostPath"), "acceptPrivileged"),
        ((*MINIMAL, "--set", "runtimeClass.create=true"), "runtimeClass.name"),
    ],
)
def test_values_when_something_is_missing_say_what_to_set(helm, given, says):
    done = helm(*given)
    assert done.returncode != 0
    assert says in done.stderr


def test_options_when_compared_with_serve_are_real_options():
    from pagegate.config import ServeConfig

    fields = ServeConfig.model_fields
    assert set(SERVE_OPTIONS) <= set(fields)
    kinds = {bool: "boolean", int: "integer", float: "number"}
    for name, schema in SERVE_OPTIONS.items():
        given = schema.get("type", "string")  # an enum or a size
        assert given == kinds.get(fields[name].annotation, "string"), name


def test_options_when_all_are_set_are_accepted_by_pagegate(render, tmp_path: Path):
    from pagegate.config import ServeConfig, load

    samples = {"boolean": True, "integer": 64, "number": 0.5}
    named = {"kds_url": "https://kds", "otlp_endpoint": "http://c:4317", "status_listen": "127.0.0.1:7480"}
    given = {
        name: named.get(name)
        or (
            schema["enum"][0] if "enum" in schema else "64MiB" if "$ref" in schema else samples.get(schema["type"], "x")
        )
        for name, schema in SERVE_OPTIONS.items()
    } | {"keepalive_seconds": 9, "keepalive_timeout": 9}
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(serve_file(render(*MINIMAL, "--set-json", f"options={json.dumps(given)}"))))
    config = load(ServeConfig, {}, file).model_dump(mode="json")
    assert {name: config[name] for name in given} == given


@pytest.mark.parametrize("site", SITES)
def test_serve_file_when_rendered_is_accepted_by_pagegate(render, site, tmp_path: Path):
    from pagegate.config import ServeConfig, load

    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(serve_file(render("-f", VALUES / f"{site}.yaml"))))
    config = load(ServeConfig, {}, file)
    assert config.regions()
    assert config.listen == "0.0.0.0:7443"


@pytest.mark.parametrize("site", ["plain", "ec2"])
def test_policy_when_given_in_values_is_usable(render, site, tmp_path: Path):
    from pagegate.evidence.policy import load_policy

    maps = [m for m in render("-f", VALUES / f"{site}.yaml") if m["kind"] == "ConfigMap" and "policy.yaml" in m["data"]]
    file = tmp_path / "policy.yaml"
    file.write_text(maps[0]["data"]["policy.yaml"])
    assert load_policy(file).identities


@pytest.fixture(scope="session")
def findings(tools: Path):
    """findings(level, manifests): what Kubernetes' own Pod Security admission has against the pod."""

    def judge(level: str, manifests) -> list[str]:
        template = one(manifests, "StatefulSet")["spec"]["template"]
        command = [tools / "bin" / "podsecurity", level]
        done = subprocess.run(command, input=json.dumps(template), capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    return judge


@pytest.mark.parametrize("site", SITES)
def test_pod_when_rendered_for_a_site_keeps_restricted_pod_security(render, findings, site):
    manifests = render("-f", VALUES / f"{site}.yaml")
    assert findings("restricted", manifests) == []
    (container,) = pod_of(manifests)["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True  # beyond `restricted`


def test_pod_when_the_device_is_a_host_path_is_privileged_only_because_it_was_said(render, findings):
    manifests = render(*MINIMAL, "--set", "snp.device.mode=hostPath,snp.device.acceptPrivileged=true")
    assert any(finding.startswith("privileged:") for finding in findings("baseline", manifests))
    pod = pod_of(manifests)
    assert pod["containers"][0]["securityContext"]["privileged"] is True
    assert {"name": "sev-guest", "hostPath": {"path": "/dev/sev-guest", "type": "CharDevice"}} in pod["volumes"]


def test_pod_when_the_device_comes_by_a_plugin_asks_for_one(render):
    (container,) = pod_of(render(*MINIMAL))["containers"]
    assert container["resources"]["limits"]["squat.ai/sev-guest"] == 1


@pytest.mark.parametrize(
    ("guest", "label"),
    [
        ("node", "feature.node.kubernetes.io/sev-guest"),
        ("pod", "feature.node.kubernetes.io/cpu-security.sev.snp.enabled"),
    ],
)
def test_pod_when_snp_is_of_node_or_pod_is_bound_to_such_nodes(render, guest, label):
    pod = pod_of(render(*MINIMAL, "--set", f"snp.guest={guest}"))
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": label, "operator": "In", "values": ["true"]}]}


def test_label_when_made_by_the_rule_is_the_one_that_pods_ask_for(render):
    manifests = render(*MINIMAL, "--set", "snp.nodeFeatureRule=true")
    (rule,) = one(manifests, "NodeFeatureRule")["spec"]["rules"]
    assert rule["labels"] == {"sev-guest": "true"}  # NFD puts feature.node.kubernetes.io/ before it
    assert "feature.node.kubernetes.io/sev-guest" in json.dumps(pod_of(manifests)["affinity"])


@pytest.mark.parametrize("drain", [0, 20, 90.5])
def test_grace_period_when_drain_is_set_outlasts_it(render, drain):
    pod = pod_of(render(*MINIMAL, "--set-json", f"options.drain_seconds={drain}", "--set", "preStopSeconds=7"))
    assert pod["containers"][0]["lifecycle"]["preStop"] == {"sleep": {"seconds": 7}}
    assert pod["terminationGracePeriodSeconds"] >= drain + 7 + 5


def test_policy_when_mounted_is_a_directory_and_does_not_restart_pods(render):
    first = render(*MINIMAL[:2], "--set", "policy.content=a")
    second = render(*MINIMAL[:2], "--set", "policy.content=b")
    assert one(first, "StatefulSet") == one(second, "StatefulSet")
    (mount,) = [m for m in pod_of(first)["containers"][0]["volumeMounts"] if m["name"] == "policy"]
    assert mount == {"name": "policy", "mountPath": "/etc/pagegate/policy", "readOnly": True}
    assert serve_file(first)["policy"] == "/etc/pagegate/policy/policy.yaml"


def test_options_when_changed_restart_pods(render):
    first, second = (render(*MINIMAL, "--set", f"options.max_sessions={n}") for n in (10, 11))
    assert one(first, "StatefulSet")["spec"]["template"] != one(second, "StatefulSet")["spec"]["template"]


def test_service_account_when_mounted_has_no_token(render):
    manifests = render(*MINIMAL)
    assert one(manifests, "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod_of(manifests)["automountServiceAccountToken"] is False


def test_network_policy_when_offline_has_no_way_to_endorsements(render):
    def ports(*given) -> set:
        egress = one(render(*MINIMAL, *given), "NetworkPolicy")["spec"]["egress"]
        return {port["port"] for rule in egress for port in rule["ports"]}

    assert 443 in ports()
    assert ports("--set", "options.offline=true") == {53}
    assert 4317 in ports("--set", "options.otlp_endpoint=http://c:4317")


def test_prometheus_rule_when_rendered_is_the_tested_file(render):
    rule = one(render(*MINIMAL, "--set", "metrics.prometheusRule.enabled=true"), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((DEPLOY / "alerts" / "pagegate.rules.yaml").read_text())


def test_prometheus_rule_when_told_where_the_runbooks_are_links_to_them(render):
    given = "metrics.prometheusRule.enabled=true,metrics.prometheusRule.runbookBase=https://docs.example/pagegate/"
    rule = one(render(*MINIMAL, "--set", given), "PrometheusRule")
    links = {alert["annotations"]["runbook_url"] for group in rule["spec"]["groups"] for alert in group["rules"]}
    assert "https://docs.example/pagegate/docs/runbooks/PagegateDown.md" in links
    assert all(link.startswith("https://docs.example/pagegate/docs/runbooks/") for link in links)


def test_dashboards_when_enabled_are_the_tested_files(render):
    manifests = render(*MINIMAL, "--set", "metrics.dashboards.enabled=true")
    given = {
        name: json.loads(text)
        for manifest in manifests
        if manifest["kind"] == "ConfigMap" and manifest["metadata"]["labels"].get("grafana_dashboard")
        for name, text in manifest["data"].items()
    }
    assert given == {path.name: json.loads(path.read_text()) for path in (DEPLOY / "dashboards").glob("*.json")}
    assert given
