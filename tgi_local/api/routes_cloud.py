"""Cloud platforms' routes: SageMaker's and Vertex AI's one path each, KServe's protocol under /v2."""

import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tgi_local import __version__
from tgi_local.api.body import apart, read, read_as
from tgi_local.api.context import caller_of, context
from tgi_local.api.error_responses import native_response
from tgi_local.api.routes_openai import answer_chat, answer_completions
from tgi_local.api.routes_tgi import answer_compat
from tgi_local.api.sse import until_disconnect
from tgi_local.errors import (
    BodyShapeError,
    FailedInstanceError,
    GenerationError,
    IncompleteGenerationError,
    LengthMismatchError,
    NoInstancesError,
    OverloadedError,
    TgiLocalError,
    UnsupportedError,
    ValidationError,
)
from tgi_local.protocol.cloud import (
    GenerateInstance,
    InferRequest,
    VertexRequest,
    infer_response,
    model_metadata,
    raw_text,
    server_metadata,
)
from tgi_local.protocol.openai import (
    ChatRequest,
    CompletionRequest,
    chat_parameters,
    template_kwargs,
    to_conversation,
)
from tgi_local.protocol.tgi import GenerateRequest
from tgi_local.protocol.wire import WireModel, parse
from tgi_local.service import siblings
from tgi_local.types import GenerationRequest

logger = logging.getLogger(__name__)
router = APIRouter()

NO_SHAPE = "data did not match any variant of untagged enum SagemakerRequest"
NATIVE, CHAT, COMPLETION = (("inputs", GenerateRequest), ("messages", ChatRequest), ("prompt", CompletionRequest))
MODEL = "/v2/models/{model:path}/versions/{version}"


@router.post("/invocations")
async def invocations(request: Request) -> Response:
    """The first dialect whose shape the body has."""
    received_s = time.monotonic()
    chat_first = context(request).chat_first
    body = await read_as(request, lambda given: _sagemaker_body(given, chat_first=chat_first))
    if isinstance(body, GenerateRequest):
        return await answer_compat(request, body, received_s)
    if isinstance(body, ChatRequest):
        return await answer_chat(request, body, received_s)
    assert isinstance(body, CompletionRequest)
    return await answer_completions(request, body, received_s)


def _sagemaker_body(body: Any, *, chat_first: bool) -> WireModel:
    """Raises BodyShapeError: that none fits, and what is wrong where only one dialect can be meant."""
    kinds = (CHAT, NATIVE, COMPLETION) if chat_first else (NATIVE, CHAT, COMPLETION)
    meant: list[type[WireModel]] = [model for key, model in kinds if isinstance(body, dict) and key in body]
    hint = "give `inputs`, `messages` or `prompt`"
    for model in meant:
        try:
            return parse(model, body)
        except BodyShapeError as error:
            hint = error.detail if len(meant) == 1 else hint
    raise BodyShapeError(f"{NO_SHAPE}: {hint}")


@router.post("/vertex")
async def vertex(request: Request) -> Response:
    received_s = time.monotonic()
    try:
        body = await read(request, VertexRequest)
        with context(request).service.metrics.translating():
            if not body.instances:
                raise NoInstancesError()

        async def prepare() -> list[GenerationRequest]:
            return [await _prepare_instance(request, instance, received_s) for instance in body.instances]

        texts = await _texts(request, prepare, len(body.instances), received_s)
    except TgiLocalError as error:
        return native_response(error)  # also under a path of the platform's choice
    return _json({"predictions": texts})


@router.post(MODEL + "/infer")
async def infer(request: Request) -> Response:
    received_s = time.monotonic()
    body = await read(request, InferRequest)
    if len(body.inputs) != len(body.outputs):
        raise LengthMismatchError()
    prompts = [prompt.text for prompt in body.inputs]
    best_of = body.parameters.best_of or 1
    service = context(request).service

    async def prepare() -> list[GenerationRequest]:
        requests: list[GenerationRequest] = []
        for prompt in prompts:
            native = await service.prepare_text(prompt, body.native, received_s, caller=caller_of(request))
            requests += siblings(native, best_of)
        return requests

    texts = await _texts(request, prepare, len(prompts), received_s, best_of)
    if body.parameters.return_full_text:
        texts = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    return _json(infer_response(body, texts))


@router.api_route("/v2/health/live", methods=["GET", "HEAD"])
async def is_live(request: Request) -> Response:
    return _json({"live": True})


@router.api_route("/v2/health/ready", methods=["GET", "HEAD"])
async def is_ready(request: Request) -> Response:
    return await _readiness(request)


@router.api_route("/v2", methods=["GET", "HEAD"])
async def server(request: Request) -> Response:
    return _json(server_metadata(__version__))


@router.api_route(MODEL, methods=["GET", "HEAD"])
async def model(request: Request, model: str, version: str) -> Response:
    return _json(model_metadata(model, version))


@router.api_route(MODEL + "/ready", methods=["GET", "HEAD"])
async def model_is_ready(request: Request) -> Response:
    return await _readiness(request)


async def _readiness(request: Request) -> Response:
    """TGI's port opens when it is ready, so that it always says `live`; this one opens before the model is there."""
    if context(request).service.state().name == "ready":
        return _json({"live": True})
    return _json({"live": False}, 503)


async def _prepare_instance(
    request: Request, instance: GenerateInstance | ChatRequest, received_s: float
) -> GenerationRequest:
    service = context(request).service
    if isinstance(instance, GenerateInstance):
        return await service.prepare_text(instance.inputs, instance.native, received_s, caller=caller_of(request))
    switches = template_kwargs(instance, service.model.template.reads)
    with service.metrics.translating():
        parameters = raw_text(chat_parameters(instance, service.model.info.generation_defaults))
        conversation = await apart(request, lambda: to_conversation(instance, switches))
    return await service.prepare_chat(conversation, parameters, received_s, caller_of(request))


async def _texts(
    request: Request,
    prepare: Callable[[], Coroutine[Any, Any, Sequence[GenerationRequest]]],
    num_prompts: int,
    received_s: float,
    best_of: int = 1,
) -> list[str]:
    """The best text of the `best_of` requests for each prompt; all run side by side.

    Raises FailedInstanceError when one is refused or fails.
    """
    service = context(request).service
    with _failing_as_one(), service.admission(num_prompts, received_s, best_of=best_of) as admission:
        prepared = await until_disconnect(request, prepare())
        generating = service.generate(prepared, admission)
        generations = await until_disconnect(request, generating, lambda: service.drop(len(prepared)))
    groups = [generations[start : start + best_of] for start in range(0, len(generations), best_of)]
    return [max(group, key=lambda generation: generation.mean_logprob).text for group in groups]


@contextmanager
def _failing_as_one() -> Iterator[None]:
    """Template and tool errors, and what is not supported, keep their own status."""
    try:
        yield
    except UnsupportedError:
        raise
    except (ValidationError, OverloadedError, GenerationError, IncompleteGenerationError) as error:
        logger.info("an instance failed: %s", error.message)
        raise FailedInstanceError() from error


def _json(answer: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(answer), status, media_type="application/json")
