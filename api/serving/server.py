"""How uvicorn is run by `headway api`: which address, which limits, how it stops.

SIGTERM or Ctrl-C: streams are ended whole (lifespan.py), what else is under way gets a moment, and the process has
exited within 2 s, with code 0.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import signal
import socket
import sys
from typing import Final

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from headway.api.app import create_app
from headway.api.serving.protocol import StreamProtocol
from headway.shared.errors import SettingsError
from headway.shared.files.place import open_storage
from headway.shared.hidden import hide_from_children
from headway.shared.logging import configure, get_logger
from headway.shared.metric_registry import sharing_metrics
from headway.shared.redis import place
from headway.shared.settings import Settings
from headway.shared.tracing import is_wanted

log = get_logger(__name__)

#: What a request that is no stream gets to finish, under the 2 s of the contract.
GRACE_SECONDS: Final = 1
#: One of several processes that has not started by then, or has not answered for as long, is replaced. uvicorn's own
#: 5 s are too few on a busy machine, which is when no process can be spared.
START_SECONDS: Final = 30
#: Objects made, less those gone, between two looks at the youngest.
COLLECT_EVERY: Final = 20_000
#: Connections that wait to be accepted: a deploy brings everybody at once.
BACKLOG: Final = 4096


def check_exposure(settings: Settings, host: str) -> None:
    """Open mode is for this machine alone. Raises SettingsError where it would listen beyond loopback."""
    if not settings.is_open or settings.insecure:
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise SettingsError(
            f"HEADWAY_API_KEYS: without keys everybody who can reach {host} could read and run everything, so only "
            'loopback is listened on. Set keys, for example HEADWAY_API_KEYS=\'{"alice": "a-long-random-key"}\', '
            "or HEADWAY_INSECURE=1 if that is what you want."
        )


def bind(host: str, port: int) -> socket.socket:
    """Raises SettingsError where the address is taken or not ours."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        reason = "it is in use" if error.errno == 98 or error.errno == 48 else error.strerror
        raise SettingsError(f"Cannot listen on {host}:{port}: {reason}. Choose another with --port.") from None
    sock.set_inheritable(True)
    return sock


def _spare_the_collector() -> None:
    """What is there from the start stays, so it is not looked through for garbage again; and a connection makes so many
    objects, nearly all without a cycle, that with Python's own 700 looking would be a fifth of what a stream costs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 10, 10)


def app_of_a_worker() -> FastAPI:
    """For each of several processes."""
    from headway.api import main  # which reads the settings

    configure(main.settings.log_format)
    _spare_the_collector()
    return main.app


def run(settings: Settings, *, host: str = "127.0.0.1", port: int = 8000, workers: int = 1) -> int:
    """Serves until a signal. Returns the exit code. Raises SettingsError before anything has started."""
    hide_from_children()
    check_exposure(settings, host)
    open_storage(settings).prepare()
    asyncio.run(place.check(settings))
    is_wanted()
    app = create_app(settings)  # raises here, not in each of the processes
    configure(settings.log_format)
    sock = bind(host, port)
    config = uvicorn.Config(
        app if workers == 1 else "headway.api.serving.server:app_of_a_worker",
        host=host,
        port=port,
        workers=workers,
        factory=workers > 1,
        log_config=None,
        access_log=False,
        backlog=BACKLOG,
        http=StreamProtocol,
        ws="none",
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type] # goes to `call_later`
        server_header=False,
        timeout_worker_healthcheck=START_SECONDS,
    )
    # uvicorn raises the signal again when it has stopped, to die of it; a stop that was asked for is no failure.
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: None)
    if workers == 1:
        _spare_the_collector()
    log.info("api listening", host=host, port=sock.getsockname()[1], processes=workers)
    server = uvicorn.Server(config)
    try:
        if workers == 1:
            server.run(sockets=[sock])
        else:
            with sharing_metrics():
                Multiprocess(config, sockets=[sock]).run()
    except SystemExit as stopped:  # uvicorn's way to say that the start failed; the log says why
        return int(stopped.code or 0) if isinstance(stopped.code, int) else 1
    finally:
        sys.stderr.flush()
    return 0
