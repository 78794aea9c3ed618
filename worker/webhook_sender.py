"""Sends the notices of the outbox (shared/webhooks/outbox.py), signed, in every worker that has HEADWAY_WEBHOOK_SECRET.

A try is one POST: no redirect is followed, nothing but the status of the answer is read, and after TRY_SECONDS it is
over. What a receiver does costs nobody else anything: each is served by a task of its own, so many of them at once, and
of one owner not all of those. Where a sender dies, its claim runs out and another one sends the notice again, under the
same id.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import httpcore
import httpx

from headway.shared.cancellation import cancel, heed_cancellation
from headway.shared.json_text import text_of
from headway.shared.logging import get_logger
from headway.shared.redis.client import AWAY, RedisClient, RedisError, why_away
from headway.shared.settings import Settings
from headway.shared.tasks.models import Task, rfc3339, utc_now
from headway.shared.tasks.representation import represent
from headway.shared.version import VERSION
from headway.shared.webhooks.outbox import TRY_SECONDS, Claim, Notice, Outbox
from headway.shared.webhooks.signature import secret_bytes, signed
from headway.worker.public_network import NoSuchHost, NotPublic, PublicNetwork

log = get_logger(__name__)

#: An end that another process has written is looked for this often.
LOOK_SECONDS: Final = 0.5
#: Receivers that this worker serves at once; of those, what one owner may have, and what one origin may have of that.
MOST_CLAIMS: Final = 64
MOST_OF_ONE_OWNER: Final = 48
MOST_OF_ONE_ORIGIN: Final = 16
#: In one look; by so many they may be more than that.
CLAIMED_AT_ONCE: Final = 8

#: How a try ended, for those who count: delivered, gone (410), refused (an address that is not public), failed.
ENDS: Final = ("delivered", "gone", "refused", "failed")


class WebhookSender:
    """`run` is the service; it is ended by cancelling it. `count` is told how each try ended."""

    def __init__(
        self, redis: RedisClient, settings: Settings, *, count: Callable[[str], None] = lambda _: None
    ) -> None:
        self._outbox = Outbox(redis)
        self._secrets = [secret_bytes(secret.get_secret_value()) for secret in settings.webhook_secret]
        self._root_path = settings.root_path
        self._count = count
        self._tls = ssl.create_default_context()
        self._network = PublicNetwork(settings.webhook_allow)
        self._serving: dict[asyncio.Task[None], Claim] = {}
        self._more = asyncio.Event()

    async def run(self) -> None:
        """Ends at once where there is no secret: whoever has one sends."""
        if not self._secrets:
            return
        broken: str | None = None
        try:
            while True:
                heed_cancellation()
                self._more.clear()
                try:
                    await self._look()
                    broken = None
                except AWAY:
                    pass  # said by the worker's loop
                except RedisError as error:
                    if broken != (broken := why_away(error)):
                        log.error("webhooks not sent", reason=broken)  # noqa: TRY400 - the reason is all there is
                await self._wait()
        finally:
            await cancel(*self._serving)

    async def _wait(self) -> None:
        more = asyncio.create_task(self._more.wait(), name="more webhooks")
        try:
            await asyncio.wait([more], timeout=LOOK_SECONDS)
        finally:
            await cancel(more)

    async def _look(self) -> None:
        """Takes on what is due, as much as there are hands for."""
        if (free := MOST_CLAIMS - len(self._serving)) <= 0:
            return
        owners = Counter(claim.owner for claim in self._serving.values())
        origins = Counter(claim.origin for claim in self._serving.values())
        full = [owner for owner, claims in owners.items() if claims >= MOST_OF_ONE_OWNER]
        full += [origin for origin, claims in origins.items() if claims >= MOST_OF_ONE_ORIGIN]
        for claim in await self._outbox.claim(min(free, CLAIMED_AT_ONCE), full):
            serving = asyncio.create_task(self._serve(claim), name="webhook receiver")
            self._serving[serving] = claim
            serving.add_done_callback(self._served)

    def _served(self, serving: asyncio.Task[None]) -> None:
        del self._serving[serving]
        self._more.set()
        if serving.cancelled() or (error := serving.exception()) is None or isinstance(error, AWAY):
            return
        if not isinstance(error, BaseExceptionGroup) or error.split(AWAY)[1] is not None:
            log.error("webhook sender broke", exc_info=error)

    async def _serve(self, claim: Claim) -> None:
        """Where it breaks, the claim runs out, and what has not been settled is sent again."""
        async with asyncio.TaskGroup() as group:
            for notice in claim.notices:
                group.create_task(self._send(claim, notice), name=notice.webhook_id)
        await self._outbox.release(claim)

    async def _send(self, claim: Claim, notice: Notice) -> None:
        began, at = time.monotonic(), rfc3339(utc_now())
        end, status_code, error = await self._try(notice)
        seconds = round(time.monotonic() - began, 3)
        told = {"at": at, "status_code": status_code, "error": error, "seconds": seconds}
        state = await self._outbox.tried(claim, notice, "failed" if end == "refused" else end, told)
        self._count(end)
        about: dict[str, Any] = {"task_id": notice.task_id, "webhook_id": notice.webhook_id, "status": status_code}
        if end == "delivered":
            log.info("webhook delivered", **about)
        else:
            log.warning("webhook not delivered", reason=error, state=state, **about)

    async def _try(self, notice: Notice) -> tuple[str, int | None, str | None]:
        """How it ended, the status of the answer, and what went wrong in words for the task's owner."""
        try:
            async with asyncio.timeout(TRY_SECONDS):
                status_code = await self._post(notice)
        except TimeoutError:
            return "failed", None, f"no answer within {TRY_SECONDS:g} s"
        except NotPublic:
            return "refused", None, "it leads to an address that webhooks may not go to (HEADWAY_WEBHOOK_ALLOW)"
        except NoSuchHost:
            return "failed", None, "its host is not known"
        except ssl.SSLError as error:
            return "failed", None, f"no safe connection: {error.reason}"
        except httpcore.ConnectError as error:
            reason = getattr(error.__cause__, "verify_message", None) or getattr(
                error.__context__, "verify_message", None
            )
            return "failed", None, f"no safe connection: {reason}" if reason else "it cannot be reached"
        except (httpcore.NetworkError, httpcore.TimeoutException):
            return "failed", None, "the connection was cut"
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol):
            return "failed", None, "its answer is not HTTP"
        if 200 <= status_code < 300:
            return "delivered", status_code, None
        if status_code == 410:
            return "gone", status_code, "it wants no more of this"
        if 300 <= status_code < 400:
            return "failed", status_code, f"it answered {status_code}, and redirects are not followed"
        return "failed", status_code, f"it answered {status_code}"

    async def _post(self, notice: Notice) -> int:
        body = body_of(notice, self._root_path)
        headers = {
            "content-type": "application/json",
            "user-agent": f"Headway/{VERSION}",
            "accept-encoding": "identity",
            **signed(self._secrets, notice.webhook_id, int(time.time()), body),
        }
        url = httpx.URL(notice.url)
        where = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        sent = [("host", url.netloc.decode("ascii")), *headers.items()]
        pool = httpcore.AsyncConnectionPool(ssl_context=self._tls, network_backend=self._network)
        async with pool, pool.stream("POST", where, headers=sent, content=body) as answer:
            return int(answer.status)


def body_of(notice: Notice, root_path: str = "") -> bytes:
    """The same at each try: the task as it was when it ended."""
    task = Task.from_values(json.loads(notice.task))
    at = datetime.fromtimestamp(notice.created_ms / 1000, UTC)
    return text_of({"type": notice.type, "timestamp": rfc3339(at), "data": represent(task, root_path)}).encode()
