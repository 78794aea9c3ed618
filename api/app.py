"""create_app(settings): the routers, the problem handlers, the page. Holds nothing open; see lifespan.py."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from api import problems
from api.edge import Edge
from api.lifespan import lifespan_of
from api.routes import batches, events, files, health, notes, processors, tasks, tutorial, uploads
from shared.settings import Settings

STATIC = Path(__file__).parent / "static"

#: Everything the page uses is its own: no inline code, no other host.
PAGE_POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; object-src 'none'"


class _Static(StaticFiles):
    """Asked again each time (by ETag, a 304): modules of two versions do not mix after an upgrade."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


class _App(FastAPI):
    """Keeps the server's own `send`, which every layer below wraps: a stream whose client takes nothing is cut by it
    (api/sse.py)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["headway.send"] = send
        await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    app = _App(
        title="Headway",
        version=version("headway"),
        summary="Task progress that is true whatever dies",
        lifespan=lifespan_of(settings),
        redoc_url=None,
        strict_content_type=False,
    )
    problems.install(app)
    for module in (tasks, uploads, events, batches, notes, files, processors, health, tutorial):
        app.include_router(module.router)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
        return FileResponse(STATIC / "index.html", media_type="text/html", headers=headers)

    app.mount("/static", _Static(directory=STATIC), name="static")
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID", "Idempotency-Key"],
            expose_headers=["Location", "Retry-After", "Idempotency-Replayed"],
        )
    app.add_middleware(Edge, allowed_origins=settings.cors_origins)
    return app
