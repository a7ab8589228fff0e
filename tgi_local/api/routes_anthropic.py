"""Anthropic's routes: body -> chat -> service -> message."""

import time

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.api.body import apart, read
from tgi_local.api.context import caller_of, context
from tgi_local.api.error_responses import anthropic_body, request_id_headers
from tgi_local.api.sse import typed_frame, until_disconnect
from tgi_local.api.typed_events import streamed_answer, whole_answer
from tgi_local.protocol.anthropic import CountTokensRequest, MessagesRequest, template_kwargs, to_chat
from tgi_local.protocol.anthropic_answers import PING, MessageAnswer
from tgi_local.protocol.openai import chat_parameters, to_conversation

router = APIRouter()

PING_FRAME = typed_frame(PING)


@router.post("/v1/messages")
async def messages(request: Request) -> Response:
    received_s = time.monotonic()
    body = await read(request, MessagesRequest)
    service = context(request).service
    model = service.model
    switches = template_kwargs(body, model.template.reads)
    with service.metrics.translating():
        chat = await apart(request, lambda: to_chat(body))
        conversation = await apart(request, lambda: to_conversation(chat, switches))
        parameters = chat_parameters(chat, model.info.generation_defaults)
    with service.admission(1, received_s) as admission:
        preparing = service.prepare_chat(conversation, parameters, received_s, caller_of(request))
        native = await until_disconnect(request, preparing)
        answer = MessageAnswer(body, model.info.model_id, len(native.prompt_token_ids))
        if body.stream:
            return streamed_answer(request, native, answer, admission, anthropic_body, PING_FRAME, request_id_headers())
        return await whole_answer(request, native, answer, admission, request_id_headers())


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Response:
    body = await read(request, CountTokensRequest)
    service = context(request).service
    chat = await apart(request, lambda: to_chat(body))
    switches = template_kwargs(body, service.model.template.reads)
    conversation = await apart(request, lambda: to_conversation(chat, switches))
    prompt = await until_disconnect(request, service.render_chat(conversation))
    answer = orjson.dumps({"input_tokens": len(prompt.token_ids)})
    return Response(answer, 200, request_id_headers(), "application/json")
