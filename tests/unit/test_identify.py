"""`create_app(settings, identify=f)`: the app that Headway is part of says who asks, and nothing else does."""

from __future__ import annotations

import time
from typing import Any, Final

import pytest
from fastapi import HTTPException
from pydantic import SecretStr
from starlette.requests import Request

from headway.app import Owner, create_app
from headway.shared.settings import Settings
from headway.shared.tasks.models import OwnerId
from tests.processes import free_port
from tests.unit.test_problems import assert_problem, served
from tests.unit.test_tokens import AUDIENCE, SECRET, signed

KEY: Final = "a-key-of-alices-own"
REHEARSAL: Final = {"processor": "rehearsal", "options": {"steps": 1, "step_seconds": 0}}


async def by_header(request: Request) -> Owner | None:
    """As the tests say it. It sees a request's headers, and not its body."""
    with pytest.raises(RuntimeError):
        await request.body()
    match request.headers.get("x-user"):
        case None:
            return None
        case "reader":
            return Owner("alice", {"tasks": ["read"]})
        case "refused" | "forbidden" as how:
            raise HTTPException(401 if how == "refused" else 403, "a dependency of FastAPI says it so")
        case "gone":
            raise HTTPException(418)
        case "wrong":
            return "alice"  # type: ignore[return-value]
        case "broken":
            return Owner("not: a name")
        case name:
            return Owner(name)


def user(name: str) -> dict[str, str]:
    return {"X-User": name}


async def test_each_sees_their_own_and_none_is_401(settings: Settings) -> None:
    async with served(create_app(settings, identify=by_header)) as client:
        task = (await client.post("/tasks", json=REHEARSAL, headers=user("alice"))).json()
        here = f"/tasks/{task['task_id']}"
        assert (await client.get(here, headers=user("alice"))).status_code == 200
        assert_problem(await client.get(here, headers=user("bob")), 404)
        for headers in ({}, user("refused"), user("forbidden")):
            assert_problem(await client.get(here, headers=headers), 401)
        for path in ("/healthz", "/readyz", "/", "/static/app.js"):
            assert (await client.get(path)).status_code in (200, 503)
        reading = {"Authorization": f"Bearer {task['token']}"}
        assert (await client.get(here, headers=reading)).status_code == 200
        assert_problem(await client.get("/tasks", headers=reading), 403)
        assert_problem(await client.post("/tasks", json=REHEARSAL, headers=user("reader")), 403)
        assert (await client.get(here, headers=user("reader"))).status_code == 200
        assert_problem(await client.get("/metrics", headers=user("reader")), 403)


async def by_cookie(request: Request) -> Owner | None:
    return Owner(name) if (name := request.cookies.get("user")) else None


async def test_the_apps_cookie_does_nothing_for_a_page_of_another_site(settings: Settings) -> None:
    """Not where CORS lets that page read either: it is the browser that sends the cookie, and not the page."""
    blog = settings.model_copy(update={"cors_origins": ["https://blog.example.com"]})
    cookie = {"Cookie": "user=alice"}
    async with served(create_app(blog, identify=by_cookie)) as client:
        for headers, status in (
            ({"Origin": "https://blog.example.com"}, 401),
            ({"Sec-Fetch-Site": "same-origin"}, 202),
        ):
            assert (await client.post("/tasks", json=REHEARSAL, headers=cookie | headers)).status_code == status


async def test_a_mistake_of_the_app_is_500_and_lets_nobody_in(settings: Settings) -> None:
    async with served(create_app(settings, identify=by_header)) as client:
        for name in ("wrong", "broken", "gone"):
            answer = await client.get("/tasks", headers=user(name))
            assert answer.status_code in (418, 500)
            assert "alice" not in answer.text


async def test_keys_and_tokens_of_the_settings_count_for_nothing_then(settings: Settings) -> None:
    changes: dict[str, Any] = {
        "api_keys": {OwnerId("alice"): SecretStr(KEY)},
        "jwt_key": SecretStr(SECRET),
        "jwt_audience": AUDIENCE,
    }
    keyed = settings.model_copy(update=changes)
    for app, status in ((create_app(keyed, identify=by_header), 401), (create_app(keyed), 200)):
        async with served(app) as client:
            for credential in (KEY, signed()):
                answer = await client.get("/tasks", headers={"Authorization": f"Bearer {credential}"})
                assert answer.status_code == status
            for body in ({"key": KEY}, {"token": signed()}):
                assert (await client.post("/session", json=body)).status_code == status


async def test_the_session_that_the_app_knows_has_its_end(settings: Settings) -> None:
    end = int(time.time()) + 60

    async def until(_: Request) -> Owner:
        return Owner("alice", expires_at=end)

    async with served(create_app(settings, identify=until)) as client:
        told = (await client.get("/session")).json()
        assert told["owner"] == "alice"
        assert told["expires_at"]


async def test_a_redis_that_is_away_makes_no_token_bad_and_none_good(settings: Settings) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    changes = {"jwt_key": SecretStr(SECRET), "jwt_audience": AUDIENCE, "redis_url": nowhere}
    async with served(create_app(settings.model_copy(update=changes))) as client:
        assert_problem(await client.get("/tasks", headers={"Authorization": f"Bearer {signed()}"}), 503)
        assert (await client.get("/processors", headers={"Authorization": f"Bearer {signed()}"})).status_code == 200
        past = signed(exp=int(time.time()) - 1)
        assert_problem(await client.get("/tasks", headers={"Authorization": f"Bearer {past}"}), 401)
