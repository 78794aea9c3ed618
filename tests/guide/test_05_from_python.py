"""From Python: submit, follow, fetch.

`headway.Client` does what a browser's `EventSource` does and a little more: it comes back by itself whatever broke,
and tells each event once and in order. `AsyncClient` is the same with `await`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from headway import AsyncClient, Client, Declined
from tests.processes import Platform


def test_a_file_is_submitted_followed_and_its_result_fetched(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "trips.csv").write_text("zone,fare\nOpera,12.5\n")
    with Client(platform.url) as client:
        task = client.submit(tmp_path / "trips.csv", "csv-profile")
        *_, end = client.watch(task["task_id"])
        assert (end.status, end.progress) == ("completed", 100)
        assert end.data["result"]["summary"]["rows"] == 1
        [path] = client.fetch(task["task_id"], tmp_path / "results")
    assert path.read_bytes()


async def test_the_same_with_an_event_loop(platform: Platform) -> None:
    async with AsyncClient(platform.url) as client:
        task = await client.submit(None, "rehearsal", options={"steps": 3, "step_seconds": 0.05})
        progress = [event.progress async for event in client.watch(task["task_id"], last_event_id=0)]
    assert progress == sorted(progress, key=lambda value: value or 0)
    assert progress[-1] == 100


def test_what_the_platform_declines_says_why(platform: Platform) -> None:
    with Client(platform.url) as client, pytest.raises(Declined) as declined:
        client.submit(None, "rehearsal", options={"steps": "many"})
    assert declined.value.status == 422
    assert [error["field"] for error in declined.value.errors] == ["options.steps"]
