"""Cloud platforms' routes. SageMaker: one path, dispatched by the shape of the body."""

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.api.body import read_json
from tgi_local.api.routes_openai import answer_chat, answer_completions
from tgi_local.api.routes_tgi import answer_compat
from tgi_local.errors import BodyShapeError
from tgi_local.protocol.openai import ChatRequest, CompletionRequest
from tgi_local.protocol.tgi import GenerateRequest
from tgi_local.protocol.wire import parse

router = APIRouter()


@router.post("/invocations")
async def invocations(request: Request) -> Response:
    received_s = time.monotonic()
    body = await read_json(request)
    if isinstance(body, dict):
        if "inputs" in body:
            return await answer_compat(request, parse(GenerateRequest, body), received_s)
        if "messages" in body:
            return await answer_chat(request, parse(ChatRequest, body), received_s)
        if "prompt" in body:
            return await answer_completions(request, parse(CompletionRequest, body), received_s)
    raise BodyShapeError(
        "data did not match any variant of untagged enum SagemakerRequest: give `inputs`, `messages` or `prompt`"
    )
