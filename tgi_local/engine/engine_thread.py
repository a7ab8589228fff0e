"""Runs the engine on its own thread and carries its events to asyncio, one delivery per step."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from tgi_local.engine.engine import Engine
from tgi_local.errors import GenerationError, NotReadyError
from tgi_local.types import GenerationRequest, StepStats, TokenEvent

logger = logging.getLogger(__name__)

# A consumer this many tokens behind has stopped reading; it is cut off rather than kept in memory.
MAX_PENDING_EVENTS = 1024


@dataclass(frozen=True, slots=True)
class _Submit:
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class _Cancel:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class _Mailbox:
    """Events of a group of requests on their way to their consumer. Event-loop thread only."""

    __slots__ = ("events", "ready", "unfinished")

    def __init__(self, request_ids: Iterable[str]) -> None:
        self.unfinished = set(request_ids)
        self.events: list[TokenEvent] = []
        self.ready = asyncio.Event()

    def put(self, event: TokenEvent) -> None:
        self.events.append(event)
        self.ready.set()

    def drop(self, request_id: str) -> None:
        """Expect nothing more of one request, and wake the consumer if it waits for that alone."""
        self.unfinished.discard(request_id)
        self.events = [event for event in self.events if event.request_id != request_id]
        self.ready.set()

    async def take(self) -> list[TokenEvent]:
        await self.ready.wait()
        self.ready.clear()
        events, self.events = self.events, []
        return events


class EngineThread:
    """Owns the engine's thread. `start`, `submit`, `stop` are called from the event loop.

    A fatal error is remembered: running requests are told, new ones are refused at once.
    """

    def __init__(
        self,
        engine: Engine,
        on_step: Callable[[StepStats], None] = lambda stats: None,
        on_death: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._engine = engine
        self._on_step = on_step
        self._on_death = on_death
        self._inbox: SimpleQueue[_Submit | _Cancel | _Stop] = SimpleQueue()
        self._mailboxes: dict[str, _Mailbox] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._last_progress_s = time.monotonic()
        self._is_closed = False
        self.fatal_error: BaseException | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End every request with an error and the thread with them."""
        self._is_closed = True
        self._inbox.put(_Stop())
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_closed and self.fatal_error is None

    def stalled_for_s(self) -> float:
        """Seconds without a finished step while requests are in flight."""
        return time.monotonic() - self._last_progress_s if self._mailboxes else 0.0

    async def submit(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[list[TokenEvent]]:
        """Yield the events of `requests`, in batches as they come, until each had its one terminal event.

        Leaving the iterator early cancels what still runs. Raises NotReadyError when the engine is dead.
        """
        if not self.is_alive:
            raise NotReadyError("dead", "The engine has stopped; restart the server.")
        if not self._mailboxes:
            self._last_progress_s = time.monotonic()
        mailbox = _Mailbox(request.request_id for request in requests)
        for request in requests:
            self._mailboxes[request.request_id] = mailbox
            self._inbox.put(_Submit(request))
        try:
            while mailbox.unfinished:
                events = await mailbox.take()
                for event in events:
                    if event.is_terminal:
                        mailbox.unfinished.discard(event.request_id)
                if events:
                    yield events
        finally:
            for request_id in list(mailbox.unfinished):
                self.cancel(request_id)

    def cancel(self, request_id: str) -> None:
        """Stop generating for one request; its stream gets no more events. Harmless when it has ended."""
        mailbox = self._mailboxes.pop(request_id, None)
        if mailbox is not None:
            mailbox.drop(request_id)
        self._inbox.put(_Cancel(request_id))

    # Below: engine thread only.

    def _run(self) -> None:
        try:
            while self._drain_inbox():
                events, stats = self._engine.step()
                self._last_progress_s = time.monotonic()
                self._deliver(events, stats)
        except BaseException as error:
            # The top of the thread: whatever happened, everyone waiting must hear of it.
            self.fatal_error = error
            logger.exception("the engine thread died")
        try:
            self._engine.fail_all("the engine has stopped")
            self._deliver([], self._engine.stats())
        except Exception:
            logger.exception("the engine could not be cleaned up")
        self._call_loop(self._close)

    def _drain_inbox(self) -> bool:
        """Apply every command, waiting for one while there is no work; False when told to stop."""
        while True:
            try:
                command = self._inbox.get(block=not self._engine.has_work)
            except Empty:
                return True
            match command:
                case _Submit(request):
                    self._submit(request)
                case _Cancel(request_id):
                    if self._engine.cancel(request_id):
                        self._deliver([], self._engine.stats())
                case _Stop():
                    return False

    def _submit(self, request: GenerationRequest) -> None:
        try:
            self._engine.submit(request)
        except ValueError as error:
            self._deliver([TokenEvent(request.request_id, error=GenerationError(str(error)))], self._engine.stats())

    def _deliver(self, events: list[TokenEvent], stats: StepStats) -> None:
        """One call into the event loop for a whole step."""
        self._call_loop(self._receive, events, stats)

    def _call_loop(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            logger.debug("the event loop is closed; nobody is left to tell")

    # Event-loop thread.

    def _receive(self, events: list[TokenEvent], stats: StepStats) -> None:
        for event in events:
            mailbox = self._mailboxes.get(event.request_id)
            if mailbox is None:
                continue
            if not event.is_terminal and len(mailbox.events) >= MAX_PENDING_EVENTS:
                event = TokenEvent(event.request_id, error=GenerationError("the client reads too slowly"))
                self._inbox.put(_Cancel(event.request_id))
            if event.is_terminal:
                del self._mailboxes[event.request_id]  # nothing may follow
            mailbox.put(event)
        self._on_step(stats)  # last: no consumer runs before this returns, and its failure costs nobody an event

    def _close(self) -> None:
        """Tell everyone still waiting, also those whose request never reached the engine."""
        reason = "the server is shutting down" if self.fatal_error is None else "the engine has stopped after an error"
        for request_id, mailbox in self._mailboxes.items():
            mailbox.put(TokenEvent(request_id, error=GenerationError(reason)))
        self._mailboxes.clear()
        if self.fatal_error is not None:
            self._on_death(self.fatal_error)
