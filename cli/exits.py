"""How a command ends: the exit codes of CONTRACT section 1, and the errors that choose one.

    CliError
    ├── WrongUse         2   what was asked for cannot be done as asked; the message says what to do
    │   └── Declined     2   the platform answered with a problem; shown as its `detail` and its field errors
    ├── TaskLost         1   the task ended otherwise than by its own event: its upload was refused by a full disk, …
    └── Unreachable      3   nobody answers, or who answers is not Headway

They are no branch of shared/errors.py because client commands start faster without it (it brings pydantic along).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

import typer


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1  #: the task failed or was cancelled
    WRONG_USE = 2
    UNREACHABLE = 3
    INTERRUPTED = 130  #: Ctrl-C, as a shell has it


class CliError(Exception):
    """Ends the command with its message on stderr and its exit code."""

    exit_code = ExitCode.FAILED


class TaskLost(CliError):
    exit_code = ExitCode.FAILED


class WrongUse(CliError):
    exit_code = ExitCode.WRONG_USE


class Unreachable(CliError):
    exit_code = ExitCode.UNREACHABLE


class Declined(WrongUse):
    """The platform's answer, `application/problem+json`, as a person reads it."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        said = problem.get("detail") or problem.get("title") or "it does not say why"
        lines = [str(said) if status < 500 else f"The platform answers {status}: {said}"]
        lines += [f"  {item.get('field')}: {item.get('message')}" for item in problem.get("errors") or ()]
        super().__init__("\n".join(lines))
        self.status = status
        #: The disk is full, or the server itself failed: not the fault of who asked.
        if status >= 500:
            self.exit_code = ExitCode.FAILED if status == 507 else ExitCode.UNREACHABLE


def complain(message: str) -> None:
    """One message to stderr, without what could steer the terminal: some of it comes from outside."""
    typer.echo(printable(message), err=True)


def printable(text: object) -> str:
    """Control characters but newline become `?`: a file's name must not move the cursor or set the title."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))


@contextmanager
def exits() -> Iterator[None]:
    """Around a command: our errors become a message and an exit code, never a traceback."""
    try:
        yield
    except CliError as error:
        complain(str(error))
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


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
    from shared.errors import SettingsError

    try:
        yield
    except SettingsError as error:
        raise WrongUse(str(error)) from None
