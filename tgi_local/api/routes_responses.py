"""OpenAI's Responses: body -> chat -> service -> response, which later ones may refer to."""

import time
from collections.abc import Sequence

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.api.body import read_json
from tgi_local.api.context import ApiContext, caller_of, context
from tgi_local.api.typed_events import streamed_answer, whole_answer
from tgi_local.errors import UnsupportedError
from tgi_local.protocol.openai import chat_parameters, to_messages, to_tools
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
    body = parse(ResponsesRequest, await read_json(request))
    api = context(request)
    model = api.service.model
    turns = _turns(api, body)
    chat = to_chat(body, turns)
    with renaming(OWN_NAMES):
        native = await api.service.prepare_chat(
            to_messages(chat),
            to_tools(chat.offered_tools),
            chat_parameters(chat, model.info.generation_defaults),
            received_s,
            template_kwargs(body, model.template.reads),
            caller=caller_of(request),
        )

    def keep(answer: ResponseAnswer) -> None:
        output = [parse(InputItem, item) for item in answer.output]
        api.responses.put(answer.object, to_turns(output, turns))

    answer = ResponseAnswer(body, model.info.model_id, native, None if body.store is False else keep)
    if body.stream:
        return streamed_answer(request, native, answer, answer.fail)
    return await whole_answer(request, native, answer)


@router.post("/v1/responses/input_tokens")
async def count_input_tokens(request: Request) -> Response:
    body = parse(PromptFields, await read_json(request))
    api = context(request)
    kwargs = template_kwargs(body, api.service.model.template.reads)
    chat = to_chat(body, _turns(api, body))
    prompt = await api.service.render_chat(to_messages(chat), to_tools(chat.offered_tools), kwargs)
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
    if body.previous_response_id is None:
        return to_turns(body.input)
    earlier = api.responses.get(body.previous_response_id, "previous_response_id").turns
    return to_turns(body.input, earlier)
