"""Reconnect, and miss nothing.

Every event has an id, and a client that comes back says the last one it has seen: `EventSource` does so by itself, in
the header `Last-Event-ID`. What happened meanwhile is told first, in order and once each; then comes what happens now.
You can leave at any time, close the laptop, change the network: the work goes on, and the story is kept for you.
"""

from __future__ import annotations

import httpx

from tests.processes import Platform
from tests.streams import assert_true_story, frames_of, opened, watch

STEPS = '{"steps": 8, "step_seconds": 0.05}'


def test_a_client_that_comes_back_is_told_what_it_missed_and_nothing_twice(platform: Platform) -> None:
    task = platform.submit("rehearsal", options=STEPS)
    with opened(f"{platform.url}{task['links']['events']}?last_event_id=0") as stream:
        received = frames_of(stream)
        before = [next(received), next(received), next(received)]
    # the connection is gone here; the work is not
    after = watch(platform.url, task["task_id"], last_event_id=before[-1].id)
    assert_true_story(before + after, first=1)
    assert after[-1].status == "completed"


def test_a_client_that_comes_late_gets_the_state_as_it_is_now(platform: Platform) -> None:
    task = platform.submit("rehearsal", options=STEPS)
    platform.wait(task["task_id"])
    [only] = watch(platform.url, task["task_id"])
    assert only.status == "completed"
    assert only.data["result"]["summary"] == {"steps": 8}


def test_the_whole_story_can_be_replayed_from_the_beginning(platform: Platform) -> None:
    task = platform.submit("rehearsal", options=STEPS)
    platform.wait(task["task_id"])
    story = watch(platform.url, task["task_id"], last_event_id=0)
    assert_true_story(story, first=1)
    assert list(dict.fromkeys(frame.status for frame in story)) == ["queued", "processing", "completed"]


def test_a_client_that_has_seen_the_end_is_told_not_to_come_back(platform: Platform) -> None:
    task = platform.submit("checksum", b"a file")
    end = watch(platform.url, task["task_id"])[-1]
    events = f"{platform.url}{task['links']['events']}"
    assert httpx.get(events, headers={"Last-Event-ID": str(end.id)}).status_code == 204  # EventSource stops at this


def test_the_stream_is_lines_for_a_person_who_asks_for_text(platform: Platform) -> None:
    task = platform.submit("rehearsal", options='{"steps": 2, "step_seconds": 0}')
    platform.wait(task["task_id"])
    text = httpx.get(f"{platform.url}{task['links']['events']}", headers={"Accept": "text/plain"}).text
    assert "100.0 %  completed" in text
