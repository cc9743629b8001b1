"""Run as a program under a shim: asks one hardware platform for evidence or a key, prints the outcome as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pagegate.errors import PlatformError
from pagegate.platforms.configfs_tsm import ConfigfsTsmPlatform
from pagegate.platforms.detect import PlatformPaths, open_platform
from pagegate.platforms.retry import Retry
from pagegate.platforms.sev_guest import DerivedKeyRequest, KeyFields, SevGuestPlatform

RETRY = Retry(delays=(0.001, 0.001))


def answer(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    report_data = bytes.fromhex(options.pop("report_data", bytes(range(64)).hex()))
    if kind == "key":
        request = DerivedKeyRequest(KeyFields(options.pop("fields")), **options)
        return {"key": SevGuestPlatform(retry=RETRY).derived_key(request).hex()}
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


def main() -> None:
    try:
        outcome = answer(sys.argv[1], json.loads(sys.argv[2]))
    except PlatformError as error:
        outcome = {"reason": error.reason, "message": error.message, "retry_after": error.retry_after}
    print(json.dumps(outcome))


main()
