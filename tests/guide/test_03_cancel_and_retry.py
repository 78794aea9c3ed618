"""Cancel a task, and try it again.

Whatever a processor is doing, in Python, in C or asleep, a cancelled task is over when the answer to the cancel
arrives. A task that was cancelled or has failed can be tried again: it keeps its id, its file and its history, and the
same stream goes on with the next attempt.
"""

from __future__ import annotations

import httpx

from tests.processes import Platform
from tests.streams import watch

LONG = '{"steps": 2, "step_seconds": 600}'


def test_a_cancelled_task_is_over_at_once(platform: Platform) -> None:
    task = platform.submit("rehearsal", options=LONG)
    platform.wait(task["task_id"], "processing")
    answer = httpx.post(f"{platform.url}{task['links']['cancel']}")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert watch(platform.url, task["task_id"])[-1].status == "cancelled"


def test_a_task_that_has_ended_cannot_be_cancelled_any_more(platform: Platform) -> None:
    task = platform.submit("checksum", b"a file")
    platform.wait(task["task_id"])
    answer = httpx.post(f"{platform.url}/tasks/{task['task_id']}/cancel")
    assert answer.status_code == 409
    assert answer.json()["detail"] == "The task is completed. It has ended, so there is nothing to cancel."


def test_a_failed_task_says_why_and_whether_to_try_again(platform: Platform) -> None:
    task = platform.submit("rehearsal", options='{"steps": 3, "step_seconds": 0, "fail_at": 2}')
    failed = platform.wait(task["task_id"])
    assert failed["status"] == "failed"
    assert failed["error"]["type"] == "processor_error"
    assert "Step 2 failed" in failed["error"]["message"]
    assert "Traceback" not in failed["error"]["message"]


def test_a_retry_is_the_next_attempt_of_the_same_task(platform: Platform) -> None:
    task = platform.submit("rehearsal", options=LONG)
    httpx.post(f"{platform.url}{task['links']['cancel']}")
    answer = httpx.post(f"{platform.url}/tasks/{task['task_id']}/retry")
    assert (answer.status_code, answer.json()["task_id"], answer.json()["attempt"]) == (202, task["task_id"], 2)
    assert platform.wait(task["task_id"], "processing")["attempt"] == 2
    httpx.post(f"{platform.url}{task['links']['cancel']}")


def test_a_task_that_has_ended_can_be_deleted_with_its_files(platform: Platform) -> None:
    task = platform.submit("checksum", b"a file")
    platform.wait(task["task_id"])
    here = f"{platform.url}{task['links']['self']}"
    assert httpx.get(f"{here}/input").content == b"a file"
    assert httpx.delete(here).status_code == 204
    assert httpx.get(here).status_code == 404
    assert httpx.get(f"{here}/input").status_code == 404
