"""Reading an event stream in tests, strictly: what is not exactly the contract's wire fails."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

#: A stream that says nothing for this long has hung.
READ_SECONDS = 30.0


@dataclass(frozen=True)
class Frame:
    id: int
    name: str
    data: dict[str, Any]

    @property
    def status(self) -> str:
        return str(self.data["status"])


def parse_block(block: bytes) -> Frame | None:
    """One block between empty lines; None for a comment or a bare `retry:`."""
    assert b"\r" not in block
    assert block.isascii()
    fields: dict[str, str] = {}
    for line in block.decode().split("\n"):
        if line.startswith(":"):
            continue
        name, _, value = line.partition(": ")
        assert name in ("retry", "id", "event", "data"), line
        assert name not in fields, f"two {name} lines"
        fields[name] = value
    if "data" not in fields:
        assert "id" not in fields, "a frame with an id and no data"
        return None
    # What is of this moment alone has no id.
    assert ("id" in fields) == (fields.get("event") != "transfer"), fields
    return Frame(int(fields.get("id", 0)), fields.get("event", ""), json.loads(fields["data"]))


@contextmanager
def opened(url: str, **headers: str) -> Iterator[httpx.Response]:
    with httpx.stream("GET", url, headers=headers, timeout=httpx.Timeout(10, read=READ_SECONDS)) as answer:
        yield answer


def frames_of(answer: httpx.Response) -> Iterator[Frame]:
    """Every event until the server ends the stream; raises where the ending is not clean."""
    assert answer.status_code == 200, answer.read()
    buffer = b""
    for chunk in answer.iter_raw():
        buffer += chunk
        *blocks, buffer = buffer.split(b"\n\n")
        for block in blocks:
            if (frame := parse_block(block)) is not None:
                yield frame
    assert b"data" not in buffer, f"the stream ended inside an event: {buffer!r}"


def watch(url: str, task_id: str, last_event_id: int | str | None = None) -> list[Frame]:
    """The whole stream of a task."""
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    with opened(f"{url}/tasks/{task_id}/events", **headers) as answer:
        return list(frames_of(answer))


async def frames(client: httpx.AsyncClient, url: str, **headers: str) -> AsyncIterator[Frame]:
    """As `frames_of`, for a test with many streams."""
    timeout = httpx.Timeout(10, read=READ_SECONDS)
    async with client.stream("GET", url, headers=headers, timeout=timeout) as answer:
        assert answer.status_code == 200
        buffer = b""
        async for chunk in answer.aiter_raw():
            buffer += chunk
            *blocks, buffer = buffer.split(b"\n\n")
            for block in blocks:
                if (frame := parse_block(block)) is not None:
                    yield frame


def assert_true_story(story: list[Frame], *, first: int | None = None) -> None:
    """Ids rise by one without holes (a gap stands for what it names), progress never falls within an attempt, and one
    terminal event is the last."""
    assert story
    if first is not None:
        assert story[0].id == first
    seen = story[0].id - 1 if story[0].name != "gap" else story[0].data["from"] - 1
    progress: dict[int, float] = {}
    for frame in story:
        if frame.name == "transfer":
            continue
        if frame.name == "gap":
            assert frame.data["from"] == seen + 1
            assert frame.id == frame.data["to"] >= frame.data["from"]
        else:
            assert frame.id == seen + 1, f"after {seen} came {frame.id}"
        seen = frame.id
        if not frame.name:
            assert frame.data["version"] == frame.id
            assert frame.data["progress"] >= progress.get(frame.data["attempt"], 0.0)
            assert (frame.data["progress"] == 100) == (frame.status == "completed")
            progress[frame.data["attempt"]] = frame.data["progress"]
    ends = [frame for frame in story if not frame.name and frame.status in ("completed", "failed", "cancelled")]
    assert ends == [story[-1]]
