"""OpenAI's Responses: body -> chat -> service -> response, which later ones may refer to."""

import time
from collections.abc import Sequence

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.api.body import apart, read
from tgi_local.api.context import ApiContext, caller_of, context
from tgi_local.api.sse import until_disconnect
from tgi_local.api.typed_events import streamed_answer, whole_answer
from tgi_local.errors import UnsupportedError
from tgi_local.protocol.openai import chat_parameters, to_conversation
from tgi_local.protocol.responses import (
    OWN_NAMES,
    InputItem,
    PromptFields,
    ResponsesRequest,
    Turn,
    template_kwargs,
    to_chat,
    to_turns,
)
from tgi_local.protocol.responses_answers import ResponseAnswer
from tgi_local.protocol.wire import parse, renaming

router = APIRouter()


@router.post("/v1/responses")
async def create_response(request: Request) -> Response:
    received_s = time.monotonic()
    body = await read(request, ResponsesRequest)
    api = context(request)
    model = api.service.model
    switches = template_kwargs(body, model.template.reads)
    with renaming(OWN_NAMES):
        with api.service.translating():
            turns = _turns(api, body)
            chat = await apart(request, lambda: to_chat(body, turns))
            conversation = await apart(request, lambda: to_conversation(chat, switches))
            parameters = chat_parameters(chat, model.info.generation_defaults)
        with api.service.admission(1, received_s) as admission:
            preparing = api.service.prepare_chat(conversation, parameters, received_s, caller_of(request))
            native = await until_disconnect(request, preparing)

            def keep(answer: ResponseAnswer) -> None:
                output = [parse(InputItem, item) for item in answer.output]
                api.responses.put(answer.object, to_turns(output, turns), output)

            answer = ResponseAnswer(body, model.info.model_id, native, None if body.store is False else keep)
            if body.stream:
                return streamed_answer(request, native, answer, admission, answer.fail)
            return await whole_answer(request, native, answer, admission)


@router.post("/v1/responses/input_tokens")
async def count_input_tokens(request: Request) -> Response:
    body = await read(request, PromptFields)
    api = context(request)
    switches = template_kwargs(body, api.service.model.template.reads)
    turns = _turns(api, body)
    chat = await apart(request, lambda: to_chat(body, turns))
    conversation = await apart(request, lambda: to_conversation(chat, switches))
    prompt = await until_disconnect(request, api.service.render_chat(conversation))
    answer = {"object": "response.input_tokens", "input_tokens": len(prompt.token_ids)}
    return Response(orjson.dumps(answer), media_type="application/json")


@router.get("/v1/responses/{response_id}")
async def retrieve_response(request: Request, response_id: str) -> Response:
    if request.query_params.get("stream", "false") == "true":
        raise UnsupportedError("`stream` is not supported for a stored response", param="stream")
    return Response(context(request).responses.get(response_id).body, media_type="application/json")


@router.delete("/v1/responses/{response_id}")
async def delete_response(request: Request, response_id: str) -> Response:
    context(request).responses.delete(response_id)
    answer = {"id": response_id, "object": "response", "deleted": True}
    return Response(orjson.dumps(answer), media_type="application/json")


def _turns(api: ApiContext, body: PromptFields) -> Sequence[Turn]:
    """The conversation so far; `instructions` of earlier responses are not part of it."""
    given = body.input
    if not isinstance(given, str):
        given = [item if item.referred_id is None else api.responses.item(item.referred_id) for item in given]
    if body.previous_response_id is None:
        return to_turns(given)
    earlier = api.responses.get(body.previous_response_id, "previous_response_id").turns
    return to_turns(given, earlier)
