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
from tgi_local.api.truncation import truncated
from tgi_local.api.typed_events import streamed_answer, whole_answer
from tgi_local.errors import UnsupportedError, ValidationError
from tgi_local.protocol.openai import chat_parameters, to_conversation
from tgi_local.protocol.responses import OWN_NAMES, PromptFields, ResponsesRequest, template_kwargs, to_chat
from tgi_local.protocol.responses_answers import ResponseAnswer
from tgi_local.protocol.responses_items import InputItem, Turn, listed, to_turns
from tgi_local.protocol.wire import parse, renaming

router = APIRouter()

MAX_PAGE = 100


@router.post("/v1/responses")
async def create_response(request: Request) -> Response:
    received_s = time.monotonic()
    body = await read(request, ResponsesRequest)
    api = context(request)
    model = api.service.model
    with renaming(OWN_NAMES):
        with api.service.metrics.translating():
            items = _conversation(api, body)
            turns = await _turns(request, body, items)
            switches = template_kwargs(body, model.template.reads)
            chat = await apart(request, lambda: to_chat(body, turns))
            conversation = await apart(request, lambda: to_conversation(chat, switches))
            parameters = chat_parameters(chat, model.info.generation_defaults)
        with api.service.admission(1, received_s) as admission:
            preparing = api.service.prepare_chat(conversation, parameters, received_s, caller_of(request))
            native = await until_disconnect(request, preparing)

            def keep(answer: ResponseAnswer) -> None:
                api.responses.put(answer.object, items, [parse(InputItem, item) for item in answer.output])

            answer = ResponseAnswer(body, model.info.model_id, native, None if body.store is False else keep)
            if body.stream:
                return streamed_answer(request, native, answer, admission, answer.fail)
            return await whole_answer(request, native, answer, admission)


@router.post("/v1/responses/input_tokens")
async def count_input_tokens(request: Request) -> Response:
    body = await read(request, PromptFields)
    api = context(request)
    switches = template_kwargs(body, api.service.model.template.reads)
    turns = await _turns(request, body, _conversation(api, body))
    chat = await apart(request, lambda: to_chat(body, turns))
    conversation = await apart(request, lambda: to_conversation(chat, switches))
    prompt = await until_disconnect(request, api.service.render_chat(conversation))
    return _json({"object": "response.input_tokens", "input_tokens": len(prompt.token_ids)})


@router.get("/v1/responses/{response_id}")
async def retrieve_response(request: Request, response_id: str) -> Response:
    if request.query_params.get("stream", "false") == "true":
        raise UnsupportedError("`stream` is not supported for a stored response", param="stream")
    return Response(context(request).responses.get(response_id).body, media_type="application/json")


@router.get("/v1/responses/{response_id}/input_items")
async def list_input_items(request: Request, response_id: str) -> Response:
    stored = context(request).responses.get(response_id)
    query = request.query_params
    limit, order = query.get("limit", "20"), query.get("order", "desc")
    if not limit.isdecimal() or len(limit) > 3 or not 1 <= int(limit) <= MAX_PAGE:
        raise ValidationError(f"`limit` must be from 1 to {MAX_PAGE}", param="limit")
    if order not in ("asc", "desc"):
        raise ValidationError("`order` must be asc or desc", param="order")
    page, has_more = stored.page(int(limit), is_ascending=order == "asc", after=query.get("after"))
    data = [listed(item) for item in page]
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return _json({"object": "list", "data": data, "first_id": ends[0], "last_id": ends[1], "has_more": has_more})


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(request: Request, response_id: str) -> Response:
    context(request).responses.get(response_id)
    raise UnsupportedError("only a response that was created with `background` can be cancelled, and none is here")


@router.delete("/v1/responses/{response_id}")
async def delete_response(request: Request, response_id: str) -> Response:
    context(request).responses.delete(response_id)
    return _json({"id": response_id, "object": "response", "deleted": True})


def _conversation(api: ApiContext, body: PromptFields) -> Sequence[InputItem]:
    """The items so far; `instructions` of earlier responses are not part of it."""
    given = [item if item.referred_id is None else api.responses.item(item.referred_id) for item in body.items]
    if body.previous_response_id is None:
        return given
    return [*api.responses.get(body.previous_response_id, "previous_response_id").conversation, *given]


async def _turns(request: Request, body: PromptFields, items: Sequence[InputItem]) -> Sequence[Turn]:
    turns = await apart(request, lambda: to_turns(items))
    return await truncated(request, body, turns) if body.truncation == "auto" else turns


def _json(answer: dict[str, object]) -> Response:
    return Response(orjson.dumps(answer), media_type="application/json")
