"""TGI's native routes: body -> service -> answer."""

import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.api.answers import PiecesAnswer, json_answer, list_pieces, num_described
from tgi_local.api.body import apart, read
from tgi_local.api.context import caller_of, context
from tgi_local.api.error_responses import native_body
from tgi_local.api.headers import generation_headers, stream_headers
from tgi_local.api.sse import EventStream, frame, until_disconnect
from tgi_local.errors import NotReadyError, TgiLocalError
from tgi_local.open_generation import OpenGeneration
from tgi_local.protocol.openai import ChatRequest, template_kwargs, to_conversation
from tgi_local.protocol.tgi import (
    GenerateRequest,
    TokenizeRequest,
    check_stream_parameters,
    describe_span,
    generate_response,
    stream_event,
    to_parameters,
)
from tgi_local.service import siblings
from tgi_local.types import GenerationRequest, TokenSpan

router = APIRouter()


@router.post("/")
@router.post("/v1")
@router.post("/v1/")
async def compat_generate(request: Request) -> Response:
    """/generate or /generate_stream by the body's `stream`; the plain answer is a list."""
    received_s = time.monotonic()
    return await answer_compat(request, await read(request, GenerateRequest), received_s)


@router.post("/generate")
async def generate(request: Request) -> Response:
    received_s = time.monotonic()
    body = await read(request, GenerateRequest)
    return await _generate(request, body, received_s, bool(body.parameters.return_full_text), as_list=False)


@router.post("/generate_stream")
async def generate_stream(request: Request) -> Response:
    received_s = time.monotonic()
    body = await read(request, GenerateRequest)
    return await _generate_stream(request, body, received_s, bool(body.parameters.return_full_text))


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    body = await read(request, TokenizeRequest)
    return PiecesAnswer(await until_disconnect(request, context(request).service.tokenize(body.inputs, _write_spans)))


@router.post("/chat_tokenize")
async def chat_tokenize(request: Request) -> Response:
    body = await read(request, ChatRequest)
    service = context(request).service
    switches = template_kwargs(body, service.model.template.reads)
    with service.metrics.translating():
        conversation = await apart(request, lambda: to_conversation(body, switches))
        prompt = await until_disconnect(request, service.render_chat(conversation))
    service.metrics.request_received()  # as in TGI, where /tokenize is none
    tokens = await until_disconnect(request, service.tokenize_chat(prompt, _write_spans))
    return PiecesAnswer([b'{"tokenize_response":', *tokens, b',"templated_text":', orjson.dumps(prompt.text), b"}"])


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
    parameters = to_parameters(body)
    best_of = parameters.best_of or 1
    with api.service.admission(1, received_s, best_of=best_of) as admission:
        preparing = api.service.prepare_text(body.inputs, parameters, received_s, caller=caller_of(request))
        native = await until_disconnect(request, preparing)
        work = api.service.generate(siblings(native, best_of), admission)
        generations = await until_disconnect(request, work, lambda: api.service.drop(best_of))
    generations.sort(key=lambda generation: -generation.mean_logprob)
    headers = generation_headers(api.shown_compute_type, generations[:1])

    def answer() -> Any:
        whole = generate_response(generations, body, full_text)
        return [whole] if as_list else whole

    return await json_answer(request, answer, num_described(generations), headers)


async def _generate_stream(request: Request, body: GenerateRequest, received_s: float, full_text: bool) -> Response:
    """What is wrong with a request that could be read travels inside a 200 stream, as TGI's clients expect."""
    api = context(request)
    parameters = to_parameters(body)
    headers = stream_headers(api.shown_compute_type, [body.inputs])
    try:
        with api.service.metrics.translating():
            check_stream_parameters(body.parameters)
        with api.service.admission(1, received_s) as admission:
            preparing = api.service.prepare_text(body.inputs, parameters, received_s, caller=caller_of(request))
            native = await until_disconnect(request, preparing)
            stream = api.service.open([native], admission)
    except NotReadyError:
        raise  # TGI refuses connections before it is ready; a status is what clients wait and try again for
    except TgiLocalError as error:
        return EventStream(_one(frame(native_body(error))), _nothing, headers)
    return EventStream(_stream_frames(stream, native, body, full_text), stream.aclose, headers)


async def _stream_frames(
    stream: OpenGeneration, native: GenerationRequest, body: GenerateRequest, full_text: bool
) -> AsyncIterator[bytes]:
    text = native.prompt_text if full_text else ""
    position = 0
    try:
        async for batch in stream:
            frames = []
            for _, event in batch:
                position += 1
                text += event.text
                frames.append(frame(stream_event(event, position, text if event.finish else None, native, body)))
            yield b"".join(frames)
    except TgiLocalError as error:
        yield frame(native_body(error))


def _write_spans(spans: Iterable[TokenSpan]) -> list[bytes]:
    return list_pieces(spans, describe_span)


async def _one(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _nothing() -> None:
    return None
