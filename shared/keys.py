"""The only place that spells a Redis key. Every key and channel starts with the namespace, `headway:` where no setting
says another.

arq derives `arq:job:` and `arq:in-progress:` keys from the job id by itself; they are named here so that one script can
enqueue in the same step that changes the state. The namespace is in that id, where it is not `headway`.

A process works in one namespace, which `use` says before anything else here is asked for. What is spelled below is what
it is called in the namespace `headway`.
"""

from __future__ import annotations

from arq.constants import in_progress_key_prefix, job_key_prefix

from headway.shared.tasks.models import OwnerId, TaskId

#: arq's sorted set of jobs: the way into the line for versions of before there was one, and for arq's own client.
QUEUE = "headway:queue"

# The line of waiting jobs (shared/tasks/line.lua). It waits for ever, so nothing of it expires but the clock.

#: Number: turns and arrivals so far.
LINE_CLOCK = "headway:line:clock"
#: Hash: job id to its place, `processor owner priority order batch`.
LINE_JOBS = "headway:line:jobs"
#: Sorted set: the jobs that wait, by the moment in µs since when.
LINE_WAITING = "headway:line:waiting"
#: Sorted set: the jobs that are not due yet, by the moment in ms at which they are.
LINE_LATER = "headway:line:later"
#: Sorted set: the jobs that workers have, by the moment in ms at which their lease is over.
LINE_RUNNING = "headway:line:running"
#: Set: the processors that somebody waits for.
LINE_PROCESSORS = "headway:line:processors"
#: Set: the processors that are paused.
LINE_PAUSED = "headway:line:paused"
#: Sorted set: owners by their next turn, those that have just left the line too.
LINE_TURNS = "headway:line:turns"
#: Sorted set: owners that wait and have as many tasks running as they may.
LINE_FULL = "headway:line:full"
#: Sorted set: a processor's owners by their next turn.
LINE_OWNERS = "headway:line:owners:%s"
#: Sorted set: `priority:batch` of an owner's tasks of a processor, by priority and then by the last turn.
LINE_GROUPS = "headway:line:groups:%s:%s"
#: Sorted set: the jobs of one processor, owner, priority and batch, by the moment in µs since when they wait.
LINE_GROUP = "headway:line:group:%s:%s:%s:%s"
#: Hash: owner to how many of its jobs wait.
LINE_COUNTS = "headway:line:counts"
#: Hash: processor to how long its tasks took lately, `bucket=weight;…` (shared/tasks/line.lua).
LINE_DURATIONS = "headway:line:durations"
#: Sets: the jobs of an owner, and of a processor, that workers have.
LINE_HELD_OWNER = "headway:line:held:owner:%s"
LINE_HELD_PROCESSOR = "headway:line:held:processor:%s"
#: Pub/sub: `wake` when a job was enqueued or given back, `stop TASK_ID` when a task was cancelled.
CONTROL = "headway:control"
#: Pub/sub: nobody publishes here; a subscription needs a first channel.
IDLE = "headway:idle"
#: Sorted set, worker id by the Redis time in ms of its last heartbeat.
WORKERS = "headway:workers"
#: Hash: worker id to which walls stand around its children, JSON (worker/wall_notice.py).
WALLS = "headway:walls"
#: Sorted set: `{place of files} {process}` by the time in seconds until which it counts (shared/redis/place.py).
PLACE = "headway:place"
#: The id of the worker that sweeps at present.
SWEEPER = "headway:sweeper"
#: Since when this Redis has held what it holds, in ms of its own time: it is set anew where Redis came back empty.
SINCE = "headway:since"
#: Hash: tasks by status and processor, `"queued","checksum"`: of those that have not ended how many there are, of those
#: that have how many there ever were.
COUNTS = "headway:counts"
#: Sorted set: tasks that were deleted and whose files may still be there, by the time of it in seconds.
DELETED = "headway:deleted"
#: Sorted set: tasks that outside producers run, by the moment in ms of Redis' time at which one has been silent for too
#: long (shared/tasks/silent_producers.py).
PRODUCERS = "headway:producers"
#: Sorted set: receivers of webhooks that something is to be sent to, `{owner}/{origin}.{URL}` in digests, by the
#: moment in ms of Redis' time at which the next try of one is due, or the claim of a sender is over
#: (shared/webhooks/outbox.py).
WEBHOOKS_DUE = "headway:webhooks"
#: Sorted set: the notices for one receiver that are still to be sent, by the moment in ms of the next try.
WEBHOOKS_TO = "headway:webhooks:to:%s"
#: The token of the sender that has a receiver at present.
WEBHOOKS_BUSY = "headway:webhooks:busy:%s"
#: Sorted set: the notices of one task by the moment in ms at which each was written.
WEBHOOKS_OF = "headway:webhooks:of:%s"
#: Hash: one notice, with the task as it was, and what was tried.
WEBHOOK = "headway:webhook:%s"
#: Sorted set: tasks whose file is another's, of which that one has ended, by the moment in ms of Redis' time at which
#: they are to be looked at (worker/followers.py).
FOLLOWERS = "headway:followers"
#: Set: those that wait for the end of one task.
FOLLOWERS_OF = "headway:followers:of:%s"
#: Hash: `replid` of the server and `number` of the epoch (shared/redis/epoch.py).
EPOCH = "headway:era"
#: What SCAN finds the tasks by, among others; those others are no hashes.
ANY_TASK = "headway:task:*"
#: How a task's own key begins.
ANY_STATE = "headway:task:"


