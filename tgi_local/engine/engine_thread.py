"""Runs the engine on its own thread and carries its events to asyncio, one delivery per step."""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from tgi_local.engine.engine import Engine
from tgi_local.errors import GenerationError, NotReadyError
from tgi_local.types import GenerationRequest, StepStats, TokenEvent

logger = logging.getLogger(__name__)

# A consumer this many tokens per request behind has stopped reading; it is cut off rather than kept in memory. All
# requests of a group have the one consumer, and its reading is what is judged.
MAX_PENDING_EVENTS = 1024
# A consumer costs 30 us to wake, a system call included, and so does the event loop itself. Where many wait and steps are
# quick, each is woken for several tokens at once; nobody sees text come more often than this.
MANY_CONSUMERS = 16
WAKE_EVERY_S = 0.033
# How often the event loop looks after the thread, which can not say itself that it hangs or is gone.
WATCH_EVERY_S = 0.25


class StalledError(RuntimeError):
    """The model has not returned for so long that it never will."""


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

    __slots__ = ("_waiter", "events", "max_pending", "unfinished")

    def __init__(self, request_ids: Iterable[str]) -> None:
        self.unfinished = set(request_ids)
        self.max_pending = MAX_PENDING_EVENTS * len(self.unfinished)
        self.events: list[TokenEvent] = []
        self._waiter: asyncio.Future[None] | None = None  # an asyncio.Event does the same, in twice the time

    def drop(self, request_id: str) -> None:
        """Expect nothing more of one request, and wake the consumer if it waits for that alone."""
        self.unfinished.discard(request_id)
        self.events = [event for event in self.events if event.request_id != request_id]
        self.wake()

    async def take(self) -> list[TokenEvent]:
        """Waits for an event, or until one request less is expected; then there may be none."""
        if not self.events:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        events, self.events = self.events, []
        return events

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Waking:
    """Decides when consumers are woken for tokens that are neither their first nor their last. Event-loop thread only.

    `collect` brings what the engine has sent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, collect: Callable[[], None]) -> None:
        self._loop = loop
        self._collect = collect
        self._unread: set[_Mailbox] = set()
        self._called_s = self._woken_s = -math.inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        """Whether consumers will be woken without a call. May be read from any thread."""
        return self._timer is not None

    def add(self, mailbox: _Mailbox) -> None:
        self._unread.add(mailbox)

    def wake(self, num_consumers: int) -> None:
        """After a step: now, or in at most WAKE_EVERY_S when the next step will be there by then."""
        now_s = self._loop.time()
        is_slow = now_s - self._called_s > WAKE_EVERY_S / 2
        self._called_s = now_s
        if num_consumers < MANY_CONSUMERS or is_slow or now_s - self._woken_s >= WAKE_EVERY_S:
            self._wake_all()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._woken_s + WAKE_EVERY_S, self._ring)

    def _ring(self) -> None:
        self._called_s = self._loop.time()
        self._wake_all()

    def _wake_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # before the look at what has come: from now on the engine's thread calls again
        self._woken_s = self._loop.time()
        try:
            self._collect()
        finally:
            for mailbox in self._unread:
                mailbox.wake()
            self._unread.clear()


class EngineThread:
    """Owns the engine's thread. `start`, `submit`, `stop` are called from the event loop.

    A fatal error is remembered: running requests are told, new ones are refused at once, and `on_death` is called.
    A thread in which requests wait and the model has not returned for `stall_s` is stalled; after twice that it is
    given up as if it had died.
    """

    def __init__(
        self,
        engine: Engine,
        on_step: Callable[[StepStats], None] = lambda stats: None,
        on_death: Callable[[BaseException], None] = lambda error: None,
        stall_s: float = math.inf,
    ) -> None:
        self._engine = engine
        self._on_step = on_step
        self._on_death = on_death
        self.stall_s = stall_s
        self._inbox: SimpleQueue[_Submit | _Cancel | _Stop] = SimpleQueue()
        self._outbox: deque[tuple[list[TokenEvent], StepStats]] = deque()
        self._is_called = False  # the event loop is about to look into it
        self._mailboxes: dict[str, _Mailbox] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._waiting_since_s = time.monotonic()  # nobody has waited for longer
        self._is_stopping = False
        self._is_closed = False
        self.fatal_error: BaseException | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waking = _Waking(self._loop, self._collect)
        self._thread.start()
        self._watch(time.monotonic())

    def stop(self, timeout_s: float = 5.0) -> None:
        """End every request with an error and the thread with them. May be called from any thread."""
        self._is_stopping = True
        self._inbox.put(_Stop())
        if self._thread.is_alive() and not isinstance(self.fatal_error, StalledError):
            self._thread.join(timeout_s)
        if self._loop is not None:
            self._call_loop(self._close)  # the thread may be too busy to say it

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_stopping and self.fatal_error is None

    @property
    def is_stalled(self) -> bool:
        return self.stalled_for_s() > self.stall_s

    def stalled_for_s(self) -> float:
        """Seconds since the model has last returned while requests are in flight."""
        if not self._mailboxes:
            return 0.0
        return time.monotonic() - max(self._engine.last_return_s, self._waiting_since_s)

    async def submit(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[list[TokenEvent]]:
        """Yield the events of `requests`, in batches as they come, until each had its one terminal event.

        Leaving the iterator early cancels what still runs. Raises NotReadyError when the engine is dead.
        """
        if not self.is_alive:
            raise NotReadyError("dead", "The engine has stopped; restart the server.")
        if not self._mailboxes:
            self._waiting_since_s = time.monotonic()
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
            self._refuse(request, str(error))
        except Exception:
            logger.exception("a request could not be queued")  # its grammar did not start
            self._refuse(request, "the request could not be queued")

    def _refuse(self, request: GenerationRequest, reason: str) -> None:
        self._deliver([TokenEvent(request.request_id, error=GenerationError(reason))], self._engine.stats())

    def _deliver(self, events: list[TokenEvent], stats: StepStats) -> None:
        """At most one call into the event loop for a whole step, and none when it will look for events anyway."""
        self._outbox.append((events, stats))  # before the look: what is missed by the one is seen by the other
        is_urgent = any(event.is_urgent for event in events)
        if not self._is_called and (is_urgent or not self._waking.is_set):
            self._is_called = True
            self._call_loop(self._receive)

    def _call_loop(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            logger.debug("the event loop is closed; nobody is left to tell")

    # Event-loop thread.

    def _receive(self) -> None:
        self._is_called = False
        try:
            self._collect()
        finally:
            self._waking.wake(len(self._mailboxes))

    def _collect(self) -> None:
        """Put what the engine has sent into mailboxes."""
        steps = []
        while self._outbox:
            events, stats = self._outbox.popleft()
            self._put(events)
            steps.append(stats)
        for stats in steps:  # last: a failure here costs nobody an event
            self._on_step(stats)

    def _put(self, events: list[TokenEvent]) -> None:
        for event in events:
            mailbox = self._mailboxes.get(event.request_id)
            if mailbox is None:
                continue
            if not event.is_terminal and len(mailbox.events) >= mailbox.max_pending:
                event = TokenEvent(event.request_id, error=GenerationError("the client reads too slowly"))
                self._inbox.put(_Cancel(event.request_id))
            if event.is_terminal:
                del self._mailboxes[event.request_id]  # nothing may follow
            mailbox.events.append(event)
            if event.is_urgent:
                mailbox.wake()
            else:
                self._waking.add(mailbox)

    def _watch(self, watched_s: float) -> None:
        """`watched_s` is when this was last done."""
        if self._is_closed or self._is_stopping:
            return
        now_s = time.monotonic()
        if now_s - watched_s > WATCH_EVERY_S + 1.0:
            self._waiting_since_s = now_s  # not only the model stood still: the machine slept, or the process did
        if not self._thread.is_alive():
            self._give_up(RuntimeError("the engine's thread has ended"))
        elif self.stalled_for_s() > 2 * self.stall_s:
            self._give_up(StalledError(f"the model has not returned for {self.stalled_for_s():.0f} s"))
        else:
            assert self._loop is not None
            self._loop.call_later(WATCH_EVERY_S, self._watch, now_s)

    def _give_up(self, error: BaseException) -> None:
        if self.fatal_error is None:
            self.fatal_error = error
            logger.critical("the engine is given up: %s", error)
        self._close()

    def _close(self) -> None:
        """Tell everyone still waiting, also those whose request never reached the engine. Idempotent."""
        self._collect()
        if self.fatal_error is None:
            error = NotReadyError("draining", "The server is shutting down.")
        else:
            error = NotReadyError("dead", "The engine has stopped after an error; restart the server.")
        for request_id, mailbox in self._mailboxes.items():
            mailbox.events.append(TokenEvent(request_id, error=error))
            mailbox.wake()
        self._mailboxes.clear()
        if self.fatal_error is not None and not self._is_closed:
            self._on_death(self.fatal_error)
        self._is_closed = True
