"""Settings that cannot work are refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pagegate.endorsements import EndorsementSettings, Timeouts, build_source
from pagegate.endorsements.directory import DirectorySource
from pagegate.endorsements.http import HttpClient
from pagegate.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kds_url": "ftp://kds"}, "kds_url"),
        ({"kds_url": "https://"}, "kds_url"),
        ({"kds_url": "https://user@kds"}, "kds_url"),
        ({"kds_url": "https://kds/?x=1"}, "kds_url"),
        ({"proxy": "socks5://p:1"}, "proxy"),
        ({"timeouts": Timeouts(read=0)}, r"timeouts\.read"),
        ({"timeouts": Timeouts(total=float("inf"))}, r"timeouts\.total"),
        ({"crl_refresh": -1}, "crl_refresh"),
        ({"max_stale": float("nan")}, "max_stale"),
        ({"leaf_interval": -1}, "leaf_interval"),
    ],
)
def test_settings_when_a_value_cannot_work_name_it(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        EndorsementSettings(**changes)


def test_settings_when_the_proxy_is_bad_do_not_show_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        EndorsementSettings(proxy="socks5://user:hunter2@p:1")
    assert "hunter2" not in str(caught.value)


def test_settings_when_left_alone_ask_amd_once_in_ten_seconds() -> None:
    settings = EndorsementSettings()
    assert (settings.kds_url, settings.leaf_interval) == ("https://kdsintf.amd.com", 10.0)


def test_directory_when_it_is_none_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a directory"):
        DirectorySource(tmp_path / "missing")


def test_ca_file_when_it_is_missing_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ca_file"):
        HttpClient(Timeouts(), ca_file=tmp_path / "missing.pem")


def test_source_when_nothing_is_set_opens_without_files(tmp_path: Path) -> None:
    source = build_source(EndorsementSettings(offline=True))
    source.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []
