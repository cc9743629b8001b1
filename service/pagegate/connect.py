"""From a configuration to a connected client: builds the platform and the appraiser that `PeerConfig` describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pagegate.client import Client
from pagegate.config import PeerConfig, PlatformName, SealingName, ServeConfig
from pagegate.endorsements import EndorsementSettings, build_source
from pagegate.endorsements.settings import KDS_URL
from pagegate.errors import ConfigError
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.model import AccessMode
from pagegate.evidence.policy import Policy, load_policy
from pagegate.evidence.snp.anchors import TrustAnchor, amd_anchors, simulated_anchor
from pagegate.platforms.model import Platform
from pagegate.platforms.sealing import SealingSource, file_key, snp_key
from pagegate.platforms.simulated import SimulatedPlatform, SimulatedRoot, measurement_of
from pagegate.telemetry import NO_TELEMETRY, Tracing


def connect(target: str, config: PeerConfig, regions: Mapping[str, AccessMode | str]) -> Client:
    """A client of the server at `target` ("host:port") with the identity and the beliefs of `config`.

    `regions` is what to ask for: region name to "read", "write" or "read-write". The handshake runs on first
    use. Raises ConfigError, PlatformError, PolicyError.
    """
    return Client(target, platform=build_platform(config), appraiser=build_appraiser(config), regions=regions)


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
        root = simulated_root(config)
        measurement = measurement_of(config.simulated_workload.encode())
        return SimulatedPlatform(root.chip(config.simulated_chip), measurement=measurement, follow=root.as_it_runs)
    from pagegate.platforms.detect import open_platform  # noqa: PLC0415 - hardware only when asked for

    return open_platform(config.platform.value)


def build_sealing(config: ServeConfig) -> SealingSource:
    """Where the sealing key comes from. A hardware platform never falls back to a file: a host could read that."""
    simulated = config.platform is PlatformName.SIMULATED
    if config.sealing is SealingName.FILE or (config.sealing is SealingName.AUTO and simulated):
        return file_key(config.state / "sealing.key")
    return snp_key()


def policy_path(config: PeerConfig) -> Path:
    """The policy file. Raises ConfigError POLICY_MISSING."""
    if config.policy is None:
        raise ConfigError(
            "POLICY_MISSING",
            "no policy: say with --policy FILE whom to believe. 'pagegate policy schema' documents the file; "
            "'pagegate demo' writes an example",
        )
    return config.policy


def trust_anchors(config: PeerConfig) -> tuple[TrustAnchor, ...]:
    """AMD's roots, and the simulated one where it is allowed."""
    if not config.allow_simulated:
        return amd_anchors()
    return (*amd_anchors(), simulated_anchor("Milan", simulated_root(config).ark_der))


def endorsement_settings(config: PeerConfig) -> EndorsementSettings:
    """Where certificates and CRLs come from. Only what chains to a root that is trusted enters the cache."""
    return EndorsementSettings(
        directory=config.endorsements,
        cache_path=config.cache_path,
        # A simulated chip has nothing at AMD: asking would only wait.
        offline=config.offline or (config.platform is PlatformName.SIMULATED and config.kds_url is None),
        kds_url=config.kds_url or KDS_URL,
        roots=frozenset(anchor.ark_digest.hex() for anchor in trust_anchors(config)),
    )


def build_appraiser(
    config: PeerConfig, policy: Policy | None = None, telemetry: Tracing = NO_TELEMETRY
) -> EvidenceAppraiser:
    """What this side believes: `policy` where the caller has loaded it, else the file of `config`.

    Raises PolicyError, ConfigError POLICY_MISSING.
    """
    if policy is None:
        policy = load_policy(policy_path(config))
    return EvidenceAppraiser(
        policy,
        anchors=trust_anchors(config),
        endorsements=build_source(endorsement_settings(config)),
        allow_simulated=config.allow_simulated,
        stages=lambda stage: telemetry.span(f"pagegate.appraise.{stage}"),
    )
