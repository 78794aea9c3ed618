"""The only place that spells a Redis key. Every key starts with `headway:`, arq's own queue and job keys included.

arq derives `arq:job:`, `arq:retry:` and `arq:in-progress:` keys from the job id by itself; they are named here so that
one script can enqueue in the same step that changes the state.
"""

from __future__ import annotations

from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix

from shared.models import OwnerId, TaskId

#: arq's sorted set of waiting and running jobs.
QUEUE = "headway:queue"
#: Pub/sub: `wake` when a job was enqueued or given back, `stop TASK_ID` when a task was cancelled.
CONTROL = "headway:control"
#: Sorted set, worker id by the Redis time in ms of its last heartbeat.
WORKERS = "headway:workers"


def state(task_id: TaskId) -> str:
    """Hash: the task, a JSON text a field."""
    return f"headway:task:{task_id}"


def events(task_id: TaskId) -> str:
    """Stream: the last HEADWAY_HISTORY_LENGTH events, entry id `{version}-0`."""
    return f"headway:task:{task_id}:events"


def channel(task_id: TaskId) -> str:
    """Pub/sub: every event as `{version} {name} {data}`, in the order of the versions."""
    return f"headway:task:{task_id}:live"


def owner_tasks(owner: OwnerId) -> str:
    """Sorted set: an owner's tasks by creation time in ms."""
    return f"headway:owner:{owner}:tasks"


def job_id(task_id: TaskId, attempt: int) -> str:
    """arq's id of a job: fresh for every time a task is queued, because arq refuses one it has seen (arq#485)."""
    return f"{task_id}.{attempt}"


def task_of_job(job: str) -> TaskId:
    return TaskId(job.partition(".")[0])


def job(job: str) -> str:
    return job_key_prefix + job


def job_retries(job: str) -> str:
    return retry_key_prefix + job


def job_lease(job: str) -> str:
    """arq's in-progress key, which is our lease: while it lives, no other worker takes the job."""
    return in_progress_key_prefix + job


def task_of_channel(channel: str) -> TaskId:
    return TaskId(channel.split(":")[2]) if channel.count(":") == 3 else TaskId("")
