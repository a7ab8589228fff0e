"""The front door for every route: prompt text or messages in, text events out."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

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
from tgi_local.prompts import check_length, decode_prompt, render_prompt
from tgi_local.stream import TextStream
from tgi_local.text.chat_template import ChatTemplate, RenderedPrompt
from tgi_local.text.grammar import GrammarCompiler
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.text_workers import TextWorkers
from tgi_local.types import (
    Caller,
    Finish,
    Generation,
    GenerationRequest,
    Limits,
    ModelInfo,
    RequestParameters,
    TextEvent,
    TokenEvent,
    TokenSpan,
)
from tgi_local.validation import build_request, check_parameters, with_new_seed

logger = logging.getLogger(__name__)

T = TypeVar("T")

# llguidance's own limits end a compilation long before; this is for what they do not foresee.
COMPILE_TIMEOUT_S = 2.0
# How long a client may take to read the last event at shutdown.
SEND_TIMEOUT_S = 2.0
NOBODY = Caller()
# More prompt tokens than these are turned into text on a worker.
INLINE_TOKENS = 256
# How many may wait for a worker while there is no model that says how many it serves.
LOADING_REQUESTS = 16


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
        self._workers = TextWorkers(num_workers)
        self._model: ServedModel | None = None
        self._state = ServiceState("loading", "starting")
        self._num_slots_taken = 0
        self._open: set[OpenGeneration] = set()
        self._drained_s = math.inf  # what was received before is served

    def attach(self, model: ServedModel) -> None:
        self._model = model
        self.metrics.size_lengths(model.limits.max_input_tokens, model.limits.max_total_tokens)
        if self._state.name == "loading":  # a server that is shutting down stays so
            self._state = ServiceState("ready")

    def report_loading(self, detail: str) -> None:
        if self._state.name == "loading":
            self._state = ServiceState("loading", detail)

    def drain(self) -> None:
        """Refuse new requests; those that run, and those that are being prepared, go on."""
        self._drained_s = min(self._drained_s, time.monotonic())
        self._state = ServiceState("draining", "the server is shutting down")

    @property
    def model(self) -> ServedModel:
        """The model to serve with. Raises NotReadyError."""
        return self._model_for(math.inf)

    def _model_for(self, received_s: float) -> ServedModel:
        """The same; a request that came before the shutdown is served."""
        state = self.state()
        refusing = ("loading", "dead") if received_s < self._drained_s else ("loading", "dead", "draining")
        if self._model is None or state.name in refusing:
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
        """The native request for a raw prompt, as text or token ids. Raises RequestError, OverloadedError."""
        model = self._model_for(received_s)
        with self._preparing():
            check_parameters(parameters, model.limits)
            if isinstance(prompt, str):
                if not prompt:
                    raise ValidationError("`inputs` cannot be empty", param="inputs")
                check_length(prompt, model.limits)
                text, token_ids = prompt, await self._workers.run(lambda: model.tokenizer.encode(prompt))
            else:
                text, token_ids = await self._workers.run(lambda: decode_prompt(model.tokenizer, prompt, model.limits))
            return await self._build(model, parameters, text, token_ids, received_s, caller)

    async def prepare_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        parameters: RequestParameters,
        received_s: float,
        template_kwargs: Mapping[str, Any] | None = None,
        caller: Caller = NOBODY,
    ) -> GenerationRequest:
        """The native request for a conversation. Raises RequestError, OverloadedError."""
        model = self._model_for(received_s)
        with self._preparing():
            check_parameters(parameters, model.limits)
            prompt = await self._workers.run(
                lambda: render_prompt(model.template, messages, tools, template_kwargs, model.limits)
            )
            return await self._build(model, parameters, prompt.text, prompt.token_ids, received_s, caller)

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """The prompt of a conversation; a last message from the assistant is continued.

        Raises TemplateError, OverloadedError.
        """
        model = self.model
        return await self.work(lambda: render_prompt(model.template, messages, tools, template_kwargs, model.limits))

    async def tokenize(
        self, text: str, write: Callable[[Iterator[TokenSpan]], T], *, add_special_tokens: bool = True
    ) -> T:
        """What `write` makes of the tokens, on a worker, too. Raises OverloadedError."""
        tokenizer = self.model.tokenizer
        return await self.work(lambda: write(tokenizer.encode_spans(text, add_special_tokens=add_special_tokens)))

    async def work(self, function: Callable[[], T]) -> T:
        """What would hold up the event loop, on a worker. Raises OverloadedError when as many wait as may run."""
        limits = self.limits
        with self._workers.admit(limits.max_concurrent_requests if limits is not None else LOADING_REQUESTS):
            return await self._workers.run(function)

    def open(self, requests: Sequence[GenerationRequest]) -> "OpenGeneration":
        """Take request slots and get ready to stream. Raises OverloadedError when slots are short."""
        model = self._model_for(max((request.received_s for request in requests), default=math.inf))
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
        self._workers.close()

    async def _wait_closed(self, timeout_s: float) -> None:
        """Seen idle twice: a request that has just been prepared needs a moment to be opened."""
        deadline = time.monotonic() + timeout_s
        num_idle = 0
        while num_idle < 2 and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            num_idle = 0 if self._open or self._workers.num_requests else num_idle + 1

    def drop(self, num_requests: int) -> None:
        """Requests that are prepared and will not be opened: their client has gone."""
        for _ in range(num_requests):
            self.metrics.request_failed("dropped")

    def release(self, num_slots: int) -> None:
        """Give slots back."""
        self._num_slots_taken -= num_slots

    def forget(self, generation: "OpenGeneration") -> None:
        """Its answer is on its way; nobody waits for it any more."""
        self._open.discard(generation)

    async def _build(
        self,
        model: ServedModel,
        parameters: RequestParameters,
        text: str,
        token_ids: Sequence[int],
        received_s: float,
        caller: Caller,
    ) -> GenerationRequest:
        request = build_request(parameters, text, token_ids, model.limits, model.info.eos_token_ids, received_s)
        request = replace(request, principal=caller.principal, cache_salt=caller.cache_salt)
        source, grammars = parameters.grammar, model.grammars
        if source is None:
            return request
        if grammars is None:
            if isinstance(source, ToolGrammar) and not source.is_forced:
                return request
            param = "tool_choice" if isinstance(source, ToolGrammar) else source.field
            raise UnsupportedError("grammar is not supported", param=param)
        try:
            return await self._workers.run_within(COMPILE_TIMEOUT_S, lambda: grammars.constrain(request, source))
        except TimeoutError:
            raise ValidationError("grammar is not valid: compiling it takes too long", param="grammar") from None

    async def aside(self, function: Callable[[], T]) -> T:
        """On a worker like `work`, for a request that has been served and may not be refused any more."""
        return await self._workers.run(function)

    @contextmanager
    def _preparing(self) -> Iterator[None]:
        """Counts a request, and its refusal under its cause. One that is being prepared needs a slot, too."""
        self.metrics.request_received()
        limits = self.limits
        assert limits is not None
        try:
            with self._workers.admit(limits.max_concurrent_requests - self._num_slots_taken):
                yield
        except (RequestError, OverloadedError, asyncio.CancelledError) as error:
            self.metrics.request_failed(_cause(error))
            raise


def _cause(error: BaseException) -> str:
    """Why a request was not admitted, as the metrics say it."""
    causes = {OverloadedError: "overloaded", TemplateError: "template", RequestError: "validation"}
    return next((cause for kind, cause in causes.items() if isinstance(error, kind)), "dropped")


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
        tags = model.template.thinking_tags
        self._streams = {
            request.request_id: (index, TextStream(request, model.tokenizer, tags, now))
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
                        event = await self._step(stream, token_event)
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

    async def _step(self, stream: TextStream, event: TokenEvent) -> TextEvent:
        """The texts of a long prompt's tokens are made one by one."""
        if len(event.prompt_logprobs or ()) <= INLINE_TOKENS:
            return stream.step(event)
        return await self._service.aside(lambda: stream.step(event))

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
