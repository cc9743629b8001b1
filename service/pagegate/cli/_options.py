"""Command-line options made from the fields of `pagegate.config`, and what they are turned into."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

import click

from pagegate.config import PeerConfig, PlatformName, load
from pagegate.endorsements import EndorsementSettings, build_source
from pagegate.endorsements.settings import KDS_URL
from pagegate.errors import ConfigError
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.policy import load_policy
from pagegate.evidence.snp.anchors import amd_anchors, simulated_anchor
from pagegate.platforms.model import Platform
from pagegate.platforms.simulated import SimulatedPlatform, SimulatedRoot, measurement_of
from pagegate.telemetry import Telemetry, TelemetrySettings

_F = TypeVar("_F", bound=Callable[..., Any])


def config_options(kind: type[PeerConfig]) -> Callable[[_F], _F]:
    """One option a field, and --config; the command gets them as `options` for `settle`."""

    def add(command: _F) -> _F:
        command = click.option(
            "--config", "config_file", type=click.Path(path_type=Path, dir_okay=False), help="YAML file of options."
        )(command)
        for name, field in reversed(kind.model_fields.items()):
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


def simulated_root(config: PeerConfig) -> SimulatedRoot:
    """The simulated root both sides share; made on first use."""
    return SimulatedRoot.open_or_create(config.simulated_root or config.state / "simulated")


def build_platform(config: PeerConfig) -> Platform:
    """Where this side's evidence is made. Raises PlatformError, ConfigError SIMULATED_NOT_ALLOWED."""
    if config.platform is PlatformName.SIMULATED:
        if not config.allow_simulated:
            raise ConfigError(
                "SIMULATED_NOT_ALLOWED",
                "the simulated platform proves nothing and is refused. For a trial add --allow-simulated; "
                "for real use choose a hardware platform ('pagegate doctor' says what this machine has)",
            )
        chip = simulated_root(config).chip(config.simulated_chip)
        return SimulatedPlatform(chip, measurement=measurement_of(config.simulated_workload.encode()))
    from pagegate.platforms.detect import open_platform  # noqa: PLC0415 - hardware only when asked for

    return open_platform(config.platform.value)


def build_appraiser(config: PeerConfig) -> EvidenceAppraiser:
    """What this side believes. Raises PolicyError, ConfigError POLICY_MISSING."""
    if config.policy is None:
        raise ConfigError(
            "POLICY_MISSING",
            "no policy: say with --policy FILE whom to believe. 'pagegate policy schema' documents the file; "
            "'pagegate demo' writes an example",
        )
    anchors = list(amd_anchors())
    if config.allow_simulated:
        root = simulated_root(config)
        anchors.append(simulated_anchor("Milan", root.ark_der))
    settings = EndorsementSettings(
        directory=config.endorsements,
        cache_path=config.state / "endorsements.sqlite",
        offline=config.offline,
        kds_url=config.kds_url or KDS_URL,
    )
    return EvidenceAppraiser(
        load_policy(config.policy),
        anchors=anchors,
        endorsements=build_source(settings),
        allow_simulated=config.allow_simulated,
    )


def build_telemetry(config: PeerConfig, service_name: str, *, prometheus_port: int | None = None) -> Telemetry:
    """Telemetry of this process: OTLP when an endpoint is set."""
    return Telemetry.start(
        TelemetrySettings(
            service_name=service_name,
            otlp_endpoint=config.otlp_endpoint,
            sample_ratio=config.sample_ratio,
            prometheus_port=prometheus_port,
        )
    )


def warn_simulated(what: str) -> None:
    """Says so wherever simulated evidence is used."""
    click.secho(f"SIMULATED: {what} uses simulated evidence, which proves nothing.", fg="yellow", err=True)


__all__ = [
    "build_appraiser",
    "build_platform",
    "build_telemetry",
    "config_options",
    "settle",
    "simulated_root",
    "warn_simulated",
]
