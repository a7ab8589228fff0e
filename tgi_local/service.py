"""The front door for every route: prompt text or messages in, text events out."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from tgi_local.bounded_threads import BoundedThreads
from tgi_local.constraints import ToolGrammar
from tgi_local.engine.engine_thread import EngineThread
from tgi_local.errors import (
    GenerationError,
    IncompleteGenerationError,
    NotReadyError,
    OverloadedError,
    RequestError,
    TemplateError,
    UnsupportedError,
    ValidationError,
)
from tgi_local.metrics import Metrics
from tgi_local.stream import TextStream
from tgi_local.text.chat_template import ChatTemplate, RenderedPrompt
from tgi_local.text.grammar import GrammarCompiler
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import (
    Caller,
    Finish,
    Generation,
    GenerationRequest,
    Limits,
    ModelInfo,
    RequestParameters,
    TextEvent,
    TokenSpan,
)
from tgi_local.validation import build_request, check_parameters, with_new_seed

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A message is at least a byte; nothing that long can fit, and tokenizing it would only hold a worker.
MAX_CHARACTERS_PER_TOKEN = 64
# llguidance's own limits end a compilation long before; this is for what they do not foresee.
COMPILE_TIMEOUT_S = 2.0
# How many compilations that were given up may still run.
MAX_LOST_COMPILERS = 4
# How long a client may take to read the last event at shutdown.
SEND_TIMEOUT_S = 2.0
NOBODY = Caller()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded model with everything a request needs."""

    info: ModelInfo
    limits: Limits
    tokenizer: TextTokenizer
    template: ChatTemplate
    engine: EngineThread
    grammars: GrammarCompiler | None = None


@dataclass(frozen=True, slots=True)
class ServiceState:
    """`name` is loading, ready, draining, stalled or dead; `detail` is for people."""

    name: str
    detail: str = ""


