"""`/openapi.json` and `/docs`: what there is, for who may use it."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, JSONResponse

from headway.api.dependencies import OwnerDep

router = APIRouter(include_in_schema=False)

#: Where FastAPI's page has Swagger UI from. It is the one script of another host that ever runs on this origin.
_CDN: Final = "https://cdn.jsdelivr.net"


@router.get("/openapi.json")
async def schema(request: Request, _: OwnerDep) -> JSONResponse:
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def docs(request: Request, _: OwnerDep) -> HTMLResponse:
    """Swagger UI. Of inline code only the one script that starts it runs, by its digest."""
    page = get_swagger_ui_html(openapi_url="/openapi.json", title="Headway", swagger_favicon_url="/static/favicon.svg")
    scripts: list[Any] = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    digests = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one).digest()).decode()}'" for one in scripts)
    page.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src {_CDN} {digests}; style-src {_CDN} 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return page
