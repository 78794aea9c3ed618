"""One writer at a time for a resumable upload, in however many processes; the newest wins.

A key in Redis holds the token of who writes and lives LOCK_SECONDS, renewed while the bytes come. Whoever comes later
asks for it, because the line of the one before may be half open and nobody knows: the holder hears it at its next
renewal, makes safe what it has and lets go; a dead one's key runs out. Like a worker's lease it is no fence. That is
the storage's part: who resumes an upload has bytes that nobody before can change
(headway.shared.files.storage.ResumableUpload), and the task is queued once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from headway.shared import keys
from headway.shared.cancellation import cancel, heed_cancellation
from headway.shared.errors import Refused, UploadBusy
from headway.shared.redis.client import AWAY, RedisClient
from headway.shared.tasks.models import Status, TaskId

#: Renewed this often, which is also how soon a writer hears that it is to stop.
KEEP_SECONDS: Final = 0.25
#: A dead writer's key is gone after this long. While Redis is away a writer goes on for half of it.
LOCK_SECONDS: Final = 5.0
#: A newcomer waits this long for the one before: longer than a dead one's key, shorter than clients wait.
WAIT_SECONDS: Final = 8.0
ASK_SECONDS: Final = 0.05

#: ARGV: token, its life in ms, 1 for who asks the holder to leave, 1 for a first try. Who took it is the only one asked
#: for nothing; of those that ask, the newest is heard, and the others learn it here.
_TAKE: Final = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  redis.call('DEL', KEYS[2])
  return 'taken'
end
if ARGV[3] == '1' then
  if ARGV[4] == '1' then
    redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[5])
  elseif redis.call('GET', KEYS[2]) ~= ARGV[1] then
    return 'passed over'
  end
end
return 'wait'
"""

#: A key that ran out is not taken back: somebody may have written and left in the meantime.
_KEEP: Final = """
local status = redis.call('HGET', KEYS[3], 'status') or ''
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost', status} end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {redis.call('EXISTS', KEYS[2]) == 1 and 'asked' or 'held', status}
"""

_RELEASE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

_TAKEN_OVER: Final = "Another request goes on with this upload. What had arrived by this one is kept."


class UploadLock:
    """What `writing` hands out. Errors: headway.shared.redis.client.AWAY."""

    def __init__(self, redis: RedisClient, task_id: TaskId) -> None:
        self._token = secrets.token_hex(16)
        self._keys = [keys.upload_writer(task_id), keys.upload_asked(task_id), keys.state(task_id)]
        self._kept_at = 0.0
        self._take = redis.register_script(_TAKE)
        self._keep = redis.register_script(_KEEP)
        self._release = redis.register_script(_RELEASE)

    async def take(self, *, take_over: bool) -> None:
        """Waits for its turn. Raises UploadBusy where it does not come, or somebody newer wants it too."""
        deadline = time.monotonic() + WAIT_SECONDS
        first = True
        while True:
            heed_cancellation()
            args: list[str | int] = [
                self._token,
                int(LOCK_SECONDS * 1000),
                int(take_over),
                int(first),
                int(WAIT_SECONDS * 1000),
            ]
            answer = await self._take(keys=self._keys[:2], args=args)
            if answer == b"taken":
                self._kept_at = time.monotonic()
                return
            if answer == b"passed over" or time.monotonic() > deadline:
                raise UploadBusy
            first = False
            await asyncio.sleep(ASK_SECONDS)

    async def keep(self) -> None:
        """Renews it. Raises Refused where the task takes no bytes any more, UploadBusy where somebody else goes on."""
        try:
            answer, status = await self._keep(keys=self._keys, args=[self._token, int(LOCK_SECONDS * 1000)])
        except AWAY:
            if time.monotonic() - self._kept_at > LOCK_SECONDS / 2:
                raise
            return
        self._kept_at = time.monotonic()
        if (known := status.decode().strip('"')) != Status.UPLOADING:
            raise Refused("status" if known else "unknown", known or None)
        if answer != b"held":
            raise UploadBusy(_TAKEN_OVER)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keeps it through the block, whoever asks for it: for what must not be left half done."""
        keeping = asyncio.create_task(self._keep_on(), name="keep upload lock")
        try:
            yield
        finally:
            await asyncio.shield(cancel(keeping))

    async def _keep_on(self) -> None:
        while True:
            heed_cancellation()
            await asyncio.sleep(KEEP_SECONDS)  # first: what is soon done asks nothing of Redis
            with suppress(Refused, UploadBusy, *AWAY):
                await self.keep()

    async def release(self) -> None:
        with suppress(*AWAY):
            await self._release(keys=self._keys[:1], args=[self._token])


@asynccontextmanager
async def writing(redis: RedisClient, task_id: TaskId, *, take_over: bool) -> AsyncIterator[UploadLock]:
    """The right to write for as long as the block lasts. `take_over`: ask whoever has it to leave."""
    lock = UploadLock(redis, task_id)
    await lock.take(take_over=take_over)
    try:
        yield lock
    finally:
        await asyncio.shield(lock.release())
