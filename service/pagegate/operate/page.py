"""Where the status page listens."""

from __future__ import annotations

import ipaddress

from pagegate.config import ServeConfig, parse_endpoint
from pagegate.errors import ConfigError
from pagegate.status import StatusPage, StatusSource
from pagegate.telemetry.records import TraceSource


def status_address(config: ServeConfig) -> tuple[str, int] | None:
    """Host and port of the page; None when it is off. Raises ConfigError STATUS_PUBLIC, ADDRESS."""
    if config.status_listen is None:
        return None
    host, port = parse_endpoint(config.status_listen)
    if not config.status_public and not _is_loopback(host):
        raise ConfigError(
            "STATUS_PUBLIC",
            f"the status page has no login, and {host} is not loopback. Listen on 127.0.0.1 (and forward a port to "
            "it), or say --status-public where only the right people can reach it",
        )
    return host, port


def open_page(config: ServeConfig, source: StatusSource, traces: TraceSource | None) -> StatusPage | None:
    """The running page; None when it is off. Raises ConfigError."""
    address = status_address(config)
    if address is None:
        return None
    return StatusPage(source, traces, host=address[0], port=address[1], allowed_hosts=config.status_name)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
