"""Command-line options made from the fields of `pagegate.config`, and what they are turned into."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

import click

from pagegate.config import PeerConfig, load
from pagegate.telemetry import Telemetry, TelemetrySettings

_F = TypeVar("_F", bound=Callable[..., Any])


def config_options(kind: type[PeerConfig], only: Collection[str] | None = None) -> Callable[[_F], _F]:
    """One option a field (or those named in `only`), and --config; the command gets them as `options` for `settle`."""

    def add(command: _F) -> _F:
        command = click.option(
            "--config", "config_file", type=click.Path(path_type=Path, dir_okay=False), help="YAML file of options."
        )(command)
        for name, field in reversed(kind.model_fields.items()):
            if only is not None and name not in only:
                continue
            flag = f"--{name.replace('_', '-')}"
            text = field.description or ""
            if field.default not in (None, (), False) and field.annotation is not bool:
                shown = field.default.value if isinstance(field.default, StrEnum) else field.default
                text += f" [default: {shown}]"
            if field.annotation is bool:
                command = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)(command)
            elif field.default == ():
                command = click.option(flag, name, multiple=True, help=text)(command)
            else:
                command = click.option(flag, name, type=_click_type(field.annotation), default=None, help=text)(command)
        return command

    return add


def _click_type(annotation: Any) -> Any:
    if isinstance(annotation, UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return click.Choice([member.value for member in annotation])
    if annotation is Path:
        return click.Path(path_type=Path)
    return {int: click.INT, float: click.FLOAT}.get(annotation, click.STRING)


def settle(kind: type[PeerConfig], options: dict[str, Any]) -> PeerConfig:
    """The configuration in force. Raises ConfigError."""
    file = options.pop("config_file", None)
    return load(kind, {k: v for k, v in options.items() if v not in (None, ())}, file)


def build_telemetry(
    config: PeerConfig, service_name: str, *, prometheus_port: int | None = None, prometheus_host: str = "127.0.0.1"
) -> Telemetry:
    """Telemetry of this process: OTLP when an endpoint is set, else trace trees on a terminal's standard error."""
    return Telemetry.start(
        TelemetrySettings(
            service_name=service_name,
            otlp_endpoint=config.otlp_endpoint,
            sample_ratio=config.sample_ratio,
            console_tree=config.otlp_endpoint is None and sys.stderr.isatty(),
            prometheus_port=prometheus_port,
            prometheus_host=prometheus_host,
        )
    )


OWN_EVIDENCE = (
    *("platform", "policy", "allow_simulated", "simulated_root", "simulated_chip", "simulated_workload"),
    *("endorsements", "endorsement_cache", "kds_url", "offline", "state_dir"),
)
"""The options of a command that looks at this machine's own evidence."""


def warn_simulated(what: str) -> None:
    """Says so wherever simulated evidence is used."""
    click.secho(f"SIMULATED: {what} uses simulated evidence, which proves nothing.", fg="yellow", err=True)


__all__ = [
    "OWN_EVIDENCE",
    "build_telemetry",
    "config_options",
    "settle",
    "warn_simulated",
]
