"""Redis answers, and the answer is no: a slow script of somebody else's, rights that were taken away, a replica without
its primary. No process ends, it is said in words, and all is well when it is over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import httpx
import pytest
import redis
from redis.exceptions import RedisError

from tests.processes import Platform, RedisServer
from tests.waiting import wait_for

SPIN: Final = "while true do redis.call('PING') end"


@contextmanager
def busy(server: RedisServer) -> Iterator[None]:
    """Somebody else's script runs, and changes nothing, so that it can be killed."""
    with redis.Redis(port=server.port) as other, redis.Redis(port=server.port, socket_timeout=120) as spinning:
        for name in ("busy-reply-threshold", "lua-time-limit"):
            with suppress(RedisError):
                other.config_set(name, 50)

        def spin() -> None:
            with suppress(RedisError):
                spinning.eval(SPIN, 0)

        thread = threading.Thread(target=spin)
        thread.start()
        try:
            yield
        finally:
            wait_for("it is killed", lambda: killed(other))
            thread.join()


def killed(client: redis.Redis) -> bool:
    try:
        client.script_kill()
    except RedisError as error:
        return "NOTBUSY" in str(error)
    return False


def rules(*of_default: str) -> Callable[[RedisServer], Any]:
    @contextmanager
    def taken(server: RedisServer) -> Iterator[None]:
        with redis.Redis(port=server.port) as before:
            before.execute_command("ACL", "SETUSER", "admin", "on", ">secret", "~*", "&*", "+@all")
        with redis.Redis(port=server.port, username="admin", password="secret") as admin:
            admin.execute_command("ACL", "SETUSER", "default", *of_default)
            yield
            admin.execute_command("ACL", "SETUSER", "default", "~*", "&*", "+@all")

    return taken


@contextmanager
def masterless(server: RedisServer) -> Iterator[None]:
    with redis.Redis(port=server.port) as client:
        client.config_set("replica-serve-stale-data", "no")
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        yield
        client.execute_command("REPLICAOF", "NO", "ONE")


WAYS: Final[dict[str, tuple[Callable[[RedisServer], Any], str]]] = {
    "BUSY": (busy, "slow script"),
    "NOPERM of scripts": (rules("-eval", "-evalsha"), "may not run EVAL"),
    "NOPERM of keys": (rules("resetkeys", "~other:*"), "may not use a key"),
    "NOPERM of everything": (rules("-@all"), "NOPERM"),
    "MASTERDOWN": (masterless, "without its primary"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_redis_that_says_no_ends_no_process_and_is_said_in_words(
    way: str, own_platform: Platform, own_redis: RedisServer
) -> None:
    refusing, words = WAYS[way]
    api, worker = own_platform.start_api(), own_platform.start_worker(HEADWAY_LEASE_SECONDS="1")
    pids = api.pid, worker.pid
    task = own_platform.submit("rehearsal", options='{"steps": 80, "step_seconds": 0.1}')
    own_platform.wait(task["task_id"], "processing")
    ready = f"{own_platform.url}/readyz"

    def told() -> bool:
        for _ in range(2):  # what was refused is known when something was asked
            httpx.get(f"{own_platform.url}/tasks/{task['task_id']}", timeout=60)
        httpx.post(f"{own_platform.url}/tasks", json={"processor": "checksum", "filename": "a"}, timeout=60)
        answer = httpx.get(ready, timeout=60)
        return answer.json()["status"] != "ready" and words in answer.text

    with refusing(own_redis):
        wait_for("the API says why", told)
        wait_for("and the worker", lambda: words in worker.log)
        assert (api.code, worker.code) == (None, None)
    assert own_platform.wait(task["task_id"], seconds=120)["status"] == "completed"
    after = own_platform.submit("checksum", b"still here")
    assert own_platform.wait(after["task_id"])["status"] == "completed"
    wait_for("the worker is back", lambda: httpx.get(ready).json()["checks"]["workers"]["ok"])
    assert (api.pid, worker.pid) == pids
    assert (api.code, worker.code) == (None, None)
    assert '"event": "job broke"' not in worker.log
