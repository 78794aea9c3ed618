"""create_app(settings): the routers, the problem handlers, the page. Holds nothing open; see lifespan.py."""

from __future__ import annotations

import re
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.telemetry import TelemetryConfig
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from headway.api import problems
from headway.api.access.identity import PUBLIC, Gate, Identify, methods_of, policies_of
from headway.api.access.keyring import Keyring
from headway.api.access.origin_check import OriginCheck
from headway.api.access.tokens import secret_of
from headway.api.lifespan import State, lifespan_of
from headway.api.openapi import DESCRIPTION, TEXT, answer, complete, operation_id
from headway.api.root_path import RootPath, route_path
from headway.api.routes import (
    batches,
    description,
    events,
    exports,
    files,
    health,
    metrics,
    notes,
    pipelines,
    processors,
    producers,
    resumable,
    session,
    tasks,
    tutorial,
    uploads,
    webhooks,
)
from headway.api.serving.api_metrics import counted
from headway.api.serving.lingering import Lingering
from headway.api.serving.methods import MethodLayer, Methods
from headway.api.serving.recycling import hear_the_stop
from headway.api.streams.task_streams import TaskStreams
from headway.shared.settings import Settings
from headway.shared.tasks.registry import load_registry
from headway.shared.tracing import Tracing, tracing_of
from headway.shared.version import VERSION

STATIC = Path(__file__).parent / "static"
#: Package and folder; what /docs loads (routes/description.py).
SWAGGER_UI = ("fastapi_offline", "static")

#: What tus clients of other origins read.
TUS_ANSWERED = (
    *("Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm"),
    *("Upload-Length", "Upload-Offset", "Upload-Metadata", "Upload-Expires", "Headway-Task-Id", "Headway-Task-Token"),
    "Headway-Upload-Digest",
)

#: Everything the page uses is its own: no inline code, no other host.
#: `blob:` is a result's picture, which the page has fetched: a download is an attachment, and no `img` would show it.
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; "
    "object-src 'none'"
)


#: Whatever is logged while a request with one in its path is answered carries it.
_TASK_ID: Final = re.compile(r"(?<=/)[0-9a-f]{32}(?=/|$)")
#: A stream's end is in its task's trace (api/streams/last_events.py); what asks every few seconds whether we live is no
#: work.
_UNTRACED: Final = re.compile(r".*/events|/task-progress/.*|/static/.*|/healthz|/readyz|/metrics")


NOT_ENTERED: Final = (
    "Headway's lifespan has not been entered. A mounted application gets no lifespan events, so the outer one has to "
    "say, in its own lifespan: `async with headway.running(): yield`, `headway` being what create_app() returned "
    "(docs/clients.md, Mounted in another application)."
)


class _Page(FileResponse):
    """Whole, whatever Range asks for: these files are small, and Starlette answers a broken one in its own way."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


class _Static(StaticFiles):
    """Asked again each time (by ETag, a 304): modules of two versions do not mix after an upgrade."""

    def __init__(self, **where: Any) -> None:
        super().__init__(**where)
        #: By path: when it was written, in ns, and what was.
        self._kept: dict[str, tuple[int, bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["headway.route"] = "/static"
        headers = [pair for pair in scope["headers"] if pair[0] != b"range"]  # as _Page
        await super().__call__({**scope, "headers": headers}, receive, send)

    async def get_response(self, path: str, scope: Scope) -> Response:
        # These files are few, small and our own. A hop to a thread for each look, read and end of one is most of what
        # they cost, and strangers may ask for as many as they like.
        try:
            full_path, found = self.lookup_path(path)
        except (OSError, ValueError):
            found = None
        if found is None or not stat.S_ISREG(found.st_mode) or scope["method"] not in ("GET", "HEAD"):
            return await super().get_response(path, scope)
        response = self.file_response(full_path, found, scope)
        if not isinstance(response, FileResponse):
            return response
        written_at, content = self._kept.get(full_path, (0, b""))
        if written_at != found.st_mtime_ns or len(content) != found.st_size:
            content = Path(full_path).read_bytes()
            self._kept[full_path] = found.st_mtime_ns, content
        return Response(content, headers=dict(response.headers))

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["Content-Security-Policy"] = PAGE_POLICY  # a worker's script is held to its own
        return response


class Application(FastAPI):
    """Knows under which path it is seen, and what its lifespan holds open. Keeps the server's own `send`, which every
    layer below wraps: a stream whose client takes nothing is cut by it (api/streams/sse.py). And describes itself."""

    open_mode: bool
    root_path_of_requests: RootPath
    methods: Methods
    #: None: the lifespan has not been entered, or is over.
    entered: State | None = None
    #: The server's word that it stops is heard, also where it comes without a signal.
    hears_the_stop = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """For the lifespan of an application in which this one is mounted: a mount gets no lifespan events."""
        async with self.router.lifespan_context(self):
            yield

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = complete(super().openapi(), policies_of(self), open_mode=self.open_mode)
        return self.openapi_schema

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["headway.send"] = send
        if scope["type"] == "http":
            if self.entered is None:
                raise RuntimeError(NOT_ENTERED)
            if (state := scope.get("state", {})).get("headway") is not self.entered:  # mounted: the state is another's
                scope["state"] = {**state, "headway": self.entered}
                scope["headway.mounted"] = True
            if not self.hears_the_stop:
                self.hears_the_stop = hear_the_stop(scope, self.entered.relay.drain, self.entered.stop.begin)
            self.root_path_of_requests.settle(scope)
        if scope["type"] == "http" and (found := _TASK_ID.search(scope["path"])) is not None:
            bind_contextvars(task_id=found[0])  # a request has a context of its own, so nothing undoes it
        await counted(super().__call__, scope, receive, send)


def _telemetry(tracing: Tracing) -> TelemetryConfig:
    """FastAPI's own spans of requests, and nothing else of its telemetry; off, a request costs it three comparisons."""
    return {
        "tracer_provider": tracing.provider,
        "tracing": tracing.provider is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: _UNTRACED.fullmatch(route_path(scope)) is not None,
    }


