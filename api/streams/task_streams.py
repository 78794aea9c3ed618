"""The streams of one task, answered between the gate and FastAPI's router.

All who watched a process that is replaced come back within seconds, so what a new stream costs is what a deploy costs,
and the way through the router, its dependencies and its exit stacks is half of that. The route of the same path
(api/routes/events.py) describes it and answers what is not a GET; both open a stream by `open_task_stream`.
"""

from __future__ import annotations

import re
from typing import Final

from redis.exceptions import RedisError
from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from headway.api.dependencies import get_task_id, open_task_stream, version_seen
from headway.api.lifespan import State
from headway.api.problems import answer_to
from headway.api.root_path import route_path
from headway.shared.errors import HeadwayError

_PATH: Final = re.compile(r"/(?:tasks/([^/]+)/events|task-progress/([^/]+))")


class TaskStreams:
    """Plain ASGI. Who asks has been let in: the Identity is in the scope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        found = _PATH.fullmatch(route_path(scope))
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["headway.route"] = "/tasks/{task_id}/events" if found[1] else "/task-progress/{task_id}"
        try:
            answer = await _answer(scope, found[1] or found[2])
            await answer(scope, receive, send)
        except (HeadwayError, RedisError) as error:
            if (refusal := answer_to(error, scope)) is None:
                raise
            await refusal(scope, receive, send)


async def _answer(scope: Scope, task_id: str) -> ASGIApp:
    state: State = scope["state"]["headway"]
    headers = Headers(scope=scope)
    asked = QueryParams(scope["query_string"]) if scope["query_string"] else {}
    after = version_seen(headers.get("last-event-id"), asked.get("last_event_id"), asked.get("lastEventId"))
    return await open_task_stream(scope, state, get_task_id(task_id), after)
