"""The servers that benchmarks/relay.py measures: how each is installed (into a cache of its own) and started.

Each relays `headway:task:{id}:live` to `GET /tasks/{id}/events`, in one process. One that cannot be had is named and
left out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(tempfile.gettempdir()) / "headway-relay-peers"

Command = tuple[list[str], dict[str, str]]


@dataclass(frozen=True)
class Peer:
    name: str
    title: str
    #: (its port, Redis' port, a folder to write in) → command and environment
    start: Callable[[int, int, Path], Command]
    #: The part of the usual rate that it can take.
    pace: float = 1.0
    #: Events cannot be PUBLISHed to it: a second process of it takes `POST /pub/{id}`.
    posted: bool = False


def quietly(*command: object, cwd: Path | None = None) -> None:
    subprocess.run(list(map(str, command)), cwd=cwd, check=True, capture_output=True)


def _headway(redis_port: int, folder: Path) -> dict[str, str]:
    return {
        "HEADWAY_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        "HEADWAY_DATA_DIR": str(folder / "data"),
        "HEADWAY_LOG_FORMAT": "json",
    }


def headway() -> Peer:
    command = [sys.executable, "-m", "headway.cli.main", "api", "--port"]
    return Peer(
        "headway", "**Headway**, `headway api`", lambda port, redis, at: ([*command, str(port)], _headway(redis, at))
    )


def headway_asgi() -> Peer:
    command = [sys.executable, "-m", "uvicorn", "api.main:app", "--log-level", "warning", "--no-access-log", "--port"]
    title = "Headway, `uvicorn api.main:app`"
    return Peer("headway-asgi", title, lambda port, redis, at: ([*command, str(port)], _headway(redis, at)), pace=0.5)


def _python(name: str, title: str, pace: float, *packages: str) -> Peer:
    python = Path(sys.executable)
    if packages:
        venv = CACHE / name
        python = venv / "bin/python"
        if not (venv / "installed").exists():
            uv = Path(sys.executable).with_name("uv")
            same = [
                f"{one}=={version(one)}" for one in ("fastapi", "uvicorn", "redis", "hiredis", "uvloop", "httptools")
            ]
            quietly(uv, "venv", "--clear", "--python", sys.executable, venv)
            quietly(uv, "pip", "install", "--python", python, *same, *packages)
            (venv / "installed").touch()
    command = [str(python), "-m", "uvicorn", "python_peers:app", "--app-dir", str(HERE), "--backlog", "4096"]
    command += ["--log-level", "warning", "--no-access-log", "--port"]
    return Peer(
        name, title, lambda port, redis, _: ([*command, str(port)], {"PEER": name, "REDIS_PORT": str(redis)}), pace
    )


def _node(name: str, title: str, program: str) -> Peer:
    if shutil.which("node") is None:
        raise OSError("there is no node")
    folder = CACHE / "node"
    folder.mkdir(parents=True, exist_ok=True)
    for file in HERE.glob("*.mjs"):
        shutil.copy(file, folder)
    if not (folder / "node_modules").exists():
        shutil.copy(HERE / "package.json", folder)
        quietly("npm", "install", "--no-audit", "--no-fund", cwd=folder)
    return Peer(
        *(name, title),
        lambda port, redis, _: (
            ["node", str(folder / program)],
            {"PORT": str(port), "REDIS_PORT": str(redis), "NODE_ENV": "production"},
        ),
    )


def _nchan_module() -> Path:
    if shutil.which("nginx") is None:
        raise OSError("there is no nginx")
    name = Path("usr/lib/nginx/modules/ngx_nchan_module.so")
    if (Path("/") / name).exists():
        return Path("/") / name
    folder = CACHE / "nchan"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        quietly("apt-get", "download", "libnginx-mod-nchan", cwd=folder)
        quietly("dpkg", "-x", next(folder.glob("*.deb")), folder)
    return folder / name


def nchan(name: str, title: str, mode: str) -> Peer:
    module = _nchan_module()

    def start(port: int, redis_port: int, folder: Path) -> Command:
        config = folder / f"nginx-{port}.conf"
        config.write_text(f"""
load_module {module};
daemon off; worker_processes 1; pid {folder}/nginx-{port}.pid; error_log stderr error; worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
http {{
  access_log off; client_body_temp_path {folder}/nginx-{port};
  upstream redis {{ nchan_redis_server redis://127.0.0.1:{redis_port}; nchan_redis_storage_mode {mode}; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; keepalive_requests 100000000;
    location ~ ^/tasks/([0-9a-f]+)/events$ {{
      nchan_subscriber eventsource; nchan_channel_id $1; nchan_redis_pass redis; nchan_subscriber_first_message newest;
    }}
    location ~ ^/pub/([0-9a-f]+)$ {{ nchan_publisher; nchan_channel_id $1; nchan_redis_pass redis; }}
  }}
}}""")
        return ["nginx", "-c", str(config), "-e", "stderr"], {}

    return Peer(name, title, start, pace=0.25, posted=True)


def found(names: list[str], load: Path) -> Iterator[Peer]:
    """Every peer that is wanted and can be had."""
    ways: dict[str, Callable[[], Peer]] = {
        "c": lambda: Peer(
            "c", "bare C, epoll and `send`", lambda port, redis, _: ([str(load), "server", str(port), str(redis)], {})
        ),
        "headway": headway,
        "node": lambda: _node("node", "Node, plain http and one subscription", "node_plain.mjs"),
        "nchan-nostore": lambda: nchan("nchan-nostore", "nginx + Nchan, Redis without storage", "nostore"),
        "nchan": lambda: nchan("nchan", "nginx + Nchan, Redis", "distributed"),
        "better-sse": lambda: _node("better-sse", "better-sse on Node", "better_sse.mjs"),
        "headway-asgi": headway_asgi,
        "sse-starlette": lambda: _python("sse-starlette", "sse-starlette on uvicorn", 0.25, "sse-starlette==3.7.0"),
        "fastapi": lambda: _python("fastapi", "FastAPI's own SSE on uvicorn", 0.05),
    }
    for name in names or list(ways):
        try:
            yield ways[name]()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"left out: {name} could not be had ({error})", flush=True)
