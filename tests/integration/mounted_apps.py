"""Applications in which Headway is mounted, as docs/clients.md says; each run as a server's process by its name."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from headway.app import Settings, create_app

_folder = Path(os.environ["MOUNTED_IN"])
_one = Settings(redis_url=os.environ["REDIS_ONE"], data_dir=_folder / "one" / "data")
_two = Settings(redis_url=os.environ["REDIS_TWO"], data_dir=_folder / "two" / "data")


def with_two() -> FastAPI:
    """A FastAPI with a middleware, a state and a route of its own, and two platforms."""
    one, two = create_app(_one), create_app(_two)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            for headway in (one, two):
                await stack.enter_async_context(headway.running())
            yield {"ours": "kept"}

    async def named(request: Request, call_next: RequestResponseEndpoint) -> Response:
        answer = await call_next(request)
        answer.headers["X-Outer"] = request.state.ours
        return answer

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(BaseHTTPMiddleware, dispatch=named)

    @app.get("/healthz")
    async def healthz(request: Request) -> dict[str, str]:
        return {"state": request.state.ours}

    app.mount("/one", one)
    app.mount("/deep/two", two)
    return app


def with_one() -> Starlette:
    headway = create_app(_one)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with headway.running():
            yield

    return Starlette(routes=[Route("/healthz", _healthy), Mount("/one", headway)], lifespan=lifespan)


def compressing() -> FastAPI:
    """Its own middleware compresses whatever it may."""
    app = with_two()
    app.add_middleware(GZipMiddleware, minimum_size=1)
    return app


def forgotten() -> Starlette:
    return Starlette(routes=[Route("/healthz", _healthy), Mount("/one", create_app(_one))])


def alone() -> Any:
    """Not mounted: what a server is given as it is."""
    return create_app(_one)


async def _healthy(_: Request) -> Response:
    return PlainTextResponse("ok")
