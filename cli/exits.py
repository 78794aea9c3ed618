"""How a command ends: the exit codes of CONTRACT section 1, and which of them an error chooses.

    0   done
    1   the task failed or was cancelled; a file arrived damaged; the platform's disk is full; doctor found a problem
    2   wrong use: what was asked for cannot be done as asked, or the platform declines it
    3   nobody answers, or who answers is not Headway, or it fails itself
    130 Ctrl-C, as a shell has it

The errors are the Python client's (headway/client/errors.py), with one of our own. No command ends in a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import typer

from headway.client.errors import ClientError, Declined, Unreachable, WrongUse
from headway.needs import how_to_install, missing_extra


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1
    WRONG_USE = 2
    UNREACHABLE = 3
    INTERRUPTED = 130


class TaskLost(ClientError):
    """The task ended otherwise than by its own event."""


def code_of(error: ClientError) -> ExitCode:
    match error:
        case Declined(status=507):
            return ExitCode.FAILED
        case Declined(status=status) if status >= 500:  # the server's own failure: not the fault of who asked
            return ExitCode.UNREACHABLE
        case Declined() | WrongUse():
            return ExitCode.WRONG_USE
        case Unreachable():
            return ExitCode.UNREACHABLE
        case _:
            return ExitCode.FAILED


def complain(message: str) -> None:
    """One message to stderr, without what could steer the terminal: some of it comes from outside."""
    typer.echo(printable(message), err=True)


def printable(text: object) -> str:
    """Control characters but newline become `?`: a file's name must not move the cursor or set the title."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))


@contextmanager
def exits() -> Iterator[None]:
    """Around a command: our errors become a message and an exit code, never a traceback. So does an extra of the
    package that is not installed."""
    try:
        yield
    except ImportError as error:
        if (extra := missing_extra(error)) is None:
            raise
        complain(how_to_install("This command", extra))
        raise typer.Exit(ExitCode.WRONG_USE) from None
    except ClientError as error:
        complain(str(error))
        raise typer.Exit(code_of(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except BrokenPipeError:
        raise typer.Exit(_closed_stdout()) from None


def _closed_stdout() -> ExitCode:
    """`headway … | head` has seen enough. The interpreter would complain when it flushes what nobody reads."""

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.FAILED


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Around what makes and opens files of ours in `folder`: an OSError becomes WrongUse, in one line."""
    try:
        yield
    except OSError as error:
        raise WrongUse(f"{error.filename or folder} cannot be used: {error.strerror}.") from None


@contextmanager
def settings_errors() -> Iterator[None]:
    """Around what reads settings: SettingsError becomes wrong use. For commands that import shared/ anyway."""
    from headway.shared.errors import SettingsError

    try:
        yield
    except SettingsError as error:
        raise WrongUse(str(error)) from None
