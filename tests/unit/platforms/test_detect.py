"""Choosing a platform: the preferred one that is there, never the simulated one by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pagegate.errors import PlatformError
from pagegate.platforms.configfs_tsm import ConfigfsTsmPlatform
from pagegate.platforms.detect import PlatformPaths, SimulatedGuest, detect, open_platform
from pagegate.platforms.sev_guest import SevGuestPlatform, running_vmpl
from pagegate.platforms.simulated import SimulatedRoot, measurement_of


@pytest.fixture
def paths(tmp_path: Path) -> PlatformPaths:
    return PlatformPaths(tmp_path / "tsm", tmp_path / "sev-guest", tmp_path / "tpmrm0")


def test_detect_on_a_machine_without_any_says_for_each_where_it_looked(paths: PlatformPaths) -> None:
    probes = detect(paths)

    assert [probe.name for probe in probes] == ["configfs-tsm", "sev-guest", "azure"]
    assert [probe.looked_at for probe in probes] == [str(paths.configfs_tsm), str(paths.sev_guest), str(paths.vtpm)]
    assert {probe.found for probe in probes} == {"not there"}
    assert not any(probe.available for probe in probes)


def test_detect_on_this_machine_does_not_raise() -> None:
    assert len(detect()) == 3


def test_detect_when_a_device_may_not_be_used_says_so(paths: PlatformPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.sev_guest.touch()
    monkeypatch.setattr("os.access", lambda *_: False)

    probe = detect(paths)[1]

    assert not probe.available
    assert "may not use it" in probe.found


def test_open_auto_when_both_interfaces_are_there_prefers_configfs(paths: PlatformPaths) -> None:
    paths.configfs_tsm.mkdir()
    paths.sev_guest.touch()

    assert isinstance(open_platform(paths=paths), ConfigfsTsmPlatform)


def test_open_auto_when_only_the_device_is_there_takes_it(paths: PlatformPaths) -> None:
    paths.sev_guest.touch()

    assert isinstance(open_platform(paths=paths), SevGuestPlatform)


def test_open_auto_when_there_is_only_a_vtpm_does_not_take_it(paths: PlatformPaths) -> None:
    paths.vtpm.touch()

    with pytest.raises(PlatformError, match="not fit for handshakes"):
        open_platform(paths=paths)
    assert open_platform("azure", paths=paths).name == "azure"


def test_open_auto_when_nothing_is_there_lists_what_was_looked_at(paths: PlatformPaths, tmp_path: Path) -> None:
    with pytest.raises(PlatformError) as caught:
        open_platform(paths=paths, simulated=SimulatedGuest(tmp_path / "root"))

    assert caught.value.reason == "PLATFORM_NOT_FOUND"
    for path in (paths.configfs_tsm, paths.sev_guest, paths.vtpm):
        assert str(path) in caught.value.message
    assert "modprobe sev-guest" in caught.value.message
    assert not (tmp_path / "root").exists()


def test_open_by_name_when_it_is_not_there_says_what_it_needs(paths: PlatformPaths) -> None:
    with pytest.raises(PlatformError, match="needs an SEV-SNP guest") as caught:
        open_platform("sev-guest", paths=paths)
    assert caught.value.reason == "PLATFORM_UNAVAILABLE"


def test_open_by_name_when_there_is_no_such_platform_lists_those_there_are(paths: PlatformPaths) -> None:
    with pytest.raises(PlatformError, match="configfs-tsm, sev-guest, azure, simulated") as caught:
        open_platform("sgx", paths=paths)
    assert caught.value.reason == "PLATFORM_UNKNOWN"


def test_open_simulated_when_named_gives_the_guest_asked_for(simulated_root: Callable[[str], SimulatedRoot]) -> None:
    directory = simulated_root("Milan")._directory
    guest = SimulatedGuest(directory, measurement_of(b"me"), chip="detected", host_data=b"h" * 32)

    platform = open_platform("simulated", simulated=guest)

    report = platform.attest(bytes(64)).report
    assert platform.simulated
    assert report[0x90:0xE0] == measurement_of(b"me") + b"h" * 32
    assert report[0x1A0:0x1E0] == simulated_root("Milan").chip("detected").chip_id


def test_open_simulated_without_a_directory_is_refused() -> None:
    with pytest.raises(PlatformError, match="SIMULATED platform needs a state directory"):
        open_platform("simulated")


@pytest.mark.parametrize("vmpl", [-1, 4])
@pytest.mark.parametrize("name", ["configfs-tsm", "sev-guest"])
def test_open_when_the_vmpl_is_out_of_range_is_refused(paths: PlatformPaths, name: str, vmpl: int) -> None:
    paths.configfs_tsm.mkdir()
    paths.sev_guest.touch()

    with pytest.raises(PlatformError, match=f"is {vmpl}; it goes from 0 to 3") as caught:
        open_platform(name, vmpl=vmpl, paths=paths)
    assert caught.value.reason == "VMPL_INVALID"


@pytest.mark.parametrize("length", [0, 63, 65])
@pytest.mark.parametrize("name", ["configfs-tsm", "sev-guest"])
def test_attest_when_report_data_is_not_64_bytes_is_refused(paths: PlatformPaths, name: str, length: int) -> None:
    paths.configfs_tsm.mkdir()
    paths.sev_guest.touch()

    with pytest.raises(PlatformError, match=f"has {length} bytes") as caught:
        open_platform(name, paths=paths).attest(bytes(length))
    assert caught.value.reason == "REPORT_DATA_INVALID"


def test_attest_when_the_device_has_gone_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="modprobe sev-guest") as caught:
        SevGuestPlatform(tmp_path / "gone").attest(bytes(64))
    assert caught.value.reason == "SEV_GUEST_UNAVAILABLE"


def test_attest_when_the_file_is_no_such_device_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()

    with pytest.raises(PlatformError) as caught:
        SevGuestPlatform(path).attest(bytes(64))
    assert caught.value.reason == "SEV_GUEST_KEY_DISABLED"


def test_attest_when_configfs_is_not_mounted_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="mount configfs") as caught:
        ConfigfsTsmPlatform(tmp_path / "gone").attest(bytes(64))
    assert caught.value.reason == "TSM_UNAVAILABLE"


@pytest.mark.parametrize(("text", "vmpl"), [("2\n", 2), ("", 0), ("x", 0)])
def test_running_vmpl_is_what_the_kernel_says_else_zero(tmp_path: Path, text: str, vmpl: int) -> None:
    path = tmp_path / "vmpl"
    path.write_text(text)

    assert running_vmpl(path) == vmpl
    assert running_vmpl(tmp_path / "missing") == 0
