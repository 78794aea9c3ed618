"""HEADWAY_CONFINEMENT: a worker that must have every wall does not start without; which stand is told everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from headway.shared import keys
from headway.shared.redis.client import RedisClient
from headway.shared.settings import Settings
from headway.worker.box.walls import BOX_VARIABLE, WITHOUT_VARIABLE, Box, Standing, Wall, in_order, why
from headway.worker.wall_notice import WallNotice, warning_of
from tests.processes import Platform
from tests.waiting import wait_for


def worker(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HEADWAY_DATA_DIR": str(tmp_path), "HEADWAY_LOG_FORMAT": "json"} | environment
    command = [sys.executable, "-m", "headway.cli.main", "worker"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)


def test_a_worker_that_must_have_every_wall_does_not_start_without(tmp_path: Path) -> None:
    ended = worker(tmp_path, HEADWAY_CONFINEMENT="required", **{WITHOUT_VARIABLE: "mount,seccomp"})
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    for wall in ("mount", "seccomp"):
        assert f"{wall}: it was left out by {WITHOUT_VARIABLE}" in ended.stderr
    assert "HEADWAY_CONFINEMENT" in ended.stderr


@pytest.mark.parametrize(
    ("wall", "error", "said"),
    [
        (Wall.NETWORK, OSError(1, "unshare: Operation not permitted"), "deploy/seccomp.json"),
        (Wall.MOUNT, OSError(13, "mount: Permission denied", "/"), "apparmor=unconfined"),
        (Wall.MOUNT, OSError(38, "mount_setattr: Function not implemented"), "Linux 5.12"),
        (Wall.LANDLOCK_READ, OSError(38, "Function not implemented"), "Linux 5.13"),
        (Wall.LANDLOCK_WRITE, OSError(1, "Operation not permitted"), "deploy/seccomp.json"),
        (Wall.SECCOMP, OSError(22, "seccomp: Invalid argument"), "CONFIG_SECCOMP_FILTER"),
        (Wall.PID, OSError(28, "unshare: No space left on device"), "user.max_user_namespaces"),
    ],
)
def test_what_is_missing_is_said_with_how_to_get_it(wall: Wall, error: OSError, said: str) -> None:
    assert said in why(wall, error)


def test_a_box_reaches_the_fork_server_as_it_was_asked_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WITHOUT_VARIABLE, "pid ipc")
    asked = Box.of(settings.model_copy(update={"confinement": "required", "processor_paths": [Path("/srv/models")]}))
    assert asked.without == {Wall.PID, Wall.IPC}
    assert str(settings.data_dir.absolute()) in asked.hidden
    [(name, value)] = asked.environment().items()
    monkeypatch.setenv(name, value)
    assert Box.from_environment() == asked
    assert BOX_VARIABLE not in os.environ, "no child needs it"


def test_it_is_a_warning_where_reading_or_the_network_is_open() -> None:
    every = frozenset(Wall)
    assert warning_of(Standing(every)) is None
    assert warning_of(Standing(every - {Wall.MOUNT, Wall.NETWORK})) is None
    assert "read every file" in str(warning_of(Standing(every - {Wall.MOUNT, Wall.LANDLOCK_READ})))
    assert "reach the network" in str(warning_of(Standing(every - {Wall.NETWORK, Wall.SECCOMP})))


async def test_what_a_worker_that_has_gone_said_is_removed(redis_client: RedisClient) -> None:
    await redis_client.hset(keys.WALLS, "gone", "{}")  # type: ignore[misc]
    await redis_client.zadd(keys.WORKERS, {"other": 1})
    await redis_client.hset(keys.WALLS, "other", "{}")  # type: ignore[misc]
    notice = WallNotice(redis_client, "ours", Box(), Standing(frozenset({Wall.PID}), {"ipc": "why"}))
    await notice._tell()
    told = await redis_client.hgetall(keys.WALLS)  # type: ignore[misc]
    assert set(told) == {b"ours", b"other"}
    assert json.loads(told[b"ours"])["missing"] == {"ipc": "why"}
    assert await redis_client.pttl(keys.WALLS) > 0
    await notice.leave()
    assert set(await redis_client.hkeys(keys.WALLS)) == {b"other"}  # type: ignore[misc]


def test_readyz_says_which_walls_stand(platform: Platform) -> None:
    def workers() -> dict[str, object]:
        found: dict[str, object] = httpx.get(f"{platform.url}/readyz").json()["checks"]["workers"]
        return found

    wait_for("the worker has told", lambda: "walls" in workers())
    found = workers()
    assert isinstance(found["walls"], list)
    assert isinstance(found["missing"], dict)
    assert set(found["walls"]) | set(found["missing"]) >= set(in_order(Wall))
    if sys.platform == "linux":
        assert found["warning"] is None or "processor" in str(found["warning"])
