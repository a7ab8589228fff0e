"""OpenAI's Responses: a response that grows item by item, and the numbered events that say so."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from tgi_local.errors import TgiLocalError
from tgi_local.protocol.custom_tools import InputReader
from tgi_local.protocol.openai_answers import chat_logprob
from tgi_local.protocol.responses import ResponsesRequest
from tgi_local.protocol.responses_items import new_item_id
from tgi_local.protocol.responses_tools import SERVED
from tgi_local.protocol.wire import new_id
from tgi_local.types import Finish, FinishReason, GenerationRequest, TextEvent, TextToken, ToolCallDelta

Event = dict[str, Any]

MAX_MESSAGE_CHARACTERS = 1000
# What grows in an item: its field, the type of its part, and the events of the part and of its text.
_TEXT = ("content", "output_text", "response.content_part", "response.output_text")
_THOUGHT = ("content", "reasoning_text", "response.content_part", "response.reasoning_text")
_SUMMARY = ("summary", "summary_text", "response.reasoning_summary_part", "response.reasoning_summary_text")
# What grows in a call, and its events.
_GROWING = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}
# Deltas are padded to a multiple of this length, so that who sees only sizes learns little of the text.
_OBFUSCATED_LENGTH = 16


class ResponseAnswer:
    """Owns one response: every TextEvent adds to `object` and gives the events of what it added.

    `keep` is called once, when the response has ended well and before its last event can be read.
    """

    def __init__(
        self,
        body: ResponsesRequest,
        served: str,
        native: GenerationRequest,
        keep: Callable[["ResponseAnswer"], None] | None = None,
    ) -> None:
        self._keep = keep
        self._with_logprobs = body.with_logprobs
        self._num_top = body.top_logprobs or 0
        self._thought = _SUMMARY if body.reasoning is not None and body.reasoning.wants_summary else _THOUGHT
        self._is_obfuscated = bool(body.stream_options and body.stream_options.include_obfuscation)
        self._custom_names = {tool.name for tool in body.tools or () if tool.type == "custom"}
        self._reader = InputReader()
        self._unseen: list[TextToken] = []  # whose text is yet to come
        self._num_prompt_tokens = len(native.prompt_token_ids)
        self._num_events = 0
        self._is_item_open = False
        self.output: list[dict[str, Any]] = []
        self.object: dict[str, Any] = {
            "id": new_id("resp", "_"),
            "object": "response",
            "created_at": int(time.time()),
            "model": body.shown_model(served),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": self.output,
            "usage": None,
            **_echo(body, native),
        }

    def begin(self) -> list[Event]:
        response = self.object | {"output": []}
        return [self._event(f"response.{kind}", response=response) for kind in ("created", "in_progress")]

    def step(self, event: TextEvent) -> list[Event]:
        events = self._add("reasoning", event.reasoning) + self._add("message", event.text, self._tokens(event))
        for piece in event.tool_calls:
            events += self._add_piece(piece)
        if event.finish is not None:
            events += self._end(event.finish)
        return events

    def fail(self, error: TgiLocalError) -> Event:
        """The event of an error after the stream has begun; an open item stays unfinished."""
        code = "rate_limit_exceeded" if error.openai_status == 429 else "server_error"
        self.object |= {
            "status": "failed",
            "error": {"code": code, "message": error.message[:MAX_MESSAGE_CHARACTERS]},
        }
        return self._event("response.failed", response=self.object)

    def _tokens(self, event: TextEvent) -> list[TextToken]:
        """The tokens that the event's text is made of; those of thoughts and calls, and control tokens, are no text's."""
        if not self._with_logprobs or event.reasoning or event.tool_calls:
            self._unseen = []
            return []
        if event.token is not None and not event.token.special:
            self._unseen.append(event.token)
        if not event.text:
            return []
        tokens, self._unseen = self._unseen, []
        return tokens

    def _add(self, kind: str, text: str, tokens: Sequence[TextToken] = ()) -> list[Event]:
        """Text for an item of this kind: the open one, or a new one."""
        if not text:
            return []
        events = [] if self._is_item_open and self.output[-1]["type"] == kind else self._open_text(kind)
        field, _, _, text_event = self._growing
        part = self.output[-1][field][0]
        part["text"] += text
        logprobs = [chat_logprob(token, self._num_top) for token in tokens]
        if kind == "message":
            part["logprobs"] += logprobs
        return [*events, self._delta(self._part_event, text_event, text, **_logprobs(kind, logprobs))]

    def _add_piece(self, piece: ToolCallDelta) -> list[Event]:
        """A piece of a call: the open one, or with a name, a new one."""
        events: list[Event] = []
        if piece.name is not None:
            kind = "custom_tool_call" if piece.name in self._custom_names else "function_call"
            item = {"call_id": new_id("call", "_"), "name": piece.name, _GROWING[kind][0]: ""}
            events = [*self._close("completed"), self._open(kind, **item)]
            self._reader = InputReader()
        item = self.output[-1]
        field, growing = _GROWING[item["type"]]
        added = piece.arguments if field == "arguments" else self._reader.read(piece.arguments)
        item[field] += added
        if added:
            events.append(self._delta(self._item_event, growing, added))
        return [*events, *self._close("completed")] if piece.is_last else events

    def _end(self, finish: Finish) -> list[Event]:
        status = "incomplete" if finish.reason is FinishReason.LENGTH else "completed"
        events = [] if self.output else self._open_text("message")
        events += self._close(status)
        self.object |= {"status": status, "usage": self._usage(finish)}
        if status == "incomplete":
            self.object["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.object["completed_at"] = int(time.time())
        if self._keep is not None:
            self._keep(self)
        return [*events, self._event(f"response.{status}", response=self.object)]

    @property
    def _growing(self) -> tuple[str, str, str, str]:
        return _TEXT if self.output[-1]["type"] == "message" else self._thought

    def _open_text(self, kind: str) -> list[Event]:
        own: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
        events = [*self._close("completed"), self._open(kind, **own, content=[])]
        field, part_type, part_event, _ = self._growing
        part: dict[str, Any] = {"type": part_type, "text": ""}
        if kind == "message":
            part |= {"annotations": [], "logprobs": []}
        self.output[-1][field].append(part)
        return [*events, self._part_event(f"{part_event}.added", part=_copy(part))]

    def _open(self, kind: str, **fields: Any) -> Event:
        item = {"id": new_item_id(kind), "type": kind, "status": "in_progress", **fields}
        event = self._event("response.output_item.added", output_index=len(self.output), item=item)
        self.output.append(_copy(item))
        self._is_item_open = True
        return event

    def _close(self, status: str) -> list[Event]:
        if not self._is_item_open:
            return []
        self._is_item_open = False
        item = self.output[-1]
        item["status"] = status
        if item["type"] in _GROWING:
            field, growing = _GROWING[item["type"]]
            name = {"name": item["name"]} if item["type"] == "function_call" else {}
            events = [self._item_event(f"{growing}.done", **{field: item[field]}, **name)]
        else:
            field, _, part_event, text_event = self._growing
            part = item[field][0]
            logprobs = _logprobs(item["type"], part.get("logprobs", []))
            done = self._part_event(f"{text_event}.done", text=part["text"], **logprobs)
            events = [done, self._part_event(f"{part_event}.done", part=part)]
        return [*events, self._event("response.output_item.done", output_index=len(self.output) - 1, item=item)]

    def _delta(self, make: Callable[..., Event], kind: str, delta: str, **fields: Any) -> Event:
        event = make(f"{kind}.delta", delta=delta, **fields)
        if self._is_obfuscated:
            event["obfuscation"] = secrets.token_hex(_OBFUSCATED_LENGTH)[: -len(delta.encode()) % _OBFUSCATED_LENGTH]
        return event

    def _part_event(self, kind: str, **fields: Any) -> Event:
        index = "summary_index" if "summary" in kind else "content_index"
        return self._item_event(kind, **{index: 0}, **fields)

    def _item_event(self, kind: str, **fields: Any) -> Event:
        """About the item that is open."""
        return self._event(kind, item_id=self.output[-1]["id"], output_index=len(self.output) - 1, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return event

    def _usage(self, finish: Finish) -> dict[str, Any]:
        return {
            "input_tokens": self._num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": finish.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": finish.num_tokens,
            "output_tokens_details": {"reasoning_tokens": finish.num_reasoning_tokens},
            "total_tokens": self._num_prompt_tokens + finish.num_tokens,
        }


def _echo(body: ResponsesRequest, native: GenerationRequest) -> dict[str, Any]:
    """What was asked for, as it was understood."""
    reasoning, text = body.reasoning, body.text
    summary = (reasoning.summary or reasoning.generate_summary) if reasoning is not None else None
    verbosity = {"verbosity": text.verbosity} if text is not None and text.verbosity is not None else {}
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning is not None else None, "summary": summary},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": native.sampling.temperature,
        "text": {"format": (text.format if text is not None else None) or {"type": "text"}, **verbosity},
        "tool_choice": body.tool_choice or "auto",
        "tools": [tool.echoed for tool in body.tools or () if tool.type in SERVED],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": native.sampling.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _logprobs(kind: str, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Events of visible text have the key, those of thoughts do not; here the tokens come without their bytes."""
    if kind != "message":
        return {}
    return {
        "logprobs": [
            _bare(entry) | {"top_logprobs": [_bare(top) for top in entry["top_logprobs"]]} for entry in entries
        ]
    }


def _bare(entry: dict[str, Any]) -> dict[str, Any]:
    return {"token": entry["token"], "logprob": entry["logprob"]}


def _copy(given: dict[str, Any]) -> dict[str, Any]:
    """With lists of its own: events that were made keep what they say."""
    return {name: list(value) if isinstance(value, list) else value for name, value in given.items()}
