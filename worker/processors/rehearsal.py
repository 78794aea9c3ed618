"""The processor `rehearsal`: work that is only time, for trying a page, and faults on demand, for trying the platform.

It needs no file. Its steps are phases of equal weight, so each is one state event: at the start of step i of n, `step`
is i and `progress` is (i - 1) / n of 100. A fault comes after its step's event, never before. Each step is a
checkpoint: the attempt after a lost one goes on at the step where that was.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import time
from typing import Any, Final, NoReturn, Self

from pydantic import Field, model_validator

from headway.shared.tasks.processors import Job, Options, processor

#: Memory is taken in pieces of this size, so that a limit is met on the way and not in one refused request.
PIECE_BYTES: Final = 16 * 1024 * 1024


class RehearsalOptions(Options):
    """What to rehearse. Steps count from 1."""

    steps: int = Field(default=10, ge=1, le=10_000, description="how many steps")
    step_seconds: float = Field(default=2.0, ge=0, le=3600, allow_inf_nan=False, description="how long each step takes")
    fail_at: int | None = Field(default=None, ge=1, description="the step that raises an error")
    crash_at: int | None = Field(default=None, ge=1, description="the step that kills its own process")
    hang_at: int | None = Field(default=None, ge=1, description="the step that never ends and lets no other thread run")
    memory_bytes: int | None = Field(default=None, ge=0, description="memory to take, and use, from the first step on")

    @model_validator(mode="after")
    def _faults_are_within_the_steps(self) -> Self:
        # A fault that cannot come would look like a platform that survived it.
        for name in ("fail_at", "crash_at", "hang_at"):
            if (at := getattr(self, name)) is not None and at > self.steps:
                raise ValueError(f"{name} is {at}, but there are only {self.steps} steps")
        return self


@processor(
    "rehearsal",
    description="Does nothing, step by step; fails, crashes or hangs where it is told to",
    options=RehearsalOptions,
    needs_file=False,
)
def rehearsal(job: Job) -> dict[str, Any]:
    """Takes `steps` times `step_seconds`. Summary: `steps`.

    Raises RuntimeError at `fail_at`, and MemoryError where `memory_bytes` are not to be had.
    """
    options: RehearsalOptions = job.options
    held: list[bytearray] = []
    names = [f"Processing step {step} of {options.steps}" for step in range(1, options.steps + 1)]
    job.plan(dict.fromkeys(names, 1.0))
    first = job.restored["step"] if job.restored else 1
    if first > 1:
        job.log(f"Resuming at step {first} of {options.steps}")
    for step, name in enumerate(names[first - 1 :], start=first):
        job.phase(name)
        job.checkpoint({"step": step})
        if step == first and options.memory_bytes:
            held = _take(options.memory_bytes)
        if step == options.fail_at:
            raise RuntimeError(f"Step {step} failed, as it was told to.")
        if step == options.crash_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == options.hang_at:
            _hang()
        time.sleep(options.step_seconds)
    del held  # kept until here: the memory is in use for as long as the steps take
    return {"steps": options.steps}


def _take(size_bytes: int) -> list[bytearray]:
    """Memory that is really there: a page that was never written to takes none."""
    pieces = []
    while size_bytes > 0:
        piece = bytearray(min(PIECE_BYTES, size_bytes))
        piece[:: mmap.PAGESIZE] = b"\1" * len(range(0, len(piece), mmap.PAGESIZE))
        pieces.append(piece)
        size_bytes -= len(piece)
    return pieces


def _hang() -> NoReturn:
    """Holds the GIL for ever, as a broken C extension does: no Python of this process runs again but a signal's
    handler. `PyDLL` is the one that keeps the GIL during a call; every libc has `pause`."""
    libc = ctypes.PyDLL(None)
    while True:
        libc.pause()
