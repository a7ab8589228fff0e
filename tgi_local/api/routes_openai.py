"""OpenAI's routes: body -> service -> answer. Everything that can be refused is refused before a stream begins."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.api.answers import json_answer, num_described
from tgi_local.api.body import apart, read
from tgi_local.api.context import caller_of, context
from tgi_local.api.error_responses import is_for_anthropic, openai_event, request_id_headers
from tgi_local.api.headers import generation_headers, stream_headers
from tgi_local.api.sse import DONE, EventStream, frame, until_disconnect
from tgi_local.errors import BatchSizeError, NotFoundError, TgiLocalError
from tgi_local.open_generation import OpenGeneration
from tgi_local.protocol import anthropic_answers
from tgi_local.protocol.openai import (
    NEUTRAL_MODEL_NAMES,
    ChatRequest,
    CompletionRequest,
    chat_parameters,
    completion_parameters,
    template_kwargs,
    to_conversation,
)
from tgi_local.protocol.openai_answers import (
    ChatAnswer,
    CompletionAnswer,
    Usage,
    model_entry,
    models_response,
)
from tgi_local.protocol.wire import renaming
from tgi_local.service import Admission, siblings
from tgi_local.types import GenerationRequest, TextEvent

router = APIRouter()

# Makes the chunk of one event of one choice, or None when there is nothing to show.
MakeChunk = Callable[[int, TextEvent], dict[str, Any] | None]


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    received_s = time.monotonic()
    return await answer_chat(request, await read(request, ChatRequest), received_s)


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    received_s = time.monotonic()
    return await answer_completions(request, await read(request, CompletionRequest), received_s)


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """In the form of Anthropic's API for its clients, which have the same path."""
    model = context(request).service.model
    if is_for_anthropic(request):
        query = request.query_params
        page = anthropic_answers.models_page(model.info, model.limits, query.get("after_id"), query.get("before_id"))
        return Response(orjson.dumps(page), 200, request_id_headers(), "application/json")
    answer = models_response(model.info, model.limits.max_total_tokens)
    return Response(orjson.dumps(answer), media_type="application/json")


@router.get("/v1/models/{model_id:path}")
async def retrieve_model(request: Request, model_id: str) -> Response:
    if not model_id:
        raise HTTPException(404)  # the list with a slash after it; paths are exact
    model = context(request).service.model
    if model_id not in (model.info.model_id, *NEUTRAL_MODEL_NAMES):
        raise NotFoundError("No such model; /v1/models lists the one that is served", code="model_not_found")
    if is_for_anthropic(request):
        entry = anthropic_answers.model_entry(model.info, model.limits)
        return Response(orjson.dumps(entry), 200, request_id_headers(), "application/json")
    return Response(orjson.dumps(model_entry(model.info, model.limits.max_total_tokens)), media_type="application/json")


async def answer_chat(request: Request, body: ChatRequest, received_s: float) -> Response:
    api = context(request)
    info = api.service.model.info
    switches = template_kwargs(body, api.service.model.template.reads)
    answer = ChatAnswer(body, info.model_id, api.fingerprint)
    with renaming(body.own_names):
        with api.service.metrics.translating():
            parameters = chat_parameters(body, info.generation_defaults)
            conversation = await apart(request, lambda: to_conversation(body, switches))
        with api.service.admission(body.num_choices, received_s) as admission:
            preparing = api.service.prepare_chat(conversation, parameters, received_s, caller_of(request))
            native = await until_disconnect(request, preparing)
            return await _answer_chat(request, body, native, answer, admission)


async def _answer_chat(
    request: Request, body: ChatRequest, native: GenerationRequest, answer: ChatAnswer, admission: Admission
) -> Response:
    api = context(request)
    requests = siblings(native, body.num_choices)
    usage = Usage(body.num_choices)
    usage.add_prompt(native)
    if body.stream:
        stream = api.service.open(requests, admission)
        usage_chunk = answer.usage_chunk if body.include_usage else None
        frames = _stream_frames(stream, answer.chunk, usage, usage_chunk)
        return EventStream(frames, stream.aclose, stream_headers(api.shown_compute_type, [native.prompt_text]))
    return await _whole_answer(request, requests, admission, usage, answer.object, is_chat=True)


async def answer_completions(request: Request, body: CompletionRequest, received_s: float) -> Response:
    api = context(request)
    model = api.service.model
    with api.service.metrics.translating():
        parameters = completion_parameters(body, model.info.generation_defaults)
        if len(body.prompts) > model.limits.max_client_batch_size:
            raise BatchSizeError(model.limits.max_client_batch_size)
    answer = CompletionAnswer(body, model.info.model_id, api.fingerprint)
    with api.service.admission(len(body.prompts) * body.num_samples, received_s) as admission:
        natives = []
        for prompt in body.prompts:
            preparing = api.service.prepare_text(prompt, parameters, received_s, caller=caller_of(request))
            with renaming(body.own_names):
                natives.append(await until_disconnect(request, preparing))
        return await _answer_completions(request, body, natives, answer, admission)


async def _answer_completions(
    request: Request,
    body: CompletionRequest,
    natives: list[GenerationRequest],
    answer: CompletionAnswer,
    admission: Admission,
) -> Response:
    api = context(request)
    usage = Usage(body.num_samples)
    requests: list[GenerationRequest] = []
    for native in natives:
        usage.add_prompt(native)
        requests += siblings(native, body.num_samples)
    if body.stream:
        stream = api.service.open(requests, admission)
        usage_chunk = answer.usage_chunk if body.include_usage else None
        frames = _stream_frames(stream, lambda i, event: answer.chunk(i, event, requests[i]), usage, usage_chunk)
        texts = [native.prompt_text for native in natives]
        return EventStream(frames, stream.aclose, stream_headers(api.shown_compute_type, texts))
    return await _whole_answer(request, requests, admission, usage, answer.object, is_chat=False)


async def _whole_answer(
    request: Request,
    requests: list[GenerationRequest],
    admission: Admission,
    usage: Usage,
    make_object: Callable[[Any, Usage], dict[str, Any]],
    *,
    is_chat: bool,
) -> Response:
    api = context(request)
    generations = await until_disconnect(
        request, api.service.generate(requests, admission), lambda: api.service.drop(len(requests))
    )
    for index, generation in enumerate(generations):
        if generation.finish is not None:
            usage.add_completion(index, generation.finish)
    headers = generation_headers(
        api.shown_compute_type, generations, num_choices=usage.num_choices, with_compute_time=is_chat
    )
    return await json_answer(request, lambda: make_object(generations, usage), num_described(generations), headers)


async def _stream_frames(
    stream: OpenGeneration,
    make_chunk: MakeChunk,
    usage: Usage,
    usage_chunk: Callable[[Usage], dict[str, Any]] | None,
) -> AsyncIterator[bytes]:
    try:
        async for batch in stream:
            frames = []
            for index, event in batch:
                if event.finish is not None:
                    usage.add_completion(index, event.finish)
                chunk = make_chunk(index, event)
                if chunk is not None:
                    frames.append(frame(chunk))
            if frames:
                yield b"".join(frames)
        if usage_chunk is not None:
            yield frame(usage_chunk(usage))
    except TgiLocalError as error:
        yield frame(openai_event(error))
    yield DONE
