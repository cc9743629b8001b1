"""Alert rules: promtool reads them, each is shown to fire and to keep quiet, each has its runbook."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import yaml

from pagegate.cli import cli

from .conftest import DEPLOY, ROOT

RULES = DEPLOY / "alerts" / "pagegate.rules.yaml"
TESTS = DEPLOY / "alerts" / "pagegate.tests.yaml"
RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("*.md"))


def alerts() -> dict[str, dict]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_rules_when_checked_by_promtool_are_valid(tool):
    done = tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stderr + done.stdout


def test_rules_when_tested_by_promtool_fire_and_keep_quiet_as_said(tool):
    done = tool("promtool", "test", "rules", TESTS)
    assert done.returncode == 0, done.stderr + done.stdout


def test_rules_when_broken_are_caught_by_their_tests(tool, tmp_path: Path):
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    (tmp_path / RULES.name).write_text(RULES.read_text().replace("[15m]", "[15s]").replace("for: 2m", "for: 2h"))
    done = tool("promtool", "test", "rules", tmp_path / TESTS.name)
    assert done.returncode != 0
    assert "PagegateReloadFailed" in done.stderr + done.stdout


def test_alerts_when_listed_each_have_a_case_that_fires_and_one_that_does_not():
    fires, quiet = set(), set()
    for case in yaml.safe_load(TESTS.read_text())["tests"]:
        for check in case["alert_rule_test"]:
            (fires if check.get("exp_alerts") else quiet).add(check["alertname"])
    assert fires == quiet == set(alerts())


def test_alerts_when_listed_each_have_a_severity_a_summary_and_their_own_runbook():
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"warning", "critical"}, name
        assert rule["annotations"]["summary"], name
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"


def test_runbooks_when_listed_are_those_of_the_alerts():
    assert {path.stem for path in RUNBOOKS} == set(alerts())


@pytest.mark.parametrize("page", RUNBOOKS, ids=lambda page: page.stem)
def test_runbook_when_read_says_what_it_means_how_to_look_and_what_to_do(page: Path):
    text = page.read_text()
    assert text.startswith(f"# {page.stem}\n**Means.** ")
    assert text.index("\n**Look.** ") < text.index("\n**Do.** ")
    assert len(text.splitlines()) <= 20, "a runbook is read at three in the morning"
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", RUNBOOKS, ids=lambda page: page.stem)
def test_runbook_when_it_names_commands_options_and_reasons_names_real_ones(page: Path):
    text = page.read_text().replace("\n", " ")
    for words in re.findall(r"`pagegate ([^`]+)`", text):
        command: click.Command = cli
        given = words.split()
        while isinstance(command, click.Group) and given:
            found = command.get_command(click.Context(command), given.pop(0))
            assert found is not None, words
            command = found
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in given if word.startswith("--")} <= options, words
    source = "".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    bridge = (ROOT / "enclave_bridge" / "include" / "eb_status.def").read_text()
    for reason in re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", text):
        if reason != "RESOURCE_EXHAUSTED":
            assert f'"{reason}"' in source or reason in bridge, reason
