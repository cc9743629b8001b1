"""The policy of a running server: loaded again when its file changes, open sessions judged by it."""

from __future__ import annotations

import logging
import time

from pagegate.config import ServeConfig
from pagegate.connect import build_appraiser, policy_path
from pagegate.evidence.appraisal import EvidenceAppraiser
from pagegate.evidence.model import Appraiser, Verdict
from pagegate.evidence.policy import Policy, load_policy
from pagegate.evidence.policy.reload import PolicyFile
from pagegate.evidence.shadow import ShadowAppraiser
from pagegate.operate.reloads import Reloads
from pagegate.rpc.events import Observer, ServerEvent
from pagegate.server import Server
from pagegate.telemetry import NO_TELEMETRY, Tracing

_log = logging.getLogger("pagegate.policy")
REAPPRAISE_EVERY_S = 5.0


class PolicyInForce:
    """The appraiser a server uses, and the file it comes from."""

    def __init__(
        self, config: ServeConfig, observer: Observer, *, reloads: Reloads, telemetry: Tracing = NO_TELEMETRY
    ) -> None:
        """Raises PolicyError, ConfigError when the first policy cannot be had."""
        self._path = policy_path(config)
        self._shadow = load_policy(config.shadow_policy) if config.shadow_policy else None
        self._observer = observer
        # Loaded once: what the follower has seen is what is in force, also when the file changes just now.
        self._file = PolicyFile(self._path)
        self._in_force: EvidenceAppraiser = build_appraiser(config, self._file.policy, telemetry)
        self._reloads = reloads
        reloads.first("policy")
        self._judged_at = time.monotonic()
        self._tell(self._file.policy, 0)

    def _tell(self, policy: Policy, closed: int) -> None:
        self._observer(ServerEvent("policy", str(self._path), {"digest": policy.digest, "closed": closed}))

    @property
    def digest(self) -> str:
        """SHA-256 of the policy in force, hex."""
        return self._file.policy.digest

    @property
    def path(self) -> str:
        """The file it comes from."""
        return str(self._path)

    @property
    def in_force(self) -> EvidenceAppraiser:
        """The appraiser under the policy in force, unwatched."""
        return self._in_force

    @property
    def appraiser(self) -> Appraiser:
        """What handshakes use: the policy in force, watched by the one on trial if there is one."""
        if self._shadow is None:
            return self._in_force
        return ShadowAppraiser(self._in_force, self._shadow, self._differs)

    def _differs(self, in_force: Verdict, tried: Verdict) -> None:
        would = "accept" if tried.accepted else "refuse"
        codes = ",".join(dict.fromkeys(failure.code for failure in tried.failures))
        _log.warning("shadow policy would %s %s as %s: %s", would, in_force.identity, tried.identity, codes or "-")
        self._observer(
            ServerEvent(
                "shadow", in_force.identity or "", {"would": would, "as": tried.identity or "", "checks": codes}
            )
        )

    def tend(self, server: Server, *, asked: bool) -> None:
        """Called often: reloads a changed file (or when asked), and judges open sessions again by the clock."""
        look = self._file.refresh(force=asked)
        standing = self._reloads.standing("policy")
        if look.error is not None:
            self._reloads.refused("policy", look.error)
        elif look.changed or asked or (standing is not None and standing.problem):
            self._in_force = self._in_force.with_policy(look.policy)
            closed = self._judge(server)
            self._reloads.loaded("policy", f"{self._path}, {closed} sessions closed", changed=look.changed)
            self._tell(look.policy, closed)
        if time.monotonic() - self._judged_at >= REAPPRAISE_EVERY_S:
            self._judge(server)

    def _judge(self, server: Server) -> int:
        self._judged_at = time.monotonic()
        return server.reappraise(self.appraiser, self._in_force.reappraise)
