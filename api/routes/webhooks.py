"""`/tasks/{id}/webhooks`: who was told of the task's ends, what was tried, and once more."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path

from headway.api.dependencies import StateDep, TaskDep
from headway.api.openapi import answer, problems, together
from headway.api.schemas import Notice, NoticeList
from headway.shared.errors import NearlyFull, UnknownTask
from headway.shared.tasks.models import rfc3339
from headway.shared.tasks.progress import ACTIVE_TTL_SECONDS
from headway.shared.webhooks.outbox import NOTICE_TTL_SECONDS, Outbox

router = APIRouter(tags=["webhooks"])

NOTICE_ID: Final = r"msg_[0-9a-f]{32}_[0-9]{1,15}(_all)?"


@router.get(
    "/tasks/{task_id}/webhooks",
    summary="What was sent of the task's ends, and tried",
    operation_id="get_webhooks",
    responses=together({200: answer("Its notices, oldest first", NoticeList)}, problems(UnknownTask)),
)
async def get_webhooks(state: StateDep, task: TaskDep) -> dict[str, Any]:
    """A notice for each end and receiver; none before the task has ended. What the platform itself is told by
    HEADWAY_WEBHOOK_URL is among them, without its address."""
    return {"webhooks": [_shown(notice) for notice in await Outbox(state.redis).of_task(task.task_id)]}


@router.post(
    "/tasks/{task_id}/webhooks/{webhook_id}/resend",
    status_code=202,
    summary="Send a notice again",
    operation_id="resend_webhook",
    responses=together({202: answer("It is to be sent", Notice)}, problems(UnknownTask, NearlyFull)),
)
async def resend(
    state: StateDep, task: TaskDep, webhook_id: Annotated[str, Path(description="The `id` of the notice")]
) -> dict[str, Any]:
    """At once, under the same `webhook-id`, with the same body; where it fails, with all of its tries anew."""
    outbox = Outbox(state.redis)
    ttl_seconds = state.settings.task_ttl_seconds
    lives = {
        "lives_seconds": max(ttl_seconds, NOTICE_TTL_SECONDS),
        "owner_lives_seconds": max(ttl_seconds, ACTIVE_TTL_SECONDS),
    }
    if re.fullmatch(NOTICE_ID, webhook_id) and await outbox.resend(task.task_id, webhook_id, **lives):
        for notice in await outbox.of_task(task.task_id):
            if notice["id"] == webhook_id:
                return _shown(notice)
    raise UnknownTask("The task has no such notice.")


def _shown(notice: dict[str, Any]) -> dict[str, Any]:
    of_task = notice["from"] == "task"
    return {
        "id": notice["id"],
        "type": notice["type"],
        "url": notice["url"] if of_task else None,
        "status": notice["status"],
        "created_at": _time(notice["created_ms"]),
        "next_try_at": _time(notice["due_ms"]),
        "tries": [{name: value for name, value in one.items() if name != "id"} for one in notice["tries"]],
    }


def _time(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(datetime.fromtimestamp(ms / 1000, UTC))
