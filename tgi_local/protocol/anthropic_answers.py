"""Anthropic's answers: a message that grows block by block, and the events that say so."""

import json
import re
from typing import Any

import orjson
from pydantic_core import from_json

from tgi_local.model_info import ModelInfo
from tgi_local.protocol.anthropic import MessagesRequest
from tgi_local.protocol.wire import new_id
from tgi_local.types import Finish, FinishReason, Limits, TextEvent, ToolCallDelta

Event = dict[str, Any]

PING: Event = {"type": "ping"}

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class MessageAnswer:
    """Owns one message: every TextEvent adds to `object` and gives the events of what it added."""

    def __init__(self, body: MessagesRequest, served: str, num_prompt_tokens: int) -> None:
        self._shows_thinking = body.shows_thinking
        self._num_prompt_tokens = num_prompt_tokens
        self._content: list[dict[str, Any]] = []
        self._open_kind: str | None = None
        self._arguments = ""  # of the open tool_use block, which gets them when they are whole
        self.object: dict[str, Any] = {
            "id": new_id("msg", "_"),
            "type": "message",
            "role": "assistant",
            "model": body.shown_model(served),
            "content": self._content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(num_output_tokens=0, num_cached_tokens=0),
        }

    def begin(self) -> list[Event]:
        return [{"type": "message_start", "message": self.object | {"content": []}}, PING]

    def step(self, event: TextEvent) -> list[Event]:
        events = self._add("thinking", event.reasoning) if self._shows_thinking else []
        events += self._add("text", event.text)
        for piece in event.tool_calls:
            events += self._add_piece(piece)
        if event.finish is not None:
            events += self._end(event.finish)
        return events

    def _add(self, kind: str, text: str) -> list[Event]:
        """Text for a block of this kind: the open one, or a new one."""
        if not text:
            return []
        events: list[Event] = []
        if self._open_kind != kind:
            signature = {"signature": ""} if kind == "thinking" else {}
            events += self._close() + self._open({"type": kind, kind: "", **signature})
        self._content[-1][kind] += text
        return [*events, self._delta({"type": f"{kind}_delta", kind: text})]

    def _add_piece(self, piece: ToolCallDelta) -> list[Event]:
        """A piece of a call: of the open block, or with a name, a new one."""
        events: list[Event] = []
        if piece.name is not None:
            block = {"type": "tool_use", "id": new_id("toolu", "_"), "name": piece.name, "input": {}}
            events = self._close() + self._open(block)
            self._arguments = ""
        self._arguments += piece.arguments
        if piece.arguments:
            events.append(self._delta({"type": "input_json_delta", "partial_json": piece.arguments}))
        return [*events, *self._close()] if piece.is_last else events

    def _end(self, finish: Finish) -> list[Event]:
        reason = self._stop_reason(finish)
        delta = {
            "stop_reason": reason,
            "stop_sequence": finish.stop_string if reason == "stop_sequence" else None,
        }
        usage = self._usage(finish.num_tokens, finish.num_cached_tokens)
        self.object |= {**delta, "usage": usage}
        return [*self._close(), {"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]

    def _open(self, block: dict[str, Any]) -> list[Event]:
        self._content.append(block)
        self._open_kind = block["type"]
        return [{"type": "content_block_start", "index": len(self._content) - 1, "content_block": dict(block)}]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self._content) - 1, "delta": delta}

    def _close(self) -> list[Event]:
        if self._open_kind is None:
            return []
        if self._open_kind == "tool_use":
            self._content[-1]["input"] = _arguments_object(self._arguments)
        self._open_kind = None
        return [{"type": "content_block_stop", "index": len(self._content) - 1}]

    def _stop_reason(self, finish: Finish) -> str:
        if finish.reason is FinishReason.LENGTH:
            return "max_tokens"
        if any(block["type"] == "tool_use" for block in self._content) and self._open_kind != "tool_use":
            return "tool_use"
        return "stop_sequence" if finish.stop_string is not None else "end_turn"

    def _usage(self, num_output_tokens: int, num_cached_tokens: int) -> dict[str, int]:
        """Anthropic counts the cached part of a prompt apart."""
        return {
            "input_tokens": self._num_prompt_tokens - num_cached_tokens,
            "output_tokens": num_output_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": num_cached_tokens,
        }


def _arguments_object(arguments: str) -> Any:
    """The arguments of a call as an object, as far as they came; a lone surrogate, which no answer can carry, is replaced.

    Of arguments that the limit has cut it has what was whole, as the SDKs make of the same stream.
    """
    mended = _SURROGATE.sub(r"\\ufffd", arguments)
    for read, text in (
        (orjson.loads, arguments),
        (orjson.loads, mended),
        (_beginning, arguments),
        (_beginning, mended),
    ):
        try:
            found = read(text)
        except ValueError:
            continue
        return found if isinstance(found, dict) else {}
    return {}


def _beginning(text: str) -> Any:
    """What is whole of a JSON text that ends too soon; its numbers are those that an answer can carry."""
    return orjson.loads(json.dumps(from_json(text, allow_partial=True)))


def models_page(
    info: ModelInfo, limits: Limits, after_id: str | None = None, before_id: str | None = None
) -> dict[str, Any]:
    """The list of models: a page of one, and nothing after or before it."""
    entries = [] if info.model_id in (after_id, before_id) else [model_entry(info, limits)]
    ends = [entry["id"] for entry in entries[:1]] or [None]
    return {"data": entries, "has_more": False, "first_id": ends[0], "last_id": ends[-1]}


def model_entry(info: ModelInfo, limits: Limits) -> dict[str, Any]:
    """When a model was released nobody here knows: then it is the epoch, as Anthropic has it."""
    return {
        "type": "model",
        "id": info.model_id,
        "display_name": info.model_id,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": limits.max_input_tokens,
        "max_tokens": limits.max_total_tokens,
    }
