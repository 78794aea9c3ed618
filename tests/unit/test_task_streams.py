"""The way past FastAPI's router: which requests take it, and that a refusal there is the router's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headway.api.streams.task_streams import TaskStreams


async def asked(method: str, path: str) -> tuple[bool, list[Any]]:
    """Whether the router was asked, and what was answered without it."""
    asked_router = False
    sent: list[Any] = []

    async def router(*_: Any) -> None:
        nonlocal asked_router
        asked_router = True

    async def receive() -> Any:
        raise AssertionError("a stream has no body")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "root_path": "", "query_string": b"", "headers": []}
    await TaskStreams(router)({**scope, "state": {"headway": None}}, receive, send)
    return asked_router, sent


@pytest.mark.parametrize("path", ["/tasks/no-id/events", "/task-progress/no-id"])
async def test_a_stream_of_one_task_is_answered_without_the_router(path: str) -> None:
    asked_router, (start, body) = await asked("GET", path)

    assert not asked_router
    assert start["status"] == 404
    assert (b"content-type", b"application/problem+json") in start["headers"]
    assert json.loads(body["body"])["type"] == "urn:headway:problem:unknown-task"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", "/tasks/no-id/events"),
        ("POST", "/tasks/no-id/events"),
        ("GET", "/tasks/no-id"),
        ("GET", "/tasks/no-id/events/"),
        ("GET", "/batches/one/events"),
        ("GET", "/events"),
    ],
)
async def test_everything_else_is_the_routers(method: str, path: str) -> None:
    assert await asked(method, path) == (True, [])
