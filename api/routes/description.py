"""`/openapi.json` and `/docs`: what there is, for who may use it.

The page is Swagger UI, whose files the package fastapi-offline brings; they are served under `/static` (api/app.py), so
that nothing is loaded from another host.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse

from headway.api.dependencies import OwnerDep
from headway.api.openapi import JSON, TEXT, answer

router = APIRouter(tags=["description"])

#: Every address is relative: the page works behind a path prefix too.
PAGE: Final = """\
<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width">
    <title>Headway: the API</title>
    <link rel="icon" href="static/favicon.svg">
    <link rel="stylesheet" href="static/swagger-ui.css">
  </head>
  <body>
    <div id="swagger-ui"></div>
    <noscript>This page needs JavaScript. <a href="openapi.json">openapi.json</a> says the same.</noscript>
    <script src="static/swagger-ui-bundle.js"></script>
    <script src="static/docs.js" type="module"></script>
  </body>
</html>
"""
#: Swagger UI sets the style of single elements, and its pictures are in its style sheet.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@router.get(
    "/openapi.json",
    summary="The API in OpenAPI 3.1",
    operation_id="get_openapi",
    responses={200: answer("The document", {JSON: {"type": "object"}})},
)
async def schema(request: Request, _: OwnerDep) -> JSONResponse:
    document: dict[str, Any] = request.app.openapi()
    if prefix := request.scope.get("root_path"):
        document = document | {"servers": [{"url": prefix}]}
    return JSONResponse(document)


@router.get(
    "/docs",
    summary="The API as a page",
    response_class=HTMLResponse,
    responses={200: answer("Swagger UI", {"text/html": TEXT})},
)
async def docs(_: OwnerDep) -> HTMLResponse:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})
