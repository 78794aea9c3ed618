"""Submit a file and watch it.

You send a file with `POST /tasks` and say which processor is to work on it. The answer comes as soon as the file is
stored, long before the work is done: it is the task, with links to everything you can do with it. Its event stream
tells you how far the work is, and ends with the result.
"""

from __future__ import annotations

import hashlib
import json

import httpx

from tests.processes import Platform
from tests.streams import frames_of, opened

CSV = b"city,people\nLisbon,545\nPorto,232\nFaro,\n"


def test_a_file_is_submitted_with_the_name_of_its_processor(platform: Platform) -> None:
    answer = httpx.post(
        f"{platform.url}/tasks",
        files={"file": ("cities.csv", CSV, "text/csv")},
        data={"processor": "csv-profile"},
    )
    assert answer.status_code == 202
    task = answer.json()
    assert answer.headers["Location"] == task["links"]["self"] == f"/tasks/{task['task_id']}"
    assert (task["filename"], task["size_bytes"], task["status"]) == ("cities.csv", len(CSV), "queued")


def test_its_stream_tells_the_whole_story_and_ends_with_the_result(platform: Platform) -> None:
    task = platform.submit("csv-profile", CSV, filename="cities.csv")
    with opened(f"{platform.url}{task['links']['events']}") as stream:
        story = list(frames_of(stream))  # the server ends the stream after the last event
    *_, last = story
    assert last.data["status"] == "completed"
    assert last.data["progress"] == 100
    summary = last.data["result"]["summary"]
    assert summary["rows"] == 3
    assert [(column["name"], column["nulls"]) for column in summary["columns"]] == [("city", 0), ("people", 1)]


def test_progress_rises_and_says_what_is_being_done(platform: Platform) -> None:
    task = platform.submit("rehearsal", options='{"steps": 4, "step_seconds": 0.05}')
    with opened(f"{platform.url}{task['links']['events']}") as stream:
        story = [frame.data for frame in frames_of(stream)]
    progress = [state["progress"] for state in story]
    assert progress == sorted(progress)
    assert [state["message"] for state in story if state["step"] == 2] == ["Processing step 2 of 4"]


def test_the_task_can_be_asked_for_at_any_time(platform: Platform) -> None:
    task = platform.submit("checksum", CSV)
    done = platform.wait(task["task_id"])
    assert done["result"]["summary"]["sha256"] == hashlib.sha256(CSV).hexdigest()
    listed = httpx.get(f"{platform.url}/tasks", params={"processor": "checksum"}).json()["tasks"]
    assert task["task_id"] in [other["task_id"] for other in listed]


def test_a_large_file_can_be_announced_first_and_watched_from_its_first_byte(platform: Platform) -> None:
    announcement = {"processor": "checksum", "filename": "cities.csv", "size_bytes": len(CSV)}
    task = httpx.post(f"{platform.url}/tasks", json=announcement).json()
    with opened(f"{platform.url}{task['links']['events']}") as stream:
        story = frames_of(stream)
        assert next(story).data["status"] == "uploading"
        httpx.put(f"{platform.url}{task['links']['upload']}", content=CSV)
        *_, last = story
    assert last.data["status"] == "completed"


def test_what_is_wrong_with_a_request_is_said_field_by_field(platform: Platform) -> None:
    answer = httpx.post(
        f"{platform.url}/tasks",
        files={"file": ("cities.csv", CSV)},
        data={"processor": "rehearsal", "options": json.dumps({"steps": 0, "colour": "red"})},
    )
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert [error["field"] for error in answer.json()["errors"]] == ["options.steps", "options.colour"]
