"""Health, info and metrics."""

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgi_local import __version__
from tgi_local.api.context import context
from tgi_local.api.error_responses import native_response
from tgi_local.errors import NotReadyError
from tgi_local.protocol.tgi import info_response

router = APIRouter()


@router.api_route("/health", methods=["GET", "HEAD"])
@router.api_route("/ping", methods=["GET", "HEAD"])
@router.api_route("/v1/health", methods=["GET", "HEAD"])
async def health(request: Request) -> Response:
    """200 and empty when ready; else 503 with TGI's body, the state and what is going on."""
    state = context(request).service.state()
    if state.name == "ready":
        return Response()
    answer = {"error": state.name, "error_type": "healthcheck", "state": state.name, "detail": state.detail}
    return Response(orjson.dumps(answer), 503, {"retry-after": "1"}, "application/json")


@router.api_route("/info", methods=["GET", "HEAD"])
@router.api_route("/v1/info", methods=["GET", "HEAD"])
async def info(request: Request) -> Response:
    api = context(request)
    try:
        model = api.service.model
    except NotReadyError as error:
        return native_response(error)
    answer = info_response(model.info, model.limits, api.validation_workers, __version__)
    return Response(orjson.dumps(answer), media_type="application/json")


@router.api_route("/metrics", methods=["GET", "HEAD"])
async def metrics(request: Request) -> Response:
    body = context(request).service.metrics.render()
    return Response(body, media_type="text/plain; charset=utf-8")


async def root_health(request: Request) -> Response:
    """GET / without a page: TGI's health."""
    return await health(request)
