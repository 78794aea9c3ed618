"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): many requests with one key make one task.

`Idempotency.once` runs a submission under the key of its request. The first holds the key until it is answered; the
others wait for that answer, here or in another process, and give it again. A request that failed leaves the key free.
The truth is in Redis (shared/tasks/idempotency.py); what is here only spares Redis a thousand waiting requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from fastapi import Request
from starlette.responses import Response

from headway.api.root_path import route_path
from headway.api.serving.counted_log import counted_line
from headway.api.uploads.multipart_upload import invalid
from headway.shared.cancellation import cancel, heed_cancellation
from headway.shared.errors import KeyInUse, KeyReused, Refused, UnknownTask
from headway.shared.files.storage import Storage, StoredFile, Upload
from headway.shared.json_text import text_of
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY
from headway.shared.tasks.idempotency import Answer, Answers, Lease
from headway.shared.tasks.line import DEFAULT
from headway.shared.tasks.models import FieldError, OwnerId, Task, TaskId, new_task_id, own_batch
from headway.shared.tasks.reader import Reader

log = get_logger(__name__)

HEADER: Final = "Idempotency-Key"
REPLAYED: Final = {"Idempotency-Replayed": "true"}
#: How long a request waits for the answer of another: longer than a dead one's lease, shorter than clients wait.
WAIT_SECONDS: Final = 15.0
#: How often a request that is under way in another process is asked after; one of all that wait here asks.
ASK_SECONDS: Final = 0.1


class Claim:
    """A submission's right to make a task. This one is of a request without a key: it is never disputed."""

    #: Its request has its answer, so nothing will be made or kept.
    answered = False

    def __init__(self, task_id: TaskId | None = None) -> None:
        self.task_id = task_id or new_task_id()

    def upload(self, storage: Storage) -> Upload:
        return storage.upload(self.task_id)

    async def settle(self, task: Task, *others: Task) -> None:
        """To be called when the request has been read, right before `task` and the others are made. Raises where they
        must not be: KeyInUse, KeyReused, and what `once` answers."""


class _Made(Exception):
    """The task was made by an earlier try, whose answer was lost."""

    def __init__(self, task: Task) -> None:
        self.task = task


class _Replay(Exception):
    """The request is the one that was answered."""


class _Held(Claim):
    """The first request with its key."""

    def __init__(self, lease: Lease, answers: Answers, reader: Reader, owner: OwnerId, path: str) -> None:
        super().__init__(lease.task_id)
        self.lease = lease
        self.fingerprint = ""
        self._answers, self._reader, self._owner, self._path = answers, reader, owner, path

    async def settle(self, task: Task, *others: Task) -> None:
        self.fingerprint = fingerprint(self._path, task, *others)
        if self.lease.earlier is not None:
            with suppress(UnknownTask):
                made = await self._reader.task(self.task_id, self._owner)
                if self.lease.earlier != self.fingerprint:
                    raise _reused()
                raise _Made(made)
        if not await self._answers.hold(self.lease, self.fingerprint):
            raise KeyInUse


class _Answered(Claim):
    """A request whose key has its answer: it is read, without keeping anything, to see that it is the same."""

    answered = True

    def __init__(self, answer: Answer, path: str) -> None:
        super().__init__()
        self._answer, self._path = answer, path

    def upload(self, storage: Storage) -> Upload:
        return _Digest()

    async def settle(self, task: Task, *others: Task) -> None:
        if fingerprint(self._path, task, *others) != self._answer.fingerprint:
            raise _reused()
        raise _Replay


def fingerprint(path: str, task: Task, *others: Task) -> str:
    """What makes two requests the same: not their bytes (a form's boundary is new each time) but what they ask for."""
    batch_id = None if task.batch_id == own_batch(task.task_id) else task.batch_id
    asked: list[Any] = [path, task.processor, task.options, task.filename, task.content_type, batch_id]
    if task.priority != DEFAULT or task.not_before is not None:  # else as before there was an order
        asked += [task.priority, str(task.not_before)]
    content = [task.size_bytes, task.input_sha256, *([task.declared_sha256] if task.declared_sha256 else [])]
    more = [task.webhook.model_dump()] if task.webhook else []
    more += [dict(task.input_of)] if task.input_of else []
    for other in others:
        told = other.webhook.model_dump() if other.webhook else None
        more.append({"processor": other.processor, "options": other.options, "file": other.filename, "webhook": told})
    return hashlib.sha256(text_of([*asked, *content, *more]).encode()).hexdigest()


