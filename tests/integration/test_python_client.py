"""The Python client on a real platform that is killed and restarted under it: every event once, in order."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from headway import AsyncClient, Client, Declined, Event, Unreachable, WrongUse
from tests.processes import Platform, free_port
from tests.waiting import wait_for, wait_until

#: How often the API is ended under a stream, by SIGTERM and SIGKILL in turn; CLIENT_KILLS is for a longer trial.
KILLS = int(os.environ.get("CLIENT_KILLS", "2"))


@pytest.fixture
def restarting(own_platform: Platform) -> Platform:
    own_platform.start_worker()
    own_platform.start_api()
    return own_platform


def restart(platform: Platform, number: signal.Signals) -> None:
    """Ends the API, and starts another on its port."""
    api = platform.apis[-1]
    api.signal(number)
    api.wait(10)
    platform.start_api(port=int(platform.url.rpartition(":")[2]))


def assert_whole(heard: list[Event], end: str) -> None:
    assert [int(event.id) for event in heard] == list(range(1, len(heard) + 1)), "each once, in order"
    assert [event.status for event in heard if event.is_terminal] == [heard[-1].status] == [end]


@pytest.mark.timeout(240 + 40 * KILLS)
def test_a_watcher_hears_every_event_once_and_in_order_while_the_api_is_killed(restarting: Platform) -> None:
    heard: list[Event] = []
    with Client(restarting.url) as client:
        task_id = client.submit(None, "rehearsal", options={"steps": 9999, "step_seconds": 0.1})["task_id"]

        def watch() -> None:
            for event in client.watch(task_id, last_event_id=0):
                heard.append(event)  # noqa: PERF402 - read by the other thread meanwhile

        watching = threading.Thread(target=watch)
        watching.start()
        for turn in range(KILLS):
            before = len(heard)
            wait_for("the client hears something new", partial(lambda n: len(heard) > n + 2, before), seconds=30)
            restart(restarting, (signal.SIGTERM, signal.SIGKILL)[turn % 2])
        client.cancel(task_id)
        watching.join(30)
    assert_whole(heard, "cancelled")


@pytest.mark.timeout(240)
async def test_so_does_one_in_an_event_loop_and_an_upload_in_the_middle_is_sent_again(
    restarting: Platform, tmp_path: Path
) -> None:
    content = os.urandom(64 * 1024 * 1024)
    path = tmp_path / "large.bin"
    path.write_bytes(content)
    heard: list[Event] = []
    async with AsyncClient(restarting.url) as client:
        announced = {"processor": "checksum", "filename": path.name, "size_bytes": len(content)}
        task = await client.create(announced)

        async def watch() -> None:
            async for event in client.watch(task["task_id"], last_event_id=0):
                heard.append(event)  # noqa: PERF401 - read meanwhile

        watching, sending = asyncio.create_task(watch()), asyncio.create_task(client.upload(task, path))
        await wait_until("bytes arrive", lambda: any((event.data.get("done") or 0) > 0 for event in heard))
        await asyncio.to_thread(restart, restarting, signal.SIGKILL)
        await sending
        await watching
    assert_whole(heard, "completed")
    assert heard[-1].data["result"]["summary"]["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_stream_asked_for_while_nobody_answers_waits_and_a_question_does_not(restarting: Platform) -> None:
    with Client(restarting.url) as client:
        task_id = client.submit(None, "rehearsal", options={"steps": 2, "step_seconds": 0})["task_id"]
        restarting.wait(task_id)
        restarting.apis[-1].kill()
        with pytest.raises(Unreachable, match="headway up"):
            client.task(task_id)
        with pytest.raises(Unreachable, match="headway up"):
            next(client.watch(task_id, patient=False))
        port = int(restarting.url.rpartition(":")[2])
        starting = threading.Thread(target=restarting.start_api, kwargs={"port": port})
        starting.start()
        assert [event.status for event in client.watch(task_id)] == ["completed"]
        starting.join()


def test_it_gives_up_on_an_unknown_task_and_after_its_patience(platform: Platform) -> None:
    with Client(platform.url) as client, pytest.raises(Declined) as declined:
        list(client.watch("0" * 32))
    assert declined.value.status == 404
    with Client(f"http://127.0.0.1:{free_port()}", patience_seconds=0.5) as client, pytest.raises(Unreachable):
        list(client.watch("0" * 32))


def test_who_has_seen_the_end_hears_nothing(platform: Platform) -> None:
    with Client(platform.url) as client:
        task_id = client.submit(None, "rehearsal", options={"steps": 1, "step_seconds": 0})["task_id"]
        [*_, end] = client.watch(task_id)
        assert list(client.watch(task_id, last_event_id=end.id)) == []


SOURCES: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "text": str,
    "open file": lambda path: path.open("rb"),
    "bytes in memory": lambda path: io.BytesIO(path.read_bytes()),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_is_submitted_from_a_path_or_an_open_file(platform: Platform, tmp_path: Path, source: str) -> None:
    path = tmp_path / "hello.txt"
    path.write_bytes(b"hello\n")
    with Client(platform.url) as client:
        given = SOURCES[source](path)
        task = client.submit(given, "checksum", filename="named.txt" if source == "bytes in memory" else None)
        [*_, end] = client.watch(task["task_id"])
        assert task["filename"] == ("named.txt" if source == "bytes in memory" else "hello.txt")
        assert end.data["result"]["summary"]["sha256"] == hashlib.sha256(b"hello\n").hexdigest()
    if source == "open file":
        assert not given.closed
        given.close()


def test_what_comes_from_a_pipe_is_sent_without_a_size(platform: Platform) -> None:
    with subprocess.Popen([sys.executable, "-c", "print('x' * 99)"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with Client(platform.url) as client:
            task = client.submit(process.stdout, "checksum", filename="pipe.txt")
            [*_, end] = client.watch(task["task_id"])
    assert end.data["result"]["summary"]["size_bytes"] == 100


def test_one_idempotency_key_is_one_task(platform: Platform, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a")
    with Client(platform.url) as client:
        key = os.urandom(8).hex()
        ids = {client.submit(path, "checksum", idempotency_key=key)["task_id"] for _ in range(3)}
    assert len(ids) == 1


def test_a_batch_is_watched_as_one_and_its_tasks_on_one_connection(platform: Platform, tmp_path: Path) -> None:
    batch_id = "batch-" + os.urandom(4).hex()
    with Client(platform.url) as client:
        ids = set()
        for name in ("a", "b", "c"):
            (tmp_path / name).write_bytes(name.encode())
            ids.add(client.submit(tmp_path / name, "checksum", batch_id=batch_id)["task_id"])
        *_, rollup = client.watch_batch(batch_id)
        assert rollup.data["counts"]["completed"] == 3
        assert client.batch(batch_id)["progress"] == 100
        assert client.cancel_batch(batch_id) == {"batch_id": batch_id, "tasks": 3, "cancelled": 0, "ended": 3}
        assert {task["task_id"] for task in client.tasks(batch_id=batch_id)} == ids
        ended = {event.task_id for event in client.watch_tasks(ids) if event.is_terminal}
        assert ended == ids


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_task_is_listed_noted_cancelled_retried_fetched_and_deleted(
    platform: Platform, tmp_path: Path, kind: Literal["sync", "async"]
) -> None:
    if kind == "sync":
        await asyncio.to_thread(whole_life, platform, tmp_path)
        return
    async with AsyncClient(platform.url) as client:
        task_id = (await client.submit(None, "rehearsal", options={"steps": 300, "step_seconds": 0.1}))["task_id"]
        await client.note(task_id, "ada", "hello")
        assert (await client.cancel(task_id))["status"] == "cancelled"
        assert (await client.retry(task_id))["attempt"] == 2
        await client.cancel(task_id)
        assert task_id in [task["task_id"] async for task in client.tasks(status="cancelled", processor="rehearsal")]
        await client.delete(task_id)
        with pytest.raises(Declined):
            await client.task(task_id)
        (tmp_path / "a.csv").write_text("a,b\n1,2\n")
        done = await client.submit(tmp_path / "a.csv", "csv-profile")
        names = [event.name async for event in client.watch(done["task_id"])]
        assert names[-1] == ""
        [path] = await client.fetch(done["task_id"], tmp_path / "out")
        assert path.is_file()
        assert "csv-profile" in {processor["name"] for processor in await client.processors()}


def whole_life(platform: Platform, tmp_path: Path) -> None:
    with Client(platform.url) as client:
        task_id = client.submit(None, "rehearsal", options={"steps": 300, "step_seconds": 0.1})["task_id"]
        client.note(task_id, "ada", "hello")
        assert client.cancel(task_id)["status"] == "cancelled"
        assert client.retry(task_id)["attempt"] == 2
        client.cancel(task_id)
        assert [task["task_id"] for task in client.tasks(status="cancelled", limit=1)] == [task_id]
        said = [event for event in client.watch(task_id, last_event_id=0) if event.name == "note"]
        assert [(event.data["author"], event.message) for event in said] == [("ada", "hello")]
        client.delete(task_id)
        with pytest.raises(Declined):
            client.task(task_id)
        (tmp_path / "a.csv").write_text("a,b\n1,2\n")
        done = client.submit(tmp_path / "a.csv", "csv-profile")
        with pytest.raises(WrongUse, match="only a completed task"):
            client.fetch(client.submit(None, "rehearsal", options={"steps": 1})["task_id"], tmp_path)
        list(client.watch(done["task_id"]))
        [path] = client.fetch(done["task_id"], tmp_path / "out")
        assert client.fetch(done["task_id"], tmp_path / "out") == [path]
        path.write_text("mine")
        with pytest.raises(WrongUse, match="differs"):
            client.fetch(done["task_id"], tmp_path / "out")
        assert [found.name for found in (tmp_path / "out").iterdir()] == [path.name]
