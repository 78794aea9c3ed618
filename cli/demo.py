"""`headway up --demo`: what `make run` shows. A large sample, submitted over HTTP, watched on its stream, its result.

It is a client like any other: all it knows of the platform is its address.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from headway import AsyncClient
from headway.cli import bar, summary
from headway.cli.exits import TaskLost
from headway.cli.sample import write_sample
from headway.cli.submit import Submission, submit
from headway.cli.watched import Watched

if TYPE_CHECKING:
    from headway.cli.up import Plan

#: Large enough that there is something to watch.
SAMPLE_BYTES: Final = 100_000_000


async def demo(plan: Plan) -> None:
    """Raises TaskLost if the task does not complete."""
    sample = plan.settings.data_dir / "sample" / "trips.csv"
    if not sample.exists() or sample.stat().st_size < SAMPLE_BYTES * 0.99:
        typer.echo(f"Writing a sample of {bar.size(SAMPLE_BYTES)} to {sample}")
        await _in_daemon_thread(sample)
    typer.echo(f"Submitting {sample} to csv-profile")
    keys = [key.get_secret_value() for key in plan.settings.api_keys.values()]
    watched = Watched(plan.address)
    async with AsyncClient(plan.address, keys[0] if keys else None) as client:
        with bar.on_stderr(lines_without_terminal=True) as display:
            [task] = await submit(client, display, [Submission("csv-profile", {}, sample)], watched)
    summary.print_end(task, plan.address)
    if task["status"] != "completed":
        raise TaskLost("The demonstration's task did not complete.")
    typer.echo(f"See it at {plan.address}/#task={task['task_id']}   (Ctrl-C ends everything)")


async def _in_daemon_thread(sample: Path) -> None:
    """Writes the sample, whole or not at all. Ctrl-C does not wait for it, as it would for asyncio's threads."""
    loop, written = asyncio.get_running_loop(), asyncio.Event()
    failed: list[OSError] = []

    def write() -> None:
        try:
            sample.parent.mkdir(exist_ok=True)
            partial = sample.with_suffix(".partial")
            write_sample(partial, SAMPLE_BYTES)
            partial.replace(sample)
        except OSError as error:
            failed.append(error)
        loop.call_soon_threadsafe(written.set)

    threading.Thread(target=write, daemon=True).start()
    await written.wait()
    if failed:
        raise TaskLost(f"The sample cannot be written: {failed[0].strerror}.")