def state(task_id: TaskId) -> str:
    """Hash: the task, a JSON text a field."""
    return f"{_namespace}:task:{task_id}"


def events(task_id: TaskId) -> str:
    """Stream: the last HEADWAY_HISTORY_LENGTH events, entry id `{version}-0`."""
    return f"{_namespace}:task:{task_id}:events"


def channel(task_id: TaskId) -> str:
    """Pub/sub: every event as `{version} {name} {data}`, in the order of the versions."""
    return f"{_namespace}:task:{task_id}:live"


# The owner of a task, and its batch, stand in its hash, so it is progress.lua that fills these in.

#: Number: how many events an owner's tasks have had; the id on `GET /events`.
OWNER_VERSION = "headway:owner:%s:version"
#: Stream: the last HEADWAY_HISTORY_LENGTH events of all an owner's tasks, entry id `{number}-0`.
OWNER_EVENTS = "headway:owner:%s:events"
#: Sorted set: an owner's tasks by the number of their last state event.
OWNER_CHANGED = "headway:owner:%s:changed"
#: Set: an owner's tasks that have not ended.
OWNER_ACTIVE = "headway:owner:%s:active"
#: Sorted set: an owner's tasks by creation time in ms.
OWNER_TASKS = "headway:owner:%s:tasks"
#: Hash: `total`, the bytes that an owner's files hold, and those of each task that has some.
OWNER_STORED = "headway:owner:%s:stored"
#: Hash: the same of what Redis holds of an owner's words: options, notes, summaries.
OWNER_WORDS = "headway:owner:%s:words"
#: Sorted set: tasks whose bytes in OWNER_STORED are reserved for a file on its way in, by the end of that in ms.
OWNER_RESERVED = "headway:owner:%s:reserved"
#: Pub/sub: every event of an owner's tasks as `{number} {task_id} {version} {batch_id} {name} {data}`.
OWNER_LIVE = "headway:owner:%s:live"
# A batch's name is its user's, colons and all, so what these two are filled in with comes from `of_batch`.

#: Hash: the roll-up of a batch: counts, the sum of progress, and the last event as JSON.
BATCH_STATE = "headway:batch:%s:%s"
#: Sorted set: a batch's tasks by creation time in ms.
BATCH_TASKS = "headway:batch:%s:%s:tasks"
#: Pub/sub: every event of the roll-up as `{version}  {data}`.
BATCH_LIVE = "headway:batch:%s:%s:live"

