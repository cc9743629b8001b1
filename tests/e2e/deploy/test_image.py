"""The image's recipe: linted, locked, and at one with the chart. Building it needs an image registry: not here."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .conftest import DEPLOY, ROOT

CONTAINERFILE = DEPLOY / "Containerfile"
LOCKS = sorted((DEPLOY / "image").glob("*.lock"))


def versions(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", lock.read_text(), re.MULTILINE))


def test_containerfile_when_linted_has_no_finding():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("run .ci/deploy")
    done = subprocess.run([hadolint, CONTAINERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_containerfile_when_read_ends_in_an_image_without_root_or_shell():
    last = CONTAINERFILE.read_text().rpartition("FROM scratch\n")[2]
    assert last
    assert "USER 65532:65532" in last
    assert "RUN " not in last


def test_containerfile_when_compared_with_the_chart_has_its_user_and_ports():
    pod = (DEPLOY / "helm" / "pagegate" / "templates" / "statefulset.yaml").read_text()
    assert "runAsUser: 65532" in pod
    assert "EXPOSE 7443 7444 9464" in CONTAINERFILE.read_text()


def test_containerfile_when_it_copies_names_what_is_there():
    for source in re.findall(r"^COPY (?!--)(.+) \S+$", CONTAINERFILE.read_text(), re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_lock_when_compared_with_the_projects_has_the_same_versions_by_hash(lock: Path):
    tested, ours = versions(ROOT / "requirements.lock"), versions(lock)
    # What only the image's build needs (its SBOM tool) is not among what the tests run with.
    different = {
        name: (version, tested[name]) for name, version in ours.items() if tested.get(name, version) != version
    }
    assert not different, "remake deploy/image/*.lock (the command is in its first line)"
    assert lock.read_text().count("--hash=sha256:") >= len(ours) > 0


def test_run_time_lock_when_compared_with_the_project_has_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.match(r"[A-Za-z0-9-]+", one)[0].lower() for one in wanted}  # type: ignore[index]
    assert names <= set(versions(DEPLOY / "image" / "requirements.lock"))