def _remembered(lifespan: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @asynccontextmanager
    async def remembered(app: Application) -> AsyncIterator[Mapping[str, Any]]:
        async with lifespan(app) as state:
            app.entered = state["headway"]
            try:
                yield state
            finally:
                app.entered = None
                app.hears_the_stop = False

    return remembered


def create_app(settings: Settings, *, identify: Identify | None = None) -> Application:
    """`identify`: says of each request who asks (headway.app.Owner, or None for 401), in place of HEADWAY_API_KEYS and
    HEADWAY_JWT_KEY, which then count for nothing. Probes and static files ask nobody."""
    if identify is not None:
        settings = settings.model_copy(update={"api_keys": {}, "jwt_key": None})
    others = identify is not None or settings.jwt_key is not None
    keyring = Keyring(settings.api_keys, others=others, secret=secret_of(settings))
    tracing = tracing_of("headway-api")
    app = Application(
        title="Headway",
        version=VERSION,
        summary="Task progress that is true whatever dies",
        description=DESCRIPTION,
        generate_unique_id_function=operation_id,
        lifespan=_remembered(
            lifespan_of(settings, keyring, tracing, load_registry(settings.processors, settings.app_dir))
        ),
        telemetry=_telemetry(tracing),
        docs_url=None,  # by routes/description.py: with a policy, as all of them
        openapi_url=None,
        redoc_url=None,
        strict_content_type=False,
    )
    app.open_mode = keyring.is_open
    problems.install(app)
    # The routes are tried in this order, so those that are asked most often come first.
    for module in (
        tasks,
        producers,
        exports,
        uploads,
        resumable,
        events,
        batches,
        notes,
        webhooks,
        pipelines,
        files,
        processors,
        session,
        health,
        metrics,
    ):
        app.include_router(module.router)
    app.include_router(producers.results)
    for module in (tutorial, description):
        app.include_router(module.router)

    @app.get(
        "/",
        dependencies=[PUBLIC],
        summary="The page",
        operation_id="get_page",
        response_class=Response,
        responses={200: answer("The page", {"text/html": TEXT})},
    )
    async def page() -> FileResponse:
        headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
        return _Page(STATIC / "index.html", media_type="text/html", headers=headers)

    app.mount("/static", _Static(directory=STATIC, packages=[SWAGGER_UI]), name="static")
    routes = policies_of(app)
    app.root_path_of_requests = RootPath(settings.root_path, (stated.path for stated in routes))
    app.methods = methods_of(routes)
    # The last one is the outermost: first what holds for everybody, then who asks.
    app.add_middleware(MethodLayer, methods=app.methods)
    app.add_middleware(TaskStreams)
    app.add_middleware(Gate, keyring=keyring, routes=routes, identify=identify)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"],
            # Who may read may say what it likes: tracers, polyfills and tus clients add headers of their own.
            allow_headers=["*"],
            expose_headers=["Location", "Retry-After", "Idempotency-Replayed", *TUS_ANSWERED],
        )
    local_only = keyring.is_open and not settings.insecure
    app.add_middleware(OriginCheck, allowed_origins=settings.cors_origins, local_only=local_only)
    app.add_middleware(Lingering)
    return app
