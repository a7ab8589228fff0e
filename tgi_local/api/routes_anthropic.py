"""Anthropic's routes: body -> chat -> service -> message."""

import time

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.api.body import read_json
from tgi_local.api.context import caller_of, context
from tgi_local.api.error_responses import anthropic_body
from tgi_local.api.sse import typed_frame
from tgi_local.api.typed_events import streamed_answer, whole_answer
from tgi_local.protocol.anthropic import CountTokensRequest, MessagesRequest, template_kwargs, to_chat
from tgi_local.protocol.anthropic_answers import PING, MessageAnswer
from tgi_local.protocol.openai import chat_parameters, to_messages
from tgi_local.protocol.tools import to_tools
from tgi_local.protocol.wire import parse

router = APIRouter()

PING_FRAME = typed_frame(PING)


@router.post("/v1/messages")
async def messages(request: Request) -> Response:
    received_s = time.monotonic()
    body = parse(MessagesRequest, await read_json(request))
    service = context(request).service
    model = service.model
    chat = to_chat(body)
    native = await service.prepare_chat(
        to_messages(chat),
        to_tools(chat.offered_tools),
        chat_parameters(chat, model.info.generation_defaults),
        received_s,
        template_kwargs(body, model.template.thinking_tags is not None, model.template.reads),
        caller=caller_of(request),
    )
    answer = MessageAnswer(body, model.info.model_id, len(native.prompt_token_ids))
    if body.stream:
        return streamed_answer(request, native, answer, anthropic_body, PING_FRAME)
    return await whole_answer(request, native, answer)


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Response:
    body = parse(CountTokensRequest, await read_json(request))
    service = context(request).service
    template = service.model.template
    chat = to_chat(body)
    switches = template_kwargs(body, template.thinking_tags is not None, template.reads)
    prompt = await service.render_chat(to_messages(chat), to_tools(chat.offered_tools), switches)
    return Response(orjson.dumps({"input_tokens": len(prompt.token_ids)}), media_type="application/json")
