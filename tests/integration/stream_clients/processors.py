"""The processor `telling`: events that are hard to get across, one at a time, when the test lets it go on.

Named to a platform by HEADWAY_PROCESSORS; see `telling_platform`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from headway.shared.tasks.processors import Job, Options, processor
from tests.processes import Platform, Server
from tests.waiting import wait_for

ROOT: Final = Path(__file__).parents[3]

#: What a stream must escape, and what a careless client would take for a field, a line's end, a BOM or an end.
HARD_TEXT: Final = (
    'Zürich „naïve“ ☃ 𝄞 \N{ZERO WIDTH NO-BREAK SPACE}\u2028\u2029\x85 "quoted" back\\slash \\u2603 </script> '
    "\x00\x1f\x7f\r\nid: 999\ndata: {}\n\nevent: log\rretry: 1\n: comment"
)
RESULT_NAME: Final = "Übersicht ☃ 𝄞.txt"


class TellingOptions(Options):
    gate: str | None = Field(default=None, description="a folder: step k waits for the file k in it")
    gates: int = Field(default=10_000, description="how many of the first steps wait")
    steps: int = 6
    step_seconds: float = 0.0


@processor("telling", options=TellingOptions, needs_file=False, confined=False)  # it looks at the gate
def telling(job: Job) -> dict[str, Any]:
    """Each step is one state event and, every second one, a log line."""
    options: TellingOptions = job.options
    job.plan({f"{step} {HARD_TEXT}": 1.0 for step in range(1, options.steps + 1)})
    for step in range(1, options.steps + 1):
        if options.gate is not None and step <= options.gates:
            wait_for(f"gate {step}", (Path(options.gate) / str(step)).exists, seconds=50)
        job.phase(f"{step} {HARD_TEXT}")
        if step % 2 == 0:
            job.log(f"{step} {HARD_TEXT}", "warning")
        time.sleep(options.step_seconds)  # a processor's work is time; no test waits by it
    with job.create_output(RESULT_NAME) as file:
        file.write(b"done")
    return {"text": HARD_TEXT}


@contextmanager
def telling_platform(folder: Path, redis_url: str, server: Server = "headway api") -> Iterator[Platform]:
    """A worker and an API that know `telling`, with heartbeats that come between its events."""
    env = {"HEADWAY_PROCESSORS": telling.__module__, "PYTHONPATH": str(ROOT), "HEADWAY_HEARTBEAT_SECONDS": "0.2"}
    with Platform(folder, redis_url, **env) as platform:
        platform.start_worker()
        platform.start_api(server=server)
        yield platform
