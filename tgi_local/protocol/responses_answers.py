"""OpenAI's Responses: a response that grows item by item, and the numbered events that say so."""

import time
from collections.abc import Callable
from typing import Any

from tgi_local.errors import TgiLocalError
from tgi_local.protocol.responses import ResponsesRequest
from tgi_local.protocol.wire import new_id
from tgi_local.types import Finish, FinishReason, GenerationRequest, TextEvent, ToolCallDelta

Event = dict[str, Any]

_ID_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
_PART_TYPES = {"message": "output_text", "reasoning": "reasoning_text"}
MAX_MESSAGE_CHARACTERS = 1000
_ARGUMENTS = "response.function_call_arguments"


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
        events = self._add("reasoning", event.reasoning) + self._add("message", event.text)
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

    def _add(self, kind: str, text: str) -> list[Event]:
        """Text for an item of this kind: the open one, or a new one."""
        if not text:
            return []
        events = [] if self._is_item_open and self.output[-1]["type"] == kind else self._open_text(kind)
        part = self.output[-1]["content"][0]
        part["text"] += text
        return [*events, self._part_event(f"response.{part['type']}.delta", delta=text, **_logprobs(part))]

    def _add_piece(self, piece: ToolCallDelta) -> list[Event]:
        """A piece of a call: the open one, or with a name, a new one."""
        events: list[Event] = []
        if piece.name is not None:
            item = {"call_id": new_id("call", "_"), "name": piece.name, "arguments": ""}
            events = [*self._close("completed"), self._open("function_call", **item)]
        item = self.output[-1]
        item["arguments"] += piece.arguments
        if piece.arguments:
            events.append(self._item_event(f"{_ARGUMENTS}.delta", delta=piece.arguments))
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

    def _open_text(self, kind: str) -> list[Event]:
        own: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
        part: dict[str, Any] = {"type": _PART_TYPES[kind], "text": ""}
        if kind == "message":
            part |= {"annotations": [], "logprobs": []}
        events = [*self._close("completed"), self._open(kind, **own, content=[])]
        self.output[-1]["content"].append(part)
        return [*events, self._part_event("response.content_part.added", part=dict(part))]

    def _open(self, kind: str, **fields: Any) -> Event:
        item = {"id": new_id(_ID_PREFIXES[kind], "_"), "type": kind, "status": "in_progress", **fields}
        event = self._event("response.output_item.added", output_index=len(self.output), item=item)
        self.output.append({**item, "content": []} if "content" in item else dict(item))
        self._is_item_open = True
        return event

    def _close(self, status: str) -> list[Event]:
        if not self._is_item_open:
            return []
        self._is_item_open = False
        item = self.output[-1]
        item["status"] = status
        events = []
        if "content" in item:
            part = item["content"][0]
            done = self._part_event(f"response.{part['type']}.done", text=part["text"], **_logprobs(part))
            events = [done, self._part_event("response.content_part.done", part=part)]
        elif item["type"] == "function_call":
            fields = {"arguments": item["arguments"], "name": item["name"]}
            events = [self._item_event(f"{_ARGUMENTS}.done", **fields)]
        return [*events, self._event("response.output_item.done", output_index=len(self.output) - 1, item=item)]

    def _part_event(self, kind: str, **fields: Any) -> Event:
        return self._item_event(kind, content_index=0, **fields)

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
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning is not None else None, "summary": None},
        "store": body.store is not False,
        "temperature": native.sampling.temperature,
        "text": {"format": (body.text.format if body.text is not None else None) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_p": native.sampling.top_p,
        "truncation": "disabled",
        "user": body.user,
    }


def _logprobs(part: dict[str, Any]) -> dict[str, Any]:
    """Events of visible text have the key, those of thoughts do not."""
    return {"logprobs": []} if part["type"] == "output_text" else {}
