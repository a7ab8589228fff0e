"""The front door for every route: prompt text or messages in, text events out."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from tgi_local.bounded_threads import BoundedThreads
from tgi_local.constraints import ToolGrammar
from tgi_local.conversation import Conversation
from tgi_local.engine.engine_thread import EngineThread
from tgi_local.errors import (
    NotReadyError,
    OverloadedError,
    UnsupportedError,
    ValidationError,
)
from tgi_local.metrics import Metrics
from tgi_local.model_info import ModelInfo
from tgi_local.open_generation import OpenGeneration, RequestSlots
from tgi_local.prompts import decode_prompt, render_prompt
from tgi_local.stream import TextStream
from tgi_local.text.chat_template import ChatTemplate, RenderedPrompt
from tgi_local.text.grammar import GrammarCompiler
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.text_workers import TextWorkers
from tgi_local.types import Caller, Generation, GenerationRequest, Limits, RequestParameters, TokenSpan
from tgi_local.validation import build_request, check_length, check_num_sequences, check_parameters, with_new_seed

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Holds the slots of one call until its answer is open; closing it twice is harmless.
Admission = ExitStack

# llguidance's own limits end a compilation long before; this is for what they do not foresee.
COMPILE_TIMEOUT_S = 2.0
# How many compilations that were given up may still run.
MAX_LOST_COMPILERS = 4
# How long a client may take to read the last event at shutdown.
SEND_TIMEOUT_S = 2.0
NOBODY = Caller()
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
        self._compilers = BoundedThreads(
            "grammar", num_threads=num_workers, timeout_s=COMPILE_TIMEOUT_S, max_lost=MAX_LOST_COMPILERS
        )
        self._model: ServedModel | None = None
        self._state = ServiceState("loading", "starting")
        self._slots = RequestSlots()
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

    @contextmanager
    def admission(self, num_sequences: int, received_s: float, *, best_of: int = 1) -> Iterator[Admission]:
        """Keeps slots for all sequences of a call, from before its prompts are prepared until `open` takes them.

        A `best_of` over the limit is refused later, and as that. Raises OverloadedError when slots are short,
        ValidationError when there are not that many at all.
        """
        limits = self._model_for(received_s).limits
        num_slots = num_sequences * min(best_of, limits.max_best_of)
        with ExitStack() as held:
            with self.metrics.translating():
                check_num_sequences(num_slots, limits)
            try:
                for _ in range(num_slots):
                    held.enter_context(self._workers.admit(limits.max_concurrent_requests - self._slots.num_taken))
            except OverloadedError:
                self.metrics.request_received()
                self.metrics.request_failed("overloaded")
                raise
            yield held

    async def prepare_text(
        self, prompt: str | Sequence[int], parameters: RequestParameters, received_s: float, caller: Caller = NOBODY
    ) -> GenerationRequest:
        """The native request for a raw prompt, as text or token ids, inside an `admission`. Raises RequestError."""
        model = self._model_for(received_s)
        num_leading_ids = 0
        with self.metrics.preparing():
            check_parameters(parameters, model.limits)
            if isinstance(prompt, str):
                if not prompt:
                    raise ValidationError("`inputs` cannot be empty", param="inputs")
                if parameters.truncate is None:
                    check_length(prompt, model.limits)
                text, token_ids = prompt, await self._workers.run(lambda: model.tokenizer.encode(prompt))
                num_leading_ids = model.tokenizer.num_leading_ids
            else:
                text, token_ids = await self._workers.run(lambda: decode_prompt(model.tokenizer, prompt, model.limits))
            return await self._build(model, parameters, text, token_ids, received_s, caller, num_leading_ids)

    async def prepare_chat(
        self,
        conversation: Conversation,
        parameters: RequestParameters,
        received_s: float,
        caller: Caller = NOBODY,
    ) -> GenerationRequest:
        """The native request for a conversation, inside an `admission`. Raises RequestError."""
        model = self._model_for(received_s)
        with self.metrics.preparing():
            check_parameters(parameters, model.limits)
            prompt = await self._workers.run(lambda: render_prompt(model.template, conversation, model.limits))
            return await self._build(model, parameters, prompt.text, prompt.token_ids, received_s, caller)

    async def render_chat(self, conversation: Conversation) -> RenderedPrompt:
        """The prompt of a conversation. Raises TemplateError, OverloadedError."""
        model = self.model
        return await self.work(lambda: render_prompt(model.template, conversation, model.limits))

    async def tokenize(self, text: str, write: Callable[[Iterable[TokenSpan]], T]) -> T:
        """What `write` makes of the tokens, on a worker, too. Raises OverloadedError."""
        tokenizer = self.model.tokenizer
        return await self.work(lambda: write(tokenizer.encode_spans(text, add_special_tokens=True)))

    async def tokenize_chat(self, prompt: RenderedPrompt, write: Callable[[Iterable[TokenSpan]], T]) -> T:
        """The same for the tokens that the model gets for a rendered conversation."""
        template = self.model.template
        return await self.work(lambda: write(template.spans(prompt)))

    async def work(self, function: Callable[[], T]) -> T:
        """What would hold up the event loop, on a worker. Raises OverloadedError when as many wait as may run."""
        limits = self.limits
        with self._workers.admit(limits.max_concurrent_requests if limits is not None else LOADING_REQUESTS):
            return await self._workers.run(function)

    def open(self, requests: Sequence[GenerationRequest], admission: Admission | None = None) -> OpenGeneration:
        """Take request slots, those of `admission` among them, and get ready to stream.

        Raises OverloadedError when slots are short.
        """
        model = self._model_for(max((request.received_s for request in requests), default=math.inf))
        if admission is not None:
            admission.close()  # nobody else comes before they are taken below
        try:
            self._slots.take(len(requests), model.limits.max_concurrent_requests)
        except OverloadedError:
            self.metrics.request_failed("overloaded")
            raise
        for request in requests:
            self.metrics.request_admitted(request)
        now = time.monotonic()
        template = model.template
        streams = [
            TextStream(
                request,
                model.tokenizer,
                template.thoughts,
                now,
                template.tool_format,
                template.response_template,
            )
            for request in requests
        ]
        return OpenGeneration(requests, streams, model.engine, self._slots, self.metrics, self._workers)

    async def generate(
        self, requests: Sequence[GenerationRequest], admission: Admission | None = None
    ) -> list[Generation]:
        """The fold of the stream, one Generation per request, in their order."""
        generations = [Generation(request) for request in requests]
        async with self.open(requests, admission) as stream:
            async for batch in stream:
                for index, event in batch:
                    generations[index].add(event)
        return generations

    async def close(self, timeout_s: float) -> None:
        """Let running requests finish for up to `timeout_s`, then end them with an error and let that be sent."""
        self.drain()
        await self._wait_closed(timeout_s)
        if self._model is not None:
            await asyncio.to_thread(self._model.engine.stop)
            await self._wait_closed(SEND_TIMEOUT_S)
        self._workers.close()

    @property
    def is_idle(self) -> bool:
        """Whether the model is there, and no request."""
        return self._model is not None and not self._is_busy

    @property
    def _is_busy(self) -> bool:
        return bool(self._slots.open or self._workers.num_requests)

    async def _wait_closed(self, timeout_s: float) -> None:
        """Seen idle twice: a request that has just been prepared needs a moment to be opened."""
        deadline = time.monotonic() + timeout_s
        num_idle = 0
        while num_idle < 2 and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
            num_idle = 0 if self._is_busy else num_idle + 1

    def drop(self, num_requests: int) -> None:
        """Requests that are prepared and will not be opened: their client has gone."""
        for _ in range(num_requests):
            self.metrics.request_failed("dropped")

    async def _build(
        self,
        model: ServedModel,
        parameters: RequestParameters,
        text: str,
        token_ids: Sequence[int],
        received_s: float,
        caller: Caller,
        num_leading_ids: int = 0,
    ) -> GenerationRequest:
        request = build_request(
            parameters, text, token_ids, model.limits, model.info.eos_token_ids, received_s, num_leading_ids
        )
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

    async def aside(self, function: Callable[[], T]) -> T:
        """On a worker like `work`, for a request that has been served and may not be refused any more."""
        return await self._workers.run(function)


def siblings(request: GenerationRequest, count: int) -> list[GenerationRequest]:
    """`request` and its copies with other random streams."""
    requests = [request]
    while len(requests) < count:
        requests.append(with_new_seed(requests[-1]))
    return requests
