"""deploy/otel/collector.yaml in a real Collector: what its tail sampling keeps."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

from .conftest import Collector, Publish, running
from .test_collector import REFUSED_TREE, SPANS

pytestmark = pytest.mark.timeout(900)  # the first run builds the Collector

CONFIG = Path(__file__).parents[3] / "deploy" / "otel" / "collector.yaml"
POLICIES = {
    policy["name"]: policy
    for policy in yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["processors"]["tail_sampling"]["policies"]
}


def with_share(binary: Path, directory: Path, percent: int, *policies: str) -> AbstractContextManager[Collector]:
    return running(
        binary,
        directory,
        f"file:{CONFIG}",
        overrides={
            "processors": {
                "tail_sampling": {"decision_wait": "2s", "policies": [POLICIES[name] for name in policies or POLICIES]}
            }
        },
        OTLP_BACKEND="127.0.0.1:1",
        PAGEGATE_TRACE_PERCENT=str(percent),
    )


@pytest.mark.parametrize("policies", [(), ("refusals", "share"), ("errors", "share")])
def test_tail_sampling_when_nothing_ordinary_is_kept_still_keeps_every_refusal(
    collector_binary, tmp_path, policies, publish: Publish
):
    with with_share(collector_binary, tmp_path, 0, *policies) as collector:
        ordinary = publish(collector.grpc)
        refused = publish(collector.grpc, workload="stranger")
        # With the trading service's own span; the chain is looked at twice.
        count = len(REFUSED_TREE) + 3
        assert len(collector.wait_for_spans(refused, count)) == count
        time.sleep(1)  # the ordinary one came first: its decision is taken by now
        assert collector.spans(ordinary) == []


def test_tail_sampling_when_all_are_wanted_keeps_ordinary_traces_too(collector_binary, tmp_path, publish: Publish):
    with with_share(collector_binary, tmp_path, 100) as collector:
        ordinary = publish(collector.grpc)
        assert len(collector.wait_for_spans(ordinary, SPANS)) == SPANS
        assert "pagegate.pages" in collector.metrics()


def test_laptop_configuration_when_merged_over_it_is_valid_and_prints(collector_binary):
    laptop = CONFIG.parents[1] / "compose" / "collector.yaml"
    done = subprocess.run(
        [collector_binary, "validate", f"--config=file:{CONFIG}", f"--config=file:{laptop}"],
        env={**os.environ, "OTLP_BACKEND": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
