"""The `pagegate` command. Each command is one module of this package that defines `command`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import click

from pagegate.errors import EndorsementError, PagegateError
from pagegate.evidence.model import Verdict

EXIT_FAILED = 1
EXIT_REJECTED = 2
EXIT_UNREADABLE = 3
EXIT_NO_ENDORSEMENTS = 4
EXIT_USAGE = 64

_NOT_COMMANDS = frozenset({"output"})


class CommandFolder(click.Group):
    """Finds commands by file name and imports only the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(m.name for m in iter_modules(__path__) if m.name not in _NOT_COMMANDS and m.name[0] != "_")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = import_module(f"{__name__}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=CommandFolder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pagegate", message="pagegate %(version)s")
def cli() -> None:
    """Move memory pages between confidential VMs, only after each side has proven what it runs.

    \b
    Exit codes, the same for every command:
      0   done, accepted
      1   failed; the message says why and what to do
      2   rejected: evidence, a policy or a check said no
      3   input cannot be read or parsed
      4   endorsements (certificates, CRLs) are not to be had
      64  the command line is wrong
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with the codes that `pagegate --help` lists."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    try:
        result: Any = cli.main(
            args=list(argv) if argv is not None else None, prog_name="pagegate", standalone_mode=False
        )
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return EXIT_UNREADABLE if isinstance(error, click.FileError) else EXIT_FAILED
    except PagegateError as error:
        click.echo(f"pagegate: {error}", err=True)
        return exit_code(error)
    except BrokenPipeError:
        return 0
    return result if isinstance(result, int) else 0


def exit_code(error: PagegateError) -> int:
    """The exit code of an error, the same in every command."""
    if isinstance(error, EndorsementError) or lacks_endorsements(getattr(error, "verdict", None)):
        return EXIT_NO_ENDORSEMENTS
    if error.reason == "EVIDENCE_REJECTED":
        return EXIT_REJECTED
    return int(getattr(error, "exit_code", EXIT_FAILED))


def lacks_endorsements(verdict: Verdict | None) -> bool:
    """True when evidence could not be appraised for want of certificates: nothing was held against it."""
    return verdict is not None and any(failure.code == "SNP_ENDORSEMENT_MISSING" for failure in verdict.failures)
