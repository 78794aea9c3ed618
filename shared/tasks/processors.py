"""The plug-in contract: what a processor is, what it is handed, and how it is found.

A processor is a function in a module of anybody's:

    from headway.processors import Job, processor

    @processor("line-count", description="Counts lines", accepts=("text/*",))
    def line_count(job: Job) -> dict[str, int]:
        with job.open_input() as file:
            return {"lines": sum(1 for _ in job.track(file, unit="lines"))}

It is found by the entry-point group `headway.processors` (each entry names a module) or by HEADWAY_PROCESSORS. It runs
in a process of its own, so it may block, crash, or be killed; what it returns is the result's `summary`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from headway.shared.errors import InvalidRequest
from headway.shared.tasks.models import FieldError
from headway.shared.tasks.retries import Retries
from headway.shared.units import DAY_SECONDS, GIB

T = TypeVar("T")

#: A processor's name stands in addresses, command lines and metrics.
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


class Options(BaseModel):
    """The base of a processor's options: a field of another name is an error, not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Job(Protocol):
    """What a processor is handed. All of it is cheap: progress is sampled, not sent, at most 20 times a second."""

    #: The validated options: an instance of the class the processor was declared with.
    options: Any
    #: The name the file had at its sender; never a path on this machine. None for a task without a file.
    filename: str | None
    content_type: str | None
    size_bytes: int
    #: This process's limit, so that a library with a memory setting of its own can be told.
    memory_bytes: int
    attempt: int
    #: What the attempt before this one gave to `checkpoint`, else None.
    restored: Any

    @property
    def input_path(self) -> str:
        """The input as a file on this machine, to hand to a library that wants a path. Read only."""

    def open_input(self) -> BinaryIO:
        """The input, opened for reading from its start. What is read counts as `done` bytes of the phase by itself,
        unless the phase was given a total of its own."""

    def create_output(self, name: str, content_type: str | None = None, *, live: bool = False) -> BinaryIO:
        """A new result file, opened for writing. It can be downloaded once the task has completed; with `live` it can
        be read while it grows (`?follow=1`), so what is written stays as it is."""

    def output_path(self, name: str, content_type: str | None = None) -> str:
        """As `create_output`, for a library that writes to a path itself."""

    def plan(self, phases: Mapping[str, float]) -> None:
        """Declares the phases of this run and their weights, where they depend on the options."""

    def phase(
        self,
        name: str,
        *,
        weight: float | None = None,
        total: int | None = None,
        unit: str | None = None,
        done: int = 0,
    ) -> AbstractContextManager[None]:
        """Starts the next phase; used plainly or in a `with`. It takes the weight it was declared with in `processor`
        or `plan`, and those declared before it that were left out count as done; an undeclared one takes
        `weight / (weight + 1)` of what is left (weight 1, if none is given). `done` units of it were done before, by an
        attempt that was lost."""

    def advance(self, n: int = 1) -> None:
        """`n` more units are done in this phase."""

    def progress_to(self, done: int, total: int | None = None) -> None:
        """`done` units are done in this phase: for a library that counts by itself."""

    def track(
        self, iterable: Iterable[T], *, total: int | None = None, unit: str | None = None, done: int = 0
    ) -> Iterator[T]:
        """Counts what it passes on. The total is `len(iterable)` where it has one. `done` more were done before, by an
        attempt that was lost."""

    def tqdm_hook(self) -> AbstractContextManager[None]:
        """Inside it the bars that tqdm draws, in a library too, count for this job: the outermost is a phase."""

    def log(self, text: str, level: str = "info") -> None:
        """A line for the people who watch: a `log` event. Level `info`, `warning` or `error`."""

    def partial(self, value: Any) -> None:
        """Shows `value` (JSON, at most 16 KiB) to whoever watches, as `partial` in the state, until the next one. It is
        sent at most 4 times a second, the newest only, and a new attempt begins without one."""

    def checkpoint(self, state: Any) -> None:
        """Keeps `state` (JSON, at most 64 KiB) for the next attempt's `restored`, should this one be lost or given back
        by a worker that stops. It is sent at most 4 times a second, the newest only. Output files are not kept."""


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor as it was declared. `phases` maps a phase's name to its weight; weights are relative."""

    name: str
    run: Callable[[Job], Mapping[str, Any] | None]
    description: str
    accepts: tuple[str, ...] = ("*/*",)
    options: type[Options] = Options
    phases: Mapping[str, float] = field(default_factory=dict)
    needs_file: bool = True
    #: Modules that are slow to import: the fork server imports them once, ahead of every child.
    preload: tuple[str, ...] = ()
    #: In a box of its own (worker/box/keeper.py), as far as the kernel has walls for it.
    confined: bool = True
    #: What it needs beyond its box: the network; places it reads, absolute; variables of the worker's environment; a
    #: GPU.
    network: bool = False
    reads: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    gpu: bool = False
    #: Where it was found, for a message about it.
    origin: str = ""
    #: How many of its tasks run at once, over all workers; how long one attempt may run, and what memory it may have,
    #: in place of the settings'; when it is tried again. None: no limit, the settings', never.
    concurrency: int | None = None
    timeout_seconds: float | None = None
    memory_bytes: int | None = None
    retries: Retries | None = None
    #: Names that it had before, which go on to work.
    aliases: tuple[str, ...] = ()
    #: Of an entry under such a name, the name of today.
    alias_of: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for a declaration that could not work, where it is written."""
        if wrong_name := next((name for name in (self.name, *self.aliases) if not _NAME.fullmatch(name)), None):
            raise ValueError(
                f"{wrong_name!r} is no name for a processor: letters, digits, '.', '_' and '-', at most 64. Example: "
                "@processor('line-count')"
            )
        if not (isinstance(self.options, type) and issubclass(self.options, Options)):
            raise TypeError(
                f"options={self.options!r} of the processor {self.name!r} is no class of options. Example: "
                "class Sizes(Options): width: int = 100"
            )
        wrong = [one for one in self.accepts if not re.fullmatch(r"[\w.+-]+/(?:[\w.+-]+|\*)|\*/\*", one)]
        if wrong:
            raise ValueError(
                f"accepts={wrong!r} of the processor {self.name!r}: a media type is 'text/csv' or 'text/*'"
            )
        self._check_limit("concurrency", self.concurrency, 1, 1_000_000, whole=True)
        self._check_limit("timeout_seconds", self.timeout_seconds, 0.1, 30 * DAY_SECONDS)
        self._check_limit("memory_bytes", self.memory_bytes, 64 * 1024**2, 1024 * GIB, whole=True)
        if self.retries is not None and not isinstance(self.retries, Retries):
            raise TypeError(
                f"retries={self.retries!r} of the processor {self.name!r}: write Retries(max=3, backoff_seconds=5)"
            )

    def _check_limit(self, name: str, value: Any, least: float, most: float, *, whole: bool = False) -> None:
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if value is not None and not (fits and least <= value <= most):
            kind = "a whole number" if whole else "a number"
            raise ValueError(
                f"{name}={value!r} of the processor {self.name!r}: {kind} from {least:g} to {most:g}, or None"
            )

    def parse_options(self, options: Mapping[str, Any]) -> Options:
        """Raises InvalidRequest with a line for each option that is wrong."""
        try:
            return self.options.model_validate(options)
        except ValidationError as error:
            fields = [
                FieldError(field=".".join(("options", *map(str, e["loc"]))), message=e["msg"])
                for e in error.errors(include_url=False, include_input=False, include_context=False)
            ]
            raise InvalidRequest(
                f"The options are not those of the processor {self.name!r}; GET /processors lists them.", fields
            ) from None


def processor(
    name: str,
    *,
    description: str = "",
    accepts: Iterable[str] = ("*/*",),
    options: type[Options] = Options,
    phases: Mapping[str, float] | None = None,
    needs_file: bool = True,
    preload: Iterable[str] = (),
    confined: bool = True,
    network: bool = False,
    reads: Iterable[str | os.PathLike[str]] = (),
    env: Iterable[str] = (),
    gpu: bool = False,
    concurrency: int | None = None,
    timeout_seconds: float | None = None,
    memory_bytes: int | None = None,
    retries: Retries | None = None,
    aliases: Iterable[str] = (),
) -> Callable[[Callable[[Job], Mapping[str, Any] | None]], Callable[[Job], Mapping[str, Any] | None]]:
    """Declares a function as the processor `name`. `accepts` are media types, `text/*` included; content decides, not
    the name. What it needs beyond its box it says: `network`, `reads` (absolute paths), `env` (names of the worker's
    variables), `gpu`; `confined=False` takes the box away. `concurrency`: how many of its tasks run at once, over all
    workers. `timeout_seconds` and `memory_bytes` of one attempt, in place of the settings'. `retries`: when a failed
    attempt is tried again by itself. `aliases` are names that it had before: they go on to work. The function stays a
    plain function."""
    places = tuple(os.fspath(path) for path in (reads if not isinstance(reads, (str, os.PathLike)) else (reads,)))
    variables = (env,) if isinstance(env, str) else tuple(env)
    if relative := [path for path in places if not os.path.isabs(path)]:  # noqa: PTH117
        raise ValueError(f"processor {name!r}: reads={relative[0]!r} is not an absolute path")
    if ours := [variable for variable in variables if variable.startswith("HEADWAY_")]:
        raise ValueError(f"processor {name!r}: env={ours[0]!r} is Headway's own, and no processor's")

    def declare(run: Callable[[Job], Mapping[str, Any] | None]) -> Callable[[Job], Mapping[str, Any] | None]:
        if inspect.isgeneratorfunction(run) or inspect.isasyncgenfunction(run):
            raise TypeError(
                f"{run.__qualname__} is a generator, which is no processor: call job.track or job.advance for "
                "progress, and return the summary"
            )
        try:
            inspect.signature(run).bind(None)
        except TypeError:
            raise TypeError(
                f"{run.__qualname__}{inspect.signature(run)} is no processor: it is called with one argument, the job. "
                f"Example: def {run.__name__}(job: Job)"
            ) from None
        text = description or inspect.cleandoc(run.__doc__ or "").partition("\n")[0]
        run.__headway_processor__ = Processor(  # type: ignore[attr-defined]
            *(
                name,
                _without_a_loop(run),
                text,
                tuple(accepts),
                options,
                dict(phases or {}),
                needs_file,
                tuple(preload),
            ),
            *(confined, network, places, variables, gpu, run.__module__),
            *(concurrency, timeout_seconds, memory_bytes, retries),
            aliases=tuple(aliases),
        )
        return run

    return declare


def _without_a_loop(run: Callable[[Job], Any]) -> Callable[[Job], Mapping[str, Any] | None]:
    """An `async def` runs in an event loop of its own, in the child's main thread."""
    if not inspect.iscoroutinefunction(run):
        return run

    @functools.wraps(run)
    def with_a_loop(job: Job) -> Mapping[str, Any] | None:
        summary: Mapping[str, Any] | None = asyncio.run(run(job))
        return summary

    return with_a_loop
