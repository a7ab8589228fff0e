"""The OpenAPI document and Swagger UI, which needs nothing from the network."""

import asyncio
from typing import Final

import swagger_ui_bundle
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from tgi_local.api.openapi import document_text
from tgi_local.settings import PROGRAM

router = APIRouter()

ASSETS: Final = frozenset({"swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"})
PAGE: Final = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{PROGRAM} API</title>
<link rel="stylesheet" href="swagger-ui.css">
<link rel="icon" href="favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({{url: "../api-doc/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null}})
</script>
</body>
</html>
"""


@router.api_route("/api-doc/openapi.json", methods=["GET", "HEAD"])
async def openapi_document(request: Request) -> Response:
    return Response(await asyncio.to_thread(document_text), media_type="application/json")  # slow when it is new


@router.api_route("/docs", methods=["GET", "HEAD"])
async def redirect(request: Request) -> Response:
    return RedirectResponse("/docs/", 303)


@router.api_route("/docs/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    return HTMLResponse(PAGE)


@router.api_route("/docs/{name}", methods=["GET", "HEAD"])
async def asset(request: Request, name: str) -> Response:
    if name not in ASSETS:
        raise HTTPException(404)
    return FileResponse(swagger_ui_bundle.swagger_ui_path / name)
