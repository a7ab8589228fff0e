"""The answers that are being generated: their request slots, and tokens to text events."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Self

from tgi_local.engine.engine_thread import EngineThread
from tgi_local.errors import GenerationError, IncompleteGenerationError, NotReadyError, OverloadedError
from tgi_local.metrics import Metrics
from tgi_local.stream import TextStream
from tgi_local.text_workers import TextWorkers
from tgi_local.types import Finish, GenerationRequest, TextEvent, TokenEvent

logger = logging.getLogger(__name__)

# More prompt tokens than these are turned into text on a worker.
INLINE_TOKENS = 256


class RequestSlots:
    """Owns the number of requests in flight, and which answers are open. Event-loop thread only."""

    def __init__(self) -> None:
        self.num_taken = 0
        self.open: set[OpenGeneration] = set()

    def take(self, count: int, limit: int) -> None:
        """Raises OverloadedError when that makes more than `limit`."""
        if self.num_taken + count > limit:
            raise OverloadedError()
        self.num_taken += count

    def release(self, count: int) -> None:
        self.num_taken -= count


class OpenGeneration:
    """Owns the slots of a group of requests and their text streams. Iterate once; close always.

    Yields lists of (index of the request in the group, event). Closing early cancels what still runs.
    """

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        streams: Sequence[TextStream],
        engine: EngineThread,
        slots: RequestSlots,
        metrics: Metrics,
        workers: TextWorkers,
    ) -> None:
        """One stream per request; their slots are taken already."""
        self._requests = requests
        self._streams = {
            request.request_id: (index, stream)
            for index, (request, stream) in enumerate(zip(requests, streams, strict=True))
        }
        self._num_open = len(requests)
        self._engine = engine
        self._slots = slots
        self._metrics = metrics
        self._workers = workers
        self._batches: AsyncGenerator[list[tuple[int, TextEvent]]] | None = None
        slots.open.add(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[list[tuple[int, TextEvent]]]:
        self._batches = self._run()
        return self._batches

    async def aclose(self) -> None:
        """Idempotent."""
        if self._batches is not None:
            await self._batches.aclose()
        self._slots.open.discard(self)
        self._slots.release(self._num_open)
        dropped, self._num_open = self._num_open, 0
        for _ in range(dropped):
            self._metrics.request_failed("dropped")

    async def _run(self) -> AsyncGenerator[list[tuple[int, TextEvent]]]:
        try:
            async with aclosing(self._engine.submit(self._requests)) as batches:
                async for batch in batches:
                    events: list[tuple[int, TextEvent]] = []
                    try:
                        await self._step(batch, events)
                    except Exception:
                        if events:  # what came before it counts, too
                            yield events
                        raise
                    if events:
                        yield events
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

    async def _step(self, batch: Sequence[TokenEvent], events: list[tuple[int, TextEvent]]) -> None:
        """Append a batch's text events to `events`. Raises the error of an error event."""
        for token_event in batch:
            if token_event.request_id not in self._streams:
                continue
            index, stream = self._streams[token_event.request_id]
            if len(token_event.prompt_logprobs or ()) <= INLINE_TOKENS:
                event = stream.step(token_event)
            else:  # the texts of a long prompt's tokens are made one by one
                event = await self._workers.run(partial(stream.step, token_event))
            if event.finish is not None:
                self._finished(token_event.request_id, event.finish)
            events.append((index, event))

    def _finished(self, request_id: str, finish: Finish) -> None:
        del self._streams[request_id]
        # After a stop string the engine would go on; tokens already on their way find no stream and are dropped.
        self._engine.cancel(request_id)
        self._num_open -= 1
        self._slots.release(1)
        self._metrics.request_finished(finish)

    def _failed(self, cause: str) -> None:
        self._slots.release(self._num_open)
        for _ in range(self._num_open):
            self._metrics.request_failed(cause)
        self._num_open = 0