#: Of those that are filled in.
CHANNELS = ("OWNER_LIVE", "BATCH_LIVE")
FILLED_IN = (
    *("OWNER_VERSION", "OWNER_EVENTS", "OWNER_CHANGED", "OWNER_ACTIVE", "OWNER_TASKS", "OWNER_LIVE"),
    *(
        "OWNER_STORED",
        "OWNER_WORDS",
        "BATCH_STATE",
        "BATCH_TASKS",
        "BATCH_LIVE",
        "BATCH_ENDING",
        "BATCH_ESCAPED",
        "COUNTS",
        "EPOCH",
    ),
    "DELETED",
    "PRODUCERS",
    *("FOLLOWERS", "FOLLOWERS_OF"),
    *("ANY_STATE", "QUEUE", "WORKERS", "LINE_COUNTS", "LINE_DURATIONS"),
    *("LINE_CLOCK", "LINE_JOBS", "LINE_WAITING", "LINE_LATER", "LINE_RUNNING", "LINE_PROCESSORS", "LINE_PAUSED"),
    *("LINE_TURNS", "LINE_FULL", "LINE_OWNERS", "LINE_GROUPS", "LINE_GROUP", "LINE_HELD_OWNER", "LINE_HELD_PROCESSOR"),
    *("WEBHOOKS_DUE", "WEBHOOKS_TO", "WEBHOOKS_OF", "WEBHOOK"),
)

#: What follows a batch's name in BATCH_TASKS, and what stands for it in a key where the name itself ends so: `;` is in
#: no name. Every other batch has the keys that it always had.
BATCH_ENDING = ":tasks"
BATCH_ESCAPED = ";tasks"


def of_batch(owner: OwnerId, batch_id: str) -> tuple[str, str]:
    """What BATCH_STATE and BATCH_TASKS are filled in with, so that none is the key of another batch."""
    if batch_id.endswith(BATCH_ENDING):
        batch_id = batch_id.removesuffix(BATCH_ENDING) + BATCH_ESCAPED
    return owner, batch_id


def idempotency(owner: OwnerId, digest: str) -> str:
    """Hash: a request that was sent under an idempotency key, by the digest of that key
    (shared/tasks/idempotency.py)."""
    return f"{_namespace}:owner:{owner}:idempotency:{digest}"


#: What the `limits` library puts in front of its counters, each of which has a TTL.
LIMITS = "headway:limits"


def session(digest: str) -> str:
    """The owner who signed in, for as long as the session lives; by the digest of its id, which stands nowhere."""
    return f"{_namespace}:session:{digest}"


#: What signs for owners without a key, 32 bytes (api/access/installation_secret.py).
SIGNING = "headway:signing"


def job_id(task_id: TaskId, attempt: int) -> str:
    """arq's id of a job: fresh for every time a task is queued, because arq refuses one it has seen (arq#485)."""
    return f"{_of_jobs}{task_id}.{attempt}"


def upload_writer(task_id: TaskId) -> str:
    """The token of the request that writes to a resumable upload."""
    return f"{_namespace}:upload:{task_id}:writer"


def upload_asked(task_id: TaskId) -> str:
    """The token of the newest request that asks the writer to leave."""
    return f"{_namespace}:upload:{task_id}:asked"


def task_of_channel(name: str) -> TaskId | None:
    """The task whose events come on a channel; None for another's."""
    parts = name.split(":")
    return TaskId(parts[2]) if len(parts) == 4 and channel(TaskId(parts[2])) == name else None


def task_of_job(job: str) -> TaskId:
    return TaskId(job.removeprefix(_of_jobs).partition(".")[0])


def job(job: str) -> str:
    return job_key_prefix + job


def job_lease(job: str) -> str:
    """arq's in-progress key, which is our lease: while it lives, no other worker takes the job."""
    return in_progress_key_prefix + job


DEFAULT = "headway"
_namespace = DEFAULT
_of_jobs = ""
_SPELLED = {name: value for name, value in globals().items() if name.isupper() and str(value).startswith("headway:")}
_used = False


def use(namespace: str) -> None:
    """Everything here is in this namespace from now on. Raises ValueError where this process works in another."""
    global _namespace, _of_jobs, _used
    if _used and namespace != _namespace:
        raise ValueError(f"this process works in the namespace {_namespace!r} already, and a process works in one")
    _namespace, _of_jobs, _used = namespace, "" if namespace == DEFAULT else f"{namespace}:", True
    for name, spelled in _SPELLED.items():
        globals()[name] = namespace + spelled.removeprefix(DEFAULT)


def on_database(channel: str, database: int) -> str:
    """What a channel is called: Redis has one set of channels for all its databases. On the first it is as it always
    was."""
    if database == 0:
        return channel
    return f"{_namespace}:{database}{channel.removeprefix(_namespace)}"


def off_database(spelled: str, database: int) -> str:
    """The other way round."""
    if database == 0:
        return spelled
    return _namespace + spelled.removeprefix(f"{_namespace}:{database}")
