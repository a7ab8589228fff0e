"""One request for a completion or a chat answer, and what its stream says."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import orjson

from tgi_local.bench.connection import ConnectionLostError, HttpClient
from tgi_local.bench.measures import Failure, RequestRecord

Prompt = str | list[int]
PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
MAX_DETAIL = 200  # characters of a server's words in an error
MAX_BODY = 4096  # bytes of an error that are read
OK = 200


@dataclass(frozen=True)
class Dialect:
    """What every request of a run says besides its prompt and length."""

    endpoint: str  # a key of PATHS
    model: str
    ignore_eos: bool = False

    @property
    def path(self) -> str:
        return PATHS[self.endpoint]

    def body(self, prompt: Prompt, max_tokens: int, *, stream: bool) -> bytes:
        """A greedy request, so that every server does the same work."""
        fields: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": 0, "stream": stream}
        if self.endpoint == "chat":
            fields["messages"] = [{"role": "user", "content": prompt}]
        else:
            fields["prompt"] = prompt
        if stream:
            fields["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            fields["ignore_eos"] = True
        return orjson.dumps(fields)


async def stream_completion(
    client: HttpClient, dialect: Dialect, prompt: Prompt, max_tokens: int, due_s: float, timeout_s: float
) -> RequestRecord:
    """The record of one streamed request that was due at `due_s` (`time.perf_counter`). Raises nothing: failures are recorded."""
    reader = EventReader(due_s)
    body = dialect.body(prompt, max_tokens, stream=True)
    try:
        async with asyncio.timeout(timeout_s):
            status = await client.request("POST", dialect.path, body, reader.feed)
        reader.finish(status)
    except TimeoutError:
        reader.record.failure = Failure("timeout", f"no complete answer within {timeout_s:g} s")
    except ConnectionLostError as error:
        reader.record.failure = Failure("connection lost", one_line(str(error)))
    except OSError as error:
        refused = isinstance(error, ConnectionRefusedError)
        detail = "connection refused" if refused else one_line(error.strerror or str(error))
        reader.record.failure = Failure("no connection", detail)
    reader.record.ended_s = reader.last_event_s or time.perf_counter()
    return reader.record


async def complete(client: HttpClient, dialect: Dialect, prompt: Prompt, max_tokens: int) -> dict[str, Any]:
    """`usage` of an answer that is not streamed, empty where there is none. Raises RefusedError, OSError and ConnectionLostError."""
    return usage_of(await fetch(client, "POST", dialect.path, dialect.body(prompt, max_tokens, stream=False)))


async def fetch(client: HttpClient, method: str, path: str, body: bytes = b"") -> Any:
    """The JSON of an answer. Raises RefusedError, OSError, TimeoutError and ConnectionLostError."""
    pieces: list[bytes] = []
    status = await client.request(method, path, body, pieces.append)
    answer = b"".join(pieces)
    if status != OK:
        raise RefusedError(status, error_detail(answer))
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError as error:
        raise RefusedError(status, f"{path} answered something that is not JSON") from error


class RefusedError(Exception):
    """The server answered with another status than 200, or with nonsense; `detail` is one line of its words."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP {status}: {detail}")
        self.status = status
        self.detail = detail


class EventReader:
    """Reads one answer's server-sent events into a record, as the pieces come."""

    def __init__(self, due_s: float) -> None:
        self.record = RequestRecord(due_s)
        self.last_event_s = 0.0
        self._rest = b""
        self._other = b""  # the beginning of what is not an event: the body of an error
        self._is_complete = False  # a finish reason or [DONE] has come
        self._num_events = 0

    def feed(self, piece: bytes) -> None:
        now = time.perf_counter()
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._read_event(line[5:].strip(), now)
            elif line and len(self._other) < MAX_BODY:
                self._other += line

    def finish(self, status: int) -> None:
        """What is wrong with the whole answer, if anything is."""
        body = self._other + self._rest
        if status != OK:
            self.record.failure = Failure(f"HTTP {status}", error_detail(body))
        elif self.record.failure is None and not self._num_events:
            self.record.failure = Failure("not an event stream", error_detail(body))
        elif self.record.failure is None and not self._is_complete:
            self.record.failure = Failure("ended early", "the stream ended without a finish reason and without [DONE]")
        if not self.record.event_times_s and self.last_event_s:
            self.record.event_times_s.append(self.last_event_s)

    def _read_event(self, data: bytes, now: float) -> None:
        self._num_events += 1
        if data == b"[DONE]":
            self._is_complete = True
            return
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            event = None
        if not isinstance(event, dict):
            self.record.failure = Failure("malformed event", one_line(data[:MAX_DETAIL].decode(errors="replace")))
        elif event.get("error"):
            self.record.failure = Failure("error event", error_detail(data))
        else:
            self._read_choice(event, now)

    def _read_choice(self, event: dict[str, Any], now: float) -> None:
        usage = usage_of(event)
        if usage:
            self._read_usage(usage)
        for choice in event.get("choices") or ():
            self.last_event_s = now
            self._is_complete |= choice.get("finish_reason") is not None
            if choice.get("text") or _has_content(choice.get("delta") or {}):
                self.record.event_times_s.append(now)

    def _read_usage(self, usage: dict[str, Any]) -> None:
        self.record.prompt_tokens = usage.get("prompt_tokens")
        self.record.output_tokens = usage.get("completion_tokens")
        self.record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


def usage_of(answer: Any) -> dict[str, Any]:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return usage if isinstance(usage, dict) else {}


def error_detail(body: bytes) -> str:
    """One line of a server's words: OpenAI's error message, TGI's, FastAPI's, or the body itself."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if isinstance(answer, dict):
        error = answer.get("error") or answer.get("detail") or answer.get("message") or answer
        text = error.get("message") or error if isinstance(error, dict) else error
    else:
        text = body.decode(errors="replace")
    return one_line(str(text)) or "an empty answer"


def one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_DETAIL else f"{text[:MAX_DETAIL]}..."


def _has_content(delta: dict[str, Any]) -> bool:
    """Whether a chat delta shows anything: text, thoughts or a tool call."""
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))