class Service:
    """Owns admission and the state of the server. Event-loop thread only.

    It exists before its model does; until `attach`, every request is answered with NotReadyError.
    """

    def __init__(self, metrics: Metrics, num_workers: int = 2) -> None:
        self.metrics = metrics
        self._workers = ThreadPoolExecutor(num_workers, thread_name_prefix="text")
        self._compilers = BoundedThreads(
            "grammar", num_threads=num_workers, timeout_s=COMPILE_TIMEOUT_S, max_lost=MAX_LOST_COMPILERS
        )
        self._model: ServedModel | None = None
        self._state = ServiceState("loading", "starting")
        self._num_slots_taken = 0
        self._open: set[OpenGeneration] = set()

    def attach(self, model: ServedModel) -> None:
        self._model = model
        self.metrics.size_lengths(model.limits.max_input_tokens, model.limits.max_total_tokens)
        if self._state.name == "loading":  # a server that is shutting down stays so
            self._state = ServiceState("ready")

    def report_loading(self, detail: str) -> None:
        if self._state.name == "loading":
            self._state = ServiceState("loading", detail)

    def drain(self) -> None:
        """Refuse new requests; running ones go on."""
        self._state = ServiceState("draining", "the server is shutting down")

    @property
    def model(self) -> ServedModel:
        """The model to serve with. Raises NotReadyError."""
        state = self.state()
        if self._model is None or state.name in ("loading", "draining", "dead"):
            raise NotReadyError(state.name, f"The model is not ready: {state.detail or state.name}")
        return self._model

    @property
    def info(self) -> ModelInfo | None:
        return self._model.info if self._model is not None else None

    @property
    def limits(self) -> Limits | None:
        return self._model.limits if self._model is not None else None

    def state(self) -> ServiceState:
        if self._state.name != "ready" or self._model is None:
            return self._state
        if self._model.engine.fatal_error is not None:
            return ServiceState("dead", "the engine has stopped after an error; restart the server")
        if self._model.engine.is_stalled:
            return ServiceState("stalled", f"no progress for {self._model.engine.stalled_for_s():.0f} s")
        return self._state

    async def prepare_text(
        self, prompt: str | Sequence[int], parameters: RequestParameters, received_s: float, caller: Caller = NOBODY
    ) -> GenerationRequest:
        """The native request for a raw prompt, as text or token ids. Raises RequestError."""
        model = self.model
        with self._counting_failures():
            check_parameters(parameters, model.limits)
            if not isinstance(prompt, str):
                token_ids = _checked_ids(prompt, model.limits.vocab_size)
                text = await self._in_worker(lambda: model.tokenizer.decode(token_ids, skip_special_tokens=False))
            else:
                if not prompt:
                    raise ValidationError("`inputs` cannot be empty", param="inputs")
                text = prompt
                _check_length(prompt, model.limits)
                token_ids = await self._in_worker(lambda: model.tokenizer.encode(prompt))
            return await self._build(parameters, text, token_ids, received_s, caller)

    async def prepare_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        parameters: RequestParameters,
        received_s: float,
        template_kwargs: Mapping[str, Any] | None = None,
        caller: Caller = NOBODY,
    ) -> GenerationRequest:
        """The native request for a conversation. Raises RequestError."""
        model = self.model
        with self._counting_failures():
            check_parameters(parameters, model.limits)
            prompt = await self.render_chat(messages, tools, template_kwargs)
            return await self._build(parameters, prompt.text, prompt.token_ids, received_s, caller)

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """The prompt of a conversation; a last message from the assistant is continued. Raises TemplateError."""
        model = self.model
        continues = bool(messages) and messages[-1].get("role") == "assistant" and not messages[-1].get("tool_calls")
        _check_length("".join(str(m.get("content") or "") for m in messages), model.limits)
        return await self._in_worker(
            lambda: model.template.render(
                messages,
                tools=tools,
                add_generation_prompt=not continues,
                continue_final_message=continues,
                template_kwargs=template_kwargs,
            )
        )

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[TokenSpan]:
        tokenizer = self.model.tokenizer
        return await self._in_worker(lambda: tokenizer.encode_spans(text, add_special_tokens=add_special_tokens))

    def open(self, requests: Sequence[GenerationRequest]) -> "OpenGeneration":
        """Take request slots and get ready to stream. Raises OverloadedError when slots are short."""
        model = self.model
        if self._num_slots_taken + len(requests) > model.limits.max_concurrent_requests:
            self.metrics.request_failed("overloaded")
            raise OverloadedError()
        self._num_slots_taken += len(requests)
        for request in requests:
            self.metrics.request_admitted(request)
        generation = OpenGeneration(self, model, requests)
        self._open.add(generation)
        return generation

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """The fold of the stream, one Generation per request, in their order."""
        generations = [Generation(request) for request in requests]
        async with self.open(requests) as stream:
            async for index, event in stream:
                generations[index].add(event)
        return generations

    async def generate_best_of(self, request: GenerationRequest, best_of: int) -> list[Generation]:
        """`best_of` samples, the one with the highest mean log-probability first."""
        generations = await self.generate(siblings(request, best_of))
        return sorted(generations, key=lambda generation: -generation.mean_logprob)

    async def close(self, timeout_s: float) -> None:
        """Let running requests finish for up to `timeout_s`, then end them with an error and let that be sent."""
        self.drain()
        await self._wait_closed(timeout_s)
        if self._model is not None:
            await asyncio.to_thread(self._model.engine.stop)
            await self._wait_closed(SEND_TIMEOUT_S)
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def _wait_closed(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._open and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def release(self, num_slots: int) -> None:
        """Give slots back."""
        self._num_slots_taken -= num_slots

    def forget(self, generation: "OpenGeneration") -> None:
        """Its answer is on its way; nobody waits for it any more."""
        self._open.discard(generation)

    async def _build(
        self, parameters: RequestParameters, text: str, token_ids: Sequence[int], received_s: float, caller: Caller
    ) -> GenerationRequest:
        model = self.model
        request = build_request(parameters, text, token_ids, model.limits, model.info.eos_token_ids, received_s)
        request = replace(request, principal=caller.principal, cache_salt=caller.cache_salt)
        source, grammars = parameters.grammar, model.grammars
        if source is None:
            return request
        if grammars is None:
            if isinstance(source, ToolGrammar) and not source.is_forced and source.answer is None:
                return request
            answer = source.answer if isinstance(source, ToolGrammar) else source
            param = "tool_choice" if answer is None else answer.field
            raise UnsupportedError("grammar is not supported", param=param)
        try:
            return await self._compilers.run(lambda: grammars.constrain(request, source))
        except TimeoutError:
            field = "tools" if isinstance(source, ToolGrammar) else source.field
            raise ValidationError("grammar is not valid: compiling it takes too long", param=field) from None

    async def _in_worker(self, function: Callable[[], T]) -> T:
        """Run text work off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, function)

    def _counting_failures(self) -> "_CountFailures":
        self.metrics.request_received()
        return _CountFailures(self.metrics)


class _CountFailures:
    """Counts a refused request under its cause."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, TemplateError):
            self._metrics.request_failed("template")
        elif isinstance(error, RequestError):
            self._metrics.request_failed("validation")


class OpenGeneration:
    """Owns the slots of a group of requests and their text streams. Iterate once; close always.

    Yields (index of the request in the group, event). Closing early cancels what still runs.
    """

    def __init__(self, service: Service, model: ServedModel, requests: Sequence[GenerationRequest]) -> None:
        self._service = service
        self._engine = model.engine
        self._requests = requests
        self._num_open = len(requests)
        self._events: AsyncGenerator[tuple[int, TextEvent]] | None = None
        now = time.monotonic()
        template = model.template
        self._streams = {
            request.request_id: (
                index,
                TextStream(
                    request,
                    model.tokenizer,
                    template.thinking_tags,
                    now,
                    template.tool_format,
                    template.response_template,
                ),
            )
            for index, request in enumerate(requests)
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[tuple[int, TextEvent]]:
        self._events = self._run()
        return self._events

    async def aclose(self) -> None:
        """Idempotent."""
        if self._events is not None:
            await self._events.aclose()
        self._service.forget(self)
        self._service.release(self._num_open)
        dropped, self._num_open = self._num_open, 0
        for _ in range(dropped):
            self._service.metrics.request_failed("dropped")

    async def _run(self) -> AsyncGenerator[tuple[int, TextEvent]]:
        try:
            async with aclosing(self._engine.submit(self._requests)) as batches:
                async for batch in batches:
                    for token_event in batch:
                        if token_event.request_id not in self._streams:
                            continue
                        index, stream = self._streams[token_event.request_id]
                        event = stream.step(token_event)
                        if event.finish is not None:
                            self._finished(token_event.request_id, event.finish)
                        yield index, event
                    if not self._streams:
                        return
        except (GenerationError, NotReadyError):
            self._failed("generation")
            raise
        except Exception as error:
            # A bug in the text machines: this request ends with an error, the others do not notice.
            logger.exception("turning tokens into text failed")
            self._failed("generation")
            raise GenerationError("the server could not turn the tokens into text") from error
        if self._streams:
            self._failed("incomplete")
            raise IncompleteGenerationError()

    def _finished(self, request_id: str, finish: Finish) -> None:
        del self._streams[request_id]
        # After a stop string the engine would go on; tokens already on their way find no stream and are dropped.
        self._engine.cancel(request_id)
        self._num_open -= 1
        self._service.release(1)
        self._service.metrics.request_finished(finish)

    def _failed(self, cause: str) -> None:
        self._service.release(self._num_open)
        for _ in range(self._num_open):
            self._service.metrics.request_failed(cause)
        self._num_open = 0


def siblings(request: GenerationRequest, count: int) -> list[GenerationRequest]:
    """`request` and its copies with other random streams."""
    requests = [request]
    while len(requests) < count:
        requests.append(with_new_seed(requests[-1]))
    return requests


def _check_length(text: str, limits: Limits) -> None:
    if len(text) > limits.max_input_tokens * MAX_CHARACTERS_PER_TOKEN:
        raise ValidationError(
            f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {len(text)} characters",
            param="inputs",
            code="context_length_exceeded",
        )


def _checked_ids(token_ids: Sequence[int], vocab_size: int) -> list[int]:
    if any(not 0 <= token_id < vocab_size for token_id in token_ids):
        raise ValidationError(f"`prompt` token ids must be from 0 to {vocab_size - 1}", param="prompt")
    return list(token_ids)