class Idempotency:
    def __init__(self, answers: Answers, reader: Reader) -> None:
        self._answers = answers
        self._reader = reader
        #: By owner and key: the request that is under way in this process. Its result is the answer, or None.
        self._flights: dict[tuple[OwnerId, str], asyncio.Future[Answer | None]] = {}

    async def once(
        self,
        request: Request,
        owner: OwnerId,
        make: Callable[[Claim], Awaitable[Task]],
        show: Callable[[Task], Response],
    ) -> Response:
        """The answer to this request, `show(await make(claim))`, or the one that was given before.

        `make` calls `claim.settle` and makes its task under `claim.task_id`. Raises what it raises, KeyInUse,
        KeyReused, InvalidRequest for what is no key.
        """
        key = _key_of(request)
        if key is None:
            return show(await make(Claim()))
        found = await self._claim(owner, key)
        path = route_path(request.scope)
        if isinstance(found, Lease):
            claim = _Held(found, self._answers, self._reader, owner, path)
            return await self._first(claim, (owner, key), make, show)
        try:
            return show(await make(_Answered(found, path)))
        except _Replay:
            headers = {"Location": found.location, **REPLAYED}
            return Response(found.body, found.status_code, headers, "application/json")

    async def _claim(self, owner: OwnerId, key: str) -> Lease | Answer:
        """With a Lease this request is the flight of its key, and must end it."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while (flight := self._flights.get((owner, key))) is not None:
                    if (answer := await asyncio.shield(flight)) is not None:
                        return answer
                flight = self._flights[owner, key] = asyncio.get_running_loop().create_future()
                try:
                    found = await self._ask(owner, key)
                except BaseException as error:
                    self._land(owner, key, error if isinstance(error, AWAY) else None)
                    raise
                if isinstance(found, Answer):
                    self._land(owner, key, found)
                return found
        except TimeoutError:
            raise KeyInUse from None

    async def _ask(self, owner: OwnerId, key: str) -> Lease | Answer:
        holder, task_id = secrets.token_hex(8), new_task_id()
        while (found := await self._answers.claim(owner, key, holder, task_id)) is None:
            heed_cancellation()
            await asyncio.sleep(ASK_SECONDS)
        return found

    def _land(self, owner: OwnerId, key: str, end: Answer | Exception | None) -> None:
        """Everybody who waits here gets the answer, or the same bad news; with None the next one takes its turn."""
        flight = self._flights.pop((owner, key))
        if isinstance(end, Exception):
            flight.set_exception(end)
            flight.exception()  # it is told to whoever asked Redis, so nobody else has to hear it
        else:
            flight.set_result(end)

    async def _first(
        self,
        claim: _Held,
        flight: tuple[OwnerId, str],
        make: Callable[[Claim], Awaitable[Task]],
        show: Callable[[Task], Response],
    ) -> Response:
        lease = claim.lease
        renewing = asyncio.create_task(self._renew(lease), name="idempotency lease")
        answer = None
        try:
            try:
                response = show(await make(claim))
            except _Made as earlier:
                response = show(earlier.task)
                response.headers.update(REPLAYED)
            location = response.headers.get("Location", "")
            answer = Answer(claim.fingerprint, response.status_code, location, bytes(response.body))
        except Refused as refused:
            if refused.reason == "exists":  # one that was taken for dead has made the task in this moment
                raise KeyInUse from refused
            raise
        finally:
            try:
                await asyncio.shield(self._end(renewing, lease, answer))
            finally:
                self._land(*flight, answer)
        return response

    async def _renew(self, lease: Lease) -> None:
        held = True
        while held:
            heed_cancellation()
            await asyncio.sleep(self._answers.renew_seconds)
            with suppress(*AWAY):
                held = await self._answers.hold(lease)

    async def _end(self, renewing: asyncio.Task[None], lease: Lease, answer: Answer | None) -> None:
        """A Redis that is away here does no harm: the lease runs out, and the task is found by its id."""
        await cancel(renewing)
        try:
            await (self._answers.release(lease) if answer is None else self._answers.keep(lease, answer))
        except AWAY:
            counted_line(log.info, "idempotency key not settled: Redis is away", task_id=lease.task_id)


def _key_of(request: Request) -> str | None:
    """A digest of the key, so that a stranger's text never becomes part of a key of Redis."""
    given = request.headers.getlist(HEADER)
    if not given:
        return None
    if len(given) > 1 or not re.fullmatch(r"[\x20-\x7e]{1,255}", given[0]):
        raise invalid(HEADER, "one key of 1 to 255 printable ASCII characters, for example a UUID")
    return hashlib.sha256(given[0].encode()).hexdigest()


def _reused() -> KeyReused:
    message = "it was sent with another request; send a new key with a new request"
    return KeyReused(f"{HEADER}: {message}", [FieldError(field=HEADER, message=message)])


class _Digest:
    """An Upload that keeps nothing of a file but its size and its digest."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._hash = hashlib.sha256()

    async def write(self, data: bytes) -> None:
        self.size_bytes += len(data)
        self._hash.update(data)

    async def rewind(self, size_bytes: int) -> None:
        raise NotImplementedError("a form comes in one piece")

    async def pause(self) -> None:
        raise NotImplementedError("a form comes in one piece")

    async def commit(self) -> StoredFile:
        return StoredFile("", self.size_bytes, self._hash.hexdigest())

    async def abort(self) -> None:
        pass
