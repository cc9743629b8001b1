"""A real PostgreSQL server on a Unix socket in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=Path("/none/initdb")).parent


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    if not (_BINARIES / "initdb").exists():
        pytest.skip("NOT TESTED: the PostgreSQL store; no server is installed (apt install postgresql)")
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    shutil.chown(folder, user)
    data = folder / "data"

    def run(*command: str) -> None:
        subprocess.run(
            command, check=True, cwd=folder, user=user if os.geteuid() == 0 else None, stdout=subprocess.DEVNULL
        )

    run(str(_BINARIES / "initdb"), "-D", str(data), "-A", "trust", "-U", "pagegate", "--no-sync")
    options = f"-c listen_addresses= -c unix_socket_directories={folder}"
    control = str(_BINARIES / "pg_ctl")
    run(control, "-D", str(data), "-o", options, "-w", "-l", str(folder / "log"), "start")
    try:
        run(str(_BINARIES / "createdb"), "-h", str(folder), "-U", "pagegate", "audit")
        yield f"postgresql://pagegate:not-shown@/audit?host={folder}"
    finally:
        run(control, "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder)
