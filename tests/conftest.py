"""Fixtures for everybody: a real Redis, a platform of real processes, and settings in a temporary folder.

Real Redis is the default; `any_redis` runs a test on it and on fakeredis, which must agree.
"""

from __future__ import annotations

import os
import shutil
import signal
import zlib
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import httpx._config as httpx_config
import httpx._transports.default as httpx_transports
import pytest

from headway.shared.redis.client import RedisClient, connect
from headway.shared.settings import Settings
from tests import described
from tests.processes import Platform, RedisServer
from tests.s3_server import S3Server
from tests.waiting import PATIENCE_SECONDS

# A machine with other work on each core answers late, and that is no fault.
for _kind in ("connect", "read", "write", "pool"):
    setattr(httpx_config.DEFAULT_TIMEOUT_CONFIG, _kind, PATIENCE_SECONDS)

# `httpx.get` makes a client, and each client reads the machine's certificates anew: 25 ms of CPU, thousands of times.
httpx_transports.create_ssl_context = cache(httpx.create_ssl_context)  # type: ignore[attr-defined]

# A shell's background job ignores Ctrl-C, and so would every program that the tests start and send one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Every answer that a test gets is held to /openapi.json.
described.install()


#: The rooms whose files take longest come first, so that at the end no process waits for another's last file.
SLOW_FIRST = ("security", "resilience", "browser", "integration", "guide", "contract")
#: Most of these start processes, and together take four fifths of the time of all, which is 35 minutes of CPU. A run of
#: everything takes one in SAMPLED_ONE_IN of them, others by each seed; with --every all, as the workflow does.
SAMPLED = ("security/", "resilience/", "browser/", "integration/", "contract/test_processors_poison.py")
SAMPLED_ONE_IN = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every", action="store_true", help="run all of the slow tests, not a fifth chosen by the seed")


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"slow rooms: one test in {SAMPLED_ONE_IN}, by the seed; all with --every" if _samples(config) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def name(item: pytest.Item) -> str:
        return item.path.relative_to(Path(__file__).parent).as_posix()

    def place(item: pytest.Item) -> int:
        room = name(item).partition("/")[0]
        return SLOW_FIRST.index(room) if room in SLOW_FIRST else len(SLOW_FIRST)

    items.sort(key=place)
    if not _samples(config):
        return
    seed = config.getoption("randomly_seed", 0)
    kept, left = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        chosen = zlib.crc32(f"{seed} {item.nodeid}".encode()) % SAMPLED_ONE_IN == 0
        (kept if chosen or not name(item).startswith(SAMPLED) else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Each process collects for itself, and all must find the same names: what is compressed may hold the time."""
    return f"{argname} of {len(val)} bytes" if isinstance(val, bytes) and not val.isascii() else None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["samples"] = _samples(node.config)


def _samples(config: pytest.Config) -> bool:
    """Not where somebody says which tests are to be run."""
    if (told := getattr(config, "workerinput", None)) is not None:
        return bool(told["samples"])
    everything = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    return everything and not (config.option.keyword or config.option.markexpr or config.getoption("--every"))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HEADWAY_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests that do not harm it. Tests flush it through `settings`."""
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests that do not harm it. Each takes a folder of its own in its bucket."""
    with S3Server(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> Settings:
    """Settings on the shared server, database 1, which is emptied by `redis_client`."""
    url = redis_server.url.removesuffix("/0") + "/1"
    return Settings(redis_url=url, data_dir=tmp_path / "data", files_dir=tmp_path / "files", worker_concurrency=2)


@pytest.fixture
async def redis_client(settings: Settings) -> AsyncIterator[RedisClient]:
    """A client on an empty database."""
    async with connect(settings) as client:
        await client.flushdb()
        yield client


@pytest.fixture(params=["redis", "fakeredis"])
def any_settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    return settings if request.param == "redis" else settings.model_copy(update={"redis_url": "memory://"})


@pytest.fixture
async def any_redis(any_settings: Settings) -> AsyncIterator[RedisClient]:
    """A client on an empty database, of a real server and of fakeredis."""
    async with connect(any_settings) as client:
        await client.flushdb()
        yield client


@pytest.fixture(scope="session")
def platform(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """An API and a worker that every test may use and none may harm. Database 0 of the shared server."""
    with Platform(tmp_path_factory.mktemp("platform"), redis_server.url) as started:
        started.start_worker()
        started.start_api()
        yield started


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to be killed."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def own_platform(own_redis: RedisServer, tmp_path: Path) -> Iterator[Platform]:
    """A platform of the test's own, with nothing started yet, to be killed."""
    with Platform(tmp_path / "platform", own_redis.url) as own:
        yield own


#: What README asks for is enough; these let the rest run.
_PROGRAMS = ("redis-server", "nginx", "caddy", "chromium", "node")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing and terminalreporter.stats.get("skipped"):
        terminalreporter.line(
            f"Some tests were skipped because {', '.join(missing)} cannot be found. On Debian: "
            "apt-get install redis-server nginx-light caddy chromium nodejs npm"
        )
