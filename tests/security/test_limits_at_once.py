"""Two hundred at once against a limit: each is taken in the step that it limits, so no more get through than may."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
import redis

from tests.processes import Platform, RedisServer
from tests.waiting import PATIENCE_SECONDS, wait_for

CROWD: Final = 200
KEYS: Final = json.dumps({"alice": "the-secret-key-of-alice-4711", "bob": "the-secret-key-of-bob-0815"})
ALICE: Final = {"Authorization": "Bearer the-secret-key-of-alice-4711"}
PIECE: Final = 64 * 1024

Ask = Callable[[httpx.AsyncClient, int], Coroutine[Any, Any, httpx.Response]]


def at_once(url: str, ask: Ask, count: int = CROWD) -> list[httpx.Response]:
    """As many requests as `count`, each on a connection of its own that is open before the first one asks."""

    async def crowd() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=url, headers=ALICE, timeout=PATIENCE_SECONDS, limits=limits) as client:
            await asyncio.gather(*(client.get("/healthz") for _ in range(count)))
            return await asyncio.gather(*(again_if_closed(client, number) for number in range(count)))

    async def again_if_closed(client: httpx.AsyncClient, number: int) -> httpx.Response:
        try:
            return await ask(client, number)
        except httpx.ReadError:  # on a slow machine its connection has been idle for as long as the server waits
            return await ask(client, number)

    return asyncio.run(crowd())


def statuses(answers: list[httpx.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


def files_of(platform: Platform) -> list[Path]:
    return [Path(folder, name) for folder, _, names in os.walk(platform.data_dir) for name in names]


def bytes_of(platform: Platform) -> int:
    found = 0
    for path in files_of(platform):
        with suppress(FileNotFoundError):  # what came to nothing goes
            found += path.stat().st_size
    return found


def test_unfinished_tasks(own_platform: Platform) -> None:
    own_platform.start_api(HEADWAY_MAX_UNFINISHED_TASKS="5", HEADWAY_API_KEYS=KEYS)
    body = {"processor": "checksum", "filename": "a", "size_bytes": 1}
    answers = at_once(own_platform.url, lambda client, _: client.post("/tasks", json=body))
    assert statuses(answers) == {201: 5, 429: CROWD - 5}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers if answer.status_code == 429)
    with httpx.Client(base_url=own_platform.url, headers=ALICE) as alice:
        assert len(alice.get("/tasks").json()["tasks"]) == 5
        ended = [answer.json()["task_id"] for answer in answers if answer.status_code == 201]
        for task_id in ended:
            assert alice.post(f"/tasks/{task_id}/cancel").status_code == 202
    forms = at_once(
        own_platform.url,
        lambda client, _: client.post("/tasks", data={"processor": "checksum"}, files={"file": ("a", b"x")}),
    )
    assert statuses(forms) == {202: 5, 429: CROWD - 5}
    wait_for("refused forms have left nothing", lambda: len(files_of(own_platform)) == 5)


def test_wrong_keys_of_an_address_over_two_apis(own_platform: Platform) -> None:
    for _ in range(2):
        own_platform.start_api(HEADWAY_API_KEYS=KEYS)
    one, two = own_platform.urls
    wrong = at_once(
        one,
        lambda client, n: client.post(f"{(one, two)[n % 2]}/session", json={"key": f"wrong-key-number-{n:06}"}),
        300,
    )
    assert statuses(wrong) == {401: 10, 429: 290}
    right = httpx.post(f"{one}/session", json={"key": "the-secret-key-of-bob-0815"})
    assert right.status_code == 429, "however right: that it is would be an answer to a try"


def test_right_keys_of_an_address_do_not_count_against_each_other(own_platform: Platform) -> None:
    own_platform.start_api(HEADWAY_API_KEYS=KEYS)
    key = {"key": "the-secret-key-of-bob-0815"}
    right = at_once(own_platform.url, lambda client, _: client.post("/session", json=key), 50)
    assert statuses(right) == {200: 50}


def test_a_quota_of_forms_and_of_uploads_of_unknown_length(own_platform: Platform, own_redis: RedisServer) -> None:
    quota = 16 * PIECE
    own_platform.start_api(HEADWAY_OWNER_QUOTA_BYTES=str(quota), HEADWAY_API_KEYS=KEYS)
    most = 0

    async def pieces() -> Any:
        """Chunked: nobody says how much will come, and all that has come lies there before the last byte does."""
        nonlocal most
        for _ in range(4):
            yield b"x" * (PIECE // 4)
            await asyncio.sleep(0.05)
            most = max(most, bytes_of(own_platform))

    async def put(client: httpx.AsyncClient, _: int) -> httpx.Response:
        task = (await client.post("/tasks", json={"processor": "checksum", "filename": "a"})).json()
        return await client.put(task["links"]["upload"], content=pieces())

    answers = at_once(own_platform.url, put)
    assert set(statuses(answers)) <= {200, 507}
    assert 1 <= statuses(answers)[200] <= 16
    assert most <= quota
    wait_for("only whole files are left", lambda: bytes_of(own_platform) == statuses(answers)[200] * PIECE)
    with httpx.Client(base_url=own_platform.url, headers=ALICE) as alice, redis.Redis(port=own_redis.port) as client:
        wait_for("what came to nothing is let go", lambda: held(client) == statuses(answers)[200] * PIECE)
        for task in alice.get("/tasks", params={"limit": 500}).json()["tasks"]:
            alice.post(f"/tasks/{task['task_id']}/cancel")
            alice.delete(f"/tasks/{task['task_id']}")
        assert held(client) == 0
        forms = at_once(
            own_platform.url,
            lambda client, _: client.post(
                "/tasks", data={"processor": "checksum"}, files={"file": ("a", b"x" * PIECE)}
            ),
        )
        made = statuses(forms)[202]
        assert set(statuses(forms)) == {202, 507}
        assert 15 <= made <= 16, "each is a little longer than its file until it is whole"
        wait_for("refused forms have left nothing", lambda: len(files_of(own_platform)) == made)
        assert held(client) == made * PIECE


def held(client: redis.Redis) -> int:
    found: Any = client.hget("headway:owner:alice:stored", "total")
    return int(found or 0)


def test_an_upload_that_redis_refused_leaves_nothing(own_platform: Platform, own_redis: RedisServer) -> None:
    """Full, or a replica, also one that answers nothing: what it did not take is removed, now or when it answers."""
    own_platform.start_api()
    refusals: list[tuple[list[Any], list[Any]]] = [
        (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
        (["CONFIG", "SET", "replica-serve-stale-data", "yes"], ["REPLICAOF", "NO", "ONE"]),
        (["CONFIG", "SET", "replica-serve-stale-data", "no"], ["REPLICAOF", "NO", "ONE"]),
    ]
    with redis.Redis(port=own_redis.port) as client:
        for refuse, again in refusals:
            client.execute_command(*refuse)
            if again[0] == "REPLICAOF":
                client.execute_command("REPLICAOF", "127.0.0.1", "1")
            for _ in range(5):
                answer = httpx.post(
                    f"{own_platform.url}/tasks", data={"processor": "checksum"}, files={"file": ("a", b"hello")}
                )
                assert answer.status_code == 503, (again, answer.text)
            client.execute_command(*again)
            wait_for("nothing is left", lambda: files_of(own_platform) == [])
