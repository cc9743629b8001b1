"""What confines the bridge process on this machine, found by starting one."""

from __future__ import annotations

from pathlib import Path

import enclave_bridge as eb
from pagegate.host.model import Check, Context, Outcome, Side, failed, not_applicable, passed, warned

_FIX = {
    "user-namespace": "allow unprivileged user namespaces (user.max_user_namespaces, AppArmor's "
    "kernel.apparmor_restrict_unprivileged_userns, a container's seccomp profile)",
    "network-namespace": "allow user namespaces, or CAP_SYS_ADMIN to the service: the filter already refuses sockets",
    "parent-death": "prctl(PR_SET_PDEATHSIG) is refused; the bridge then ends when its socket does",
    "no-capabilities": "run the service without capabilities",
}


def isolation(context: Context) -> Outcome:
    if context.machine.root != Path("/"):
        return not_applicable("a captured machine starts nothing")
    try:
        with eb.IsolatedBridge(max_sessions=1, max_handshakes=1) as bridge:
            info = bridge.info
    except eb.BridgeStatusError as error:
        return failed(
            f"no isolated bridge starts here: {error}",
            "pagegate serve needs seccomp, and memory to lock; --bridge in-process is the weaker way out",
        )
    missing = [name for name in eb.HARDENING if name not in info.hardening]
    if not missing:
        return passed(f"isolated, keys in {info.memory}: {', '.join(info.hardening)}")
    return warned(
        f"isolated, keys in {info.memory}, without {', '.join(missing)}",
        "; ".join(_FIX.get(name, name) for name in missing),
    )


CHECKS = (
    Check(
        "bridge.isolation",
        "Bridge in a confined process",
        Side.BOTH,
        "isolated, all of " + ", ".join(eb.HARDENING),
        "seccomp(2), user_namespaces(7)",
        isolation,
    ),
)
