"""TGI's native routes: body -> service -> answer."""

import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.api.body import read_json
from tgi_local.api.context import caller_of, context
from tgi_local.api.error_responses import native_body, native_response
from tgi_local.api.headers import generation_headers, stream_headers
from tgi_local.api.sse import ClientGoneError, EventStream, frame, until_disconnect
from tgi_local.errors import BodyShapeError, MalformedBodyError, TgiLocalError
from tgi_local.protocol.openai import ChatRequest, template_kwargs, to_messages
from tgi_local.protocol.tgi import (
    GenerateRequest,
    TokenizeRequest,
    check_stream_parameters,
    generate_response,
    stream_event,
    to_parameters,
    tokenize_response,
)
from tgi_local.protocol.tools import to_tools
from tgi_local.protocol.wire import parse
from tgi_local.service import OpenGeneration
from tgi_local.types import GenerationRequest

router = APIRouter()


@router.post("/")
@router.post("/v1")
@router.post("/v1/")
async def compat_generate(request: Request) -> Response:
    """/generate or /generate_stream by the body's `stream`; the plain answer is a list."""
    received_s = time.monotonic()
    return await answer_compat(request, parse(GenerateRequest, await read_json(request)), received_s)


@router.post("/generate")
async def generate(request: Request) -> Response:
    received_s = time.monotonic()
    body = parse(GenerateRequest, await read_json(request))
    return await _generate(request, body, received_s, bool(body.parameters.return_full_text), as_list=False)


@router.post("/generate_stream")
async def generate_stream(request: Request) -> Response:
    received_s = time.monotonic()
    body = parse(GenerateRequest, await read_json(request))
    return await _generate_stream(request, body, received_s, bool(body.parameters.return_full_text))


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    body = parse(TokenizeRequest, await read_json(request))
    spans = await context(request).service.tokenize(body.inputs)
    return Response(orjson.dumps(tokenize_response(spans)), media_type="application/json")


@router.post("/chat_tokenize")
async def chat_tokenize(request: Request) -> Response:
    body = parse(ChatRequest, await read_json(request))
    service = context(request).service
    switches = template_kwargs(body, service.model.template.reads)
    prompt = await service.render_chat(to_messages(body), to_tools(body.offered_tools), switches)
    spans = await service.tokenize(prompt.text, add_special_tokens=False)
    answer = {"tokenize_response": tokenize_response(spans), "templated_text": prompt.text}
    return Response(orjson.dumps(answer), media_type="application/json")


async def answer_compat(request: Request, body: GenerateRequest, received_s: float) -> Response:
    """`return_full_text` defaults to true here, as for a text-generation pipeline on the hub."""
    full_text = body.parameters.return_full_text
    with_prompt = True if full_text is None else full_text
    if body.stream:
        return await _generate_stream(request, body, received_s, with_prompt)
    return await _generate(request, body, received_s, with_prompt, as_list=True)


async def _generate(
    request: Request, body: GenerateRequest, received_s: float, full_text: bool, *, as_list: bool
) -> Response:
    api = context(request)
    native = await api.service.prepare_text(body.inputs, to_parameters(body), received_s, caller=caller_of(request))
    try:
        generations = await until_disconnect(
            request, api.service.generate_best_of(native, body.parameters.best_of or 1)
        )
    except ClientGoneError:
        return Response(status_code=499)
    answer: Any = generate_response(generations, body, full_text)
    headers = generation_headers(api.shown_compute_type, generations[:1])
    return Response(orjson.dumps([answer] if as_list else answer), 200, headers, "application/json")


async def _generate_stream(request: Request, body: GenerateRequest, received_s: float, full_text: bool) -> Response:
    """Errors of the request itself travel inside a 200 stream, as TGI's clients expect."""
    api = context(request)
    try:
        check_stream_parameters(body.parameters)
        native = await api.service.prepare_text(body.inputs, to_parameters(body), received_s, caller=caller_of(request))
        stream = api.service.open([native])
    except (BodyShapeError, MalformedBodyError) as error:
        return native_response(error)
    except TgiLocalError as error:
        return EventStream(_one(frame(native_body(error))), _nothing, stream_headers(api.shown_compute_type, []))
    frames = _stream_frames(stream, native, body, full_text)
    return EventStream(frames, stream.aclose, stream_headers(api.shown_compute_type, [native]))


async def _stream_frames(
    stream: OpenGeneration, native: GenerationRequest, body: GenerateRequest, full_text: bool
) -> AsyncIterator[bytes]:
    text = native.prompt_text if full_text else ""
    position = 0
    try:
        async for _, event in stream:
            position += 1
            text += event.text
            yield frame(stream_event(event, position, text if event.finish else None, native, body))
    except TgiLocalError as error:
        yield frame(native_body(error))


async def _one(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _nothing() -> None:
    return None
