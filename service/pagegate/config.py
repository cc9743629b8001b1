"""Every option of pagegate's long-running commands, each with one home: flag, environment and file are views of it.

Order: command line, then environment (PAGEGATE_<NAME>), then the YAML file of --config, then the default.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pagegate.errors import ConfigError
from pagegate.transfer.keeper import BridgeKind
from pagegate.transfer.region import RegionSpec

PAGE = 4096
_ENDORSEMENT_CACHE = "endorsements.sqlite"
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE = re.compile(r"(\d+)\s*([A-Za-z]*)")


class PlatformName(StrEnum):
    """Where evidence is made."""

    AUTO = "auto"
    CONFIGFS_TSM = "configfs-tsm"
    SEV_GUEST = "sev-guest"
    SIMULATED = "simulated"


class SealingName(StrEnum):
    """Where the sealing key comes from."""

    AUTO = "auto"
    FILE = "file"
    SNP = "snp"


class LogLevel(StrEnum):
    """Least important log lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def parse_endpoint(text: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:7480" or "[::1]:7480". Raises ConfigError ADDRESS."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError("ADDRESS", f"{text!r} is not HOST:PORT; write for example 127.0.0.1:7480 or [::1]:7480")
    return host.removeprefix("[").removesuffix("]"), int(port)


def state_directory() -> Path:
    """PAGEGATE_STATE_DIR, else the XDG state directory."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(os.environ.get("PAGEGATE_STATE_DIR") or Path(base) / "pagegate")


def parse_size(text: str) -> int:
    """Bytes of "64MiB", "2GiB", "8192". Raises ConfigError SIZE."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].upper() not in _UNITS:
        raise ConfigError("SIZE", f"{text!r} is not a size; write for example 8192, 64MiB or 2GiB")
    return int(match[1]) * _UNITS[match[2].upper()]


def parse_region(text: str) -> RegionSpec:
    """A region from "book=64MiB", "book=64MiB@0x100000000" or "book=64MiB@0x100000000:/var/lib/pagegate/book"."""
    name, equals, rest = text.partition("=")
    place, _, directory = rest.partition(":")
    size, _, base = place.partition("@")
    if not equals or not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name):
        raise ConfigError(
            "REGION",
            f"{text!r} is not a region; write NAME=SIZE[@BASE_GPA][:DIRECTORY], for example book=64MiB@0x100000000",
        )
    try:
        base_gpa = int(base, 0) if base else 1 << 32
    except ValueError:
        raise ConfigError("REGION", f"{base!r} in {text!r} is not an address; write for example 0x100000000") from None
    size_bytes = parse_size(size)
    if size_bytes % PAGE:
        raise ConfigError("REGION_SIZE", f"region {name}: {size_bytes} bytes are not whole 4096-byte pages")
    return RegionSpec(name, base_gpa, size_bytes // PAGE, Path(directory) if directory else None)


def endorsement_cache() -> Path:
    """PAGEGATE_ENDORSEMENT_CACHE, else a file in the state directory: what every command uses unless told otherwise."""
    return Path(os.environ.get("PAGEGATE_ENDORSEMENT_CACHE") or state_directory() / _ENDORSEMENT_CACHE)


class PeerConfig(BaseModel):
    """What both sides of a connection need: how to prove oneself and what to believe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    platform: PlatformName = Field(
        PlatformName.AUTO,
        description="Where this side's evidence is made. 'auto' takes the first hardware provider there is.",
    )
    policy: Path | None = Field(
        None,
        description="Appraisal policy (YAML): whom to believe and what they may do ('pagegate policy schema').",
    )
    allow_simulated: bool = Field(
        False, description="Accept and make SIMULATED evidence. It proves nothing: for trials and tests only."
    )
    simulated_root: Path | None = Field(
        None,
        description="Directory of the simulated platform's root; both sides must share it. [default: STATE/simulated]",
    )
    simulated_chip: str = Field("chip-0", description="Name of the simulated chip this side runs on.")
    simulated_workload: str = Field(
        "pagegate", description="Label from which the simulated launch measurement of this side is made."
    )
    endorsements: Path | None = Field(
        None, description="Directory of certificates and CRLs (PEM or DER, any names), asked before the network."
    )
    kds_url: str | None = Field(None, description="Base URL of AMD's KDS or of a mirror of it.")
    offline: bool = Field(False, description="Never use the network for endorsements.")
    endorsement_cache: Path | None = Field(
        None,
        description="Cache of certificates and CRLs, the one 'pagegate endorsements' keeps. "
        "[default: STATE/endorsements.sqlite]",
    )
    state_dir: Path | None = Field(
        None, description="Directory for the endorsement cache, the audit log and simulated roots. [default: XDG state]"
    )
    otlp_endpoint: str | None = Field(
        None, description="OTLP/gRPC endpoint for traces and metrics, for example http://127.0.0.1:4317."
    )
    sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of traces that are kept; refusals always are.")

    @property
    def state(self) -> Path:
        """The state directory in force."""
        return self.state_dir or state_directory()

    @property
    def cache_path(self) -> Path:
        """The endorsement cache in force."""
        return self.endorsement_cache or self.state / _ENDORSEMENT_CACHE


class ServeConfig(PeerConfig):
    """Options of `pagegate serve`."""

    listen: str = Field("127.0.0.1:7443", description="Address and port to serve on; port 0 takes a free one.")
    region: tuple[str, ...] = Field(
        (),
        description="A region, NAME=SIZE[@BASE_GPA][:DIRECTORY], in memory without a directory. May be repeated.",
    )
    unprotected: tuple[str, ...] = Field(
        (),
        description="Name of a region that keeps no page MACs: then changes of its memory or files by others go unseen. "
        "May be repeated.",
    )
    sealing: SealingName = Field(
        SealingName.AUTO,
        description="Where the key comes from under which page MACs of file-backed regions are kept: 'snp' is derived by "
        "the firmware for this guest, 'file' is STATE/sealing.key. 'auto' is 'snp', but 'file' when simulated.",
    )
    tls_cert: Path | None = Field(None, description="Server certificate (PEM); turns TLS on together with --tls-key.")
    tls_key: Path | None = Field(None, description="Private key of the server certificate (PEM).")
    max_sessions: int = Field(256, ge=1, le=65536, description="Sessions open at once; each takes locked memory.")
    max_handshakes: int = Field(16, ge=1, le=1024, description="Handshakes under way at once.")
    tls_overlap: float = Field(
        3600.0,
        ge=0,
        description="Seconds for which connections opened with a replaced certificate may attest with it.",
    )
    max_streams: int = Field(64, ge=2, le=4096, description="Calls served at once.")
    max_bytes_in_flight: str = Field(
        "256MiB", description="Most bytes of batches that are held for all peers together (SIGHUP reloads it)."
    )
    slow_peer_seconds: float = Field(
        30.0,
        gt=0,
        description="Seconds that a call may wait for its peer in all; moving pages earns more (SIGHUP reloads it).",
    )
    slow_peer_rate: str = Field(
        "16KiB", description="Bytes a second that a peer must move in the long run (SIGHUP reloads it)."
    )
    keepalive_seconds: float = Field(
        30.0, ge=1, description="Silence after which a connection must show that it lives."
    )
    keepalive_timeout: float = Field(
        10.0, ge=1, description="Seconds it has for that, and a new connection for its TLS handshake."
    )
    session_lifetime: float = Field(3600.0, gt=0, description="Seconds after which a peer must attest again.")
    max_batch_pages: int = Field(256, ge=1, le=4096, description="Most pages in one batch.")
    max_batches_in_flight: int = Field(32, ge=1, le=1024, description="Most batches a sender may be ahead.")
    shadow_policy: Path | None = Field(
        None, description="Policy on trial: what it would decide otherwise is logged, and never obeyed."
    )
    ring_socket: Path | None = Field(
        None,
        description="Unix socket that hands shared memory to attested peers on this host: sealed pages then cross "
        "without gRPC. They may use it or not.",
    )
    ring_file: Path | None = Field(
        None,
        description="The same with a peer in another virtual machine: a file or device that both map, such as the "
        "BAR of an ivshmem device. One client at a time has it.",
    )
    bridge: BridgeKind = Field(
        BridgeKind.ISOLATED,
        description="Where keys and plaintext staging are: a confined process of their own, or this process (weaker).",
    )
    warn_days: float = Field(
        14.0, ge=0, description="Days before its own certificates or CRL expire that the server begins to warn."
    )
    drain_seconds: float = Field(
        20.0, ge=0, description="Seconds that running calls get to finish on SIGTERM (SIGHUP reloads it)."
    )
    status_listen: str | None = Field(
        None, description="Address and port of the read-only status page, for example 127.0.0.1:7480. [default: off]"
    )
    status_public: bool = Field(
        False,
        description="Let the status page listen beyond loopback. It has no login, and shows peers and measurements.",
    )
    status_name: tuple[str, ...] = Field(
        (), description="A further host name the status page answers to. May be repeated."
    )
    watch_host: bool = Field(
        False, description="Report this machine's RMP faults and SNP kernel events ('pagegate watch') as telemetry."
    )
    prometheus_port: int | None = Field(None, ge=1, le=65535, description="Port of the Prometheus endpoint.")
    prometheus_host: str = Field("127.0.0.1", description="Address the Prometheus endpoint listens on.")
    health_listen: str | None = Field(
        None,
        description="Address and port of a plain-text port that answers gRPC health checks and nothing else, "
        "for probes that cannot speak TLS (kubelet).",
    )
    audit: bool = Field(True, description="Keep the audit log in the state directory.")
    audit_url: str | None = Field(
        None,
        description="Keep the audit log in PostgreSQL, postgresql://USER@HOST/DATABASE, instead. A password is better "
        "given by PAGEGATE_AUDIT_URL than on the command line, where others can read it.",
    )
    audit_key: Path | None = Field(
        None,
        description="Key file that signs the audit log; writers of one log share it. [default: STATE/audit.key]",
    )
    log_json: bool = Field(False, description="Write logs as JSON lines with trace ids (SIGHUP reloads it).")
    log_level: LogLevel = Field(LogLevel.INFO, description="Least important log lines to write (SIGHUP reloads it).")

    @field_validator("region", "status_name", "unprotected", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value

    def regions(self) -> tuple[RegionSpec, ...]:
        """The regions, parsed. Raises ConfigError."""
        specs = tuple(parse_region(text) for text in self.region)
        unknown = set(self.unprotected) - {spec.name for spec in specs}
        if unknown:
            raise ConfigError("REGION", f"--unprotected names no region: {', '.join(sorted(unknown))}")
        return tuple(replace(spec, protect=spec.name not in self.unprotected) for spec in specs)


def load(kind: type[PeerConfig], given: dict[str, Any], file: Path | None) -> PeerConfig:
    """Settles options from flags, environment, file and defaults. Raises ConfigError CONFIG_INVALID."""
    values: dict[str, Any] = _read_file(file) if file else {}
    for name, field in kind.model_fields.items():
        text = os.environ.get(f"PAGEGATE_{name.upper()}")
        if text is not None:
            values[name] = yaml.safe_load(text) if field.annotation is bool else text
    values.update(given)
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError("CONFIG_INVALID", f"option {where!r}: {first['msg']} (given: {first['input']!r})") from error


def _read_file(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError("CONFIG_INVALID", f"cannot read {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError("CONFIG_INVALID", f"{file} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError("CONFIG_INVALID", f"{file} must hold options as NAME: VALUE")
    return {str(key).replace("-", "_"): value for key, value in content.items()}
