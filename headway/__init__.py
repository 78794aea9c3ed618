"""Headway. `from headway import Client`, or `AsyncClient`, is the Python client: it knows the platform by its HTTP
interface alone, and imports nothing else of ours. The platform itself is `headway.app`; what a processor imports is
`headway.processors`.

    client = Client("http://127.0.0.1:8000")
    for event in client.watch(client.submit("trips.csv", "table-profile")["task_id"]):
        print(event.progress, event.message)

`report` shows the progress of work that no worker of Headway's runs (client/reporting.py):

    with report("nightly-report", total=len(rows)) as job:
        for row in job.track(rows):
            ...

What is asked of the platform is said once, in client/calls.py; how a stream is followed across its breaks, in
client/following.py. The two clients are thin shells around them. Everything that goes wrong is a ClientError.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headway.client.errors import ClientError, Damaged, Declined, Unreachable, WrongUse

if TYPE_CHECKING:
    from headway.client.aio import AsyncClient
    from headway.client.reporting import Cancelled, report
    from headway.client.sync import Client
    from headway.client.wire import Batch, BatchCancelled, Event, ResultFile, Task

__all__ = [
    "AsyncClient",
    "Batch",
    "BatchCancelled",
    "Cancelled",
    "Client",
    "ClientError",
    "Damaged",
    "Declined",
    "Event",
    "ResultFile",
    "Task",
    "Unreachable",
    "WrongUse",
    "report",
]

_HOMES = {"AsyncClient": "aio", "Client": "sync", "Cancelled": "reporting", "report": "reporting"} | dict.fromkeys(
    ("Batch", "BatchCancelled", "Event", "ResultFile", "Task"), "wire"
)


def __getattr__(name: str) -> Any:
    """Brought in when asked for: httpx takes longer than `headway --help` should."""
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"headway.client.{home}"), name)
