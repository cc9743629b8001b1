"""Run as a program under a shim: asks one hardware platform for evidence or a key, prints the outcome as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import enclave_bridge as eb
from pagegate.errors import PlatformError
from pagegate.platforms.configfs_tsm import ConfigfsTsmPlatform
from pagegate.platforms.detect import PlatformPaths, open_platform
from pagegate.platforms.retry import Retry
from pagegate.platforms.sealing import snp_key
from pagegate.platforms.sev_guest import DerivedKeyRequest, KeyFields, SevGuestPlatform

RETRY = Retry(delays=(0.001, 0.001))


def answer(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    report_data = bytes.fromhex(options.pop("report_data", bytes(range(64)).hex()))
    if kind == "key":
        request = DerivedKeyRequest(KeyFields(options.pop("fields")), **options)
        return {"key": SevGuestPlatform(retry=RETRY).derived_key(request).hex()}
    if kind == "sealing":
        return sealed_table(**options)
    if kind == "auto":
        root = Path(options["root"])
        platform = open_platform(paths=PlatformPaths(configfs_tsm=root, sev_guest=Path("/nonexistent")))
    elif kind == "configfs-tsm":
        platform = ConfigfsTsmPlatform(Path(options.pop("root")), retry=RETRY, **options)
    else:
        platform = SevGuestPlatform(retry=RETRY, **options)
    evidence = platform.attest(report_data)
    return {
        "platform": platform.name,
        "simulated": platform.simulated,
        "type": platform.evidence_type,
        "report": evidence.report.hex(),
        "certificates": [certificate.hex() for certificate in evidence.certificates],
    }


def sealed_table(home: str, vmpl: int | None = None) -> dict[str, Any]:
    """Saves a guard's table under the firmware's key, or loads the one that is there. The key is not to be had."""
    bridge = eb.Bridge(max_sessions=1, max_handshakes=1)
    sealing = snp_key(vmpl=vmpl)(bridge)
    pages, table = Path(home) / "pages", Path(home) / "table"
    if not table.exists():
        pages.write_bytes(bytes(4096))
        with pages.open("r+b") as file, table.open("x+b") as saved:
            eb.Guard.new(bridge, region="book", generation=1, pages=1, fd=file.fileno(), sealing=sealing).save(
                saved.fileno()
            )
        return {"table": "saved"}
    with pages.open("r+b") as file, table.open("r+b") as saved:
        try:
            guard = eb.Guard.load(
                bridge,
                region="book",
                generation=1,
                pages=1,
                fd=file.fileno(),
                sealing=sealing,
                table_fd=saved.fileno(),
            )
        except eb.BridgeStatusError as error:
            return {"table": error.reason}
        return {"table": "loaded", "bad": guard.verify(0, 1).bad_pages}


def main() -> None:
    try:
        outcome = answer(sys.argv[1], json.loads(sys.argv[2]))
    except PlatformError as error:
        outcome = {"reason": error.reason, "message": error.message, "retry_after": error.retry_after}
    print(json.dumps(outcome))


main()
