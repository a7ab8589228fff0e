"""OpenAI's answers: objects and stream chunks, with the keys that strict TGI clients look for."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from tgi_local.protocol.openai import ChatRequest, CompletionRequest
from tgi_local.protocol.tgi import logprob
from tgi_local.protocol.wire import new_id
from tgi_local.types import (
    Finish,
    FinishReason,
    Generation,
    GenerationRequest,
    ModelInfo,
    TextEvent,
    TextToken,
    ToolCall,
)

# OpenAI clients expect numbers; an excluded token has none.
LOWEST_LOGPROB = -9999.0


class Usage:
    """Token counts of one call, over all its choices; a prompt shared by several choices counts once."""

    def __init__(self, num_choices: int) -> None:
        """`num_choices` per prompt."""
        self._num_choices = num_choices
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.reasoning_tokens = 0

    def add_prompt(self, request: GenerationRequest) -> None:
        self.prompt_tokens += len(request.prompt_token_ids)

    def add_completion(self, index: int, finish: Finish) -> None:
        self.completion_tokens += finish.num_tokens
        self.reasoning_tokens += finish.num_reasoning_tokens
        # A prompt's other choices share what the first one computes: no news about what was cached before the call.
        if index % self._num_choices == 0:
            self.cached_tokens += finish.num_cached_tokens

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


class ChatAnswer:
    """Owns id, time and model name of one chat call, and makes its object or its chunks."""

    def __init__(self, body: ChatRequest, served: str, fingerprint: str) -> None:
        self._with_logprobs = bool(body.logprobs)
        self._head = {
            "id": new_id("chatcmpl"),
            "created": int(time.time()),
            "model": body.shown_model(served),
            "system_fingerprint": fingerprint,
        }
        self._num_calls: dict[int, int] = {}

    def object(self, generations: Sequence[Generation], usage: Usage) -> dict[str, Any]:
        choices = [self._choice(index, generation) for index, generation in enumerate(generations)]
        return {"object": "chat.completion", **self._head, "choices": choices, "usage": usage.as_dict()}

    def chunk(self, index: int, event: TextEvent) -> dict[str, Any] | None:
        """The chunk for one event; None when it carries nothing a client could see."""
        delta: dict[str, Any] = {"role": "assistant", "content": event.text}
        if event.reasoning:
            delta |= {"reasoning": event.reasoning, "reasoning_content": event.reasoning}
        calls = [_tool_call(call) | {"index": call.index} for call in event.tool_calls]
        num_calls = self._num_calls[index] = self._num_calls.get(index, 0) + len(calls)
        is_visible = bool(event.text or event.reasoning or calls or event.finish or self._with_logprobs)
        if not is_visible:
            return None
        if event.finish is not None and num_calls and not calls:
            # TGI's clients read tool_calls on every chunk of a call's stream, OpenAI's need the finish reason.
            calls = [{"index": num_calls - 1, "function": {"name": None, "arguments": ""}}]
        if calls:
            delta["tool_calls"] = calls
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs([event.token] if event.token else []),
            "finish_reason": _chat_finish(event.finish.reason, num_calls) if event.finish else None,
        }
        return {"object": "chat.completion.chunk", **self._head, "choices": [choice], "usage": None}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {"object": "chat.completion.chunk", **self._head, "choices": [], "usage": usage.as_dict()}

    def _choice(self, index: int, generation: Generation) -> dict[str, Any]:
        assert generation.finish is not None
        calls = generation.tool_calls
        message: dict[str, Any] = {"role": "assistant", "content": generation.text or (None if calls else "")}
        if generation.reasoning:
            message |= {"reasoning": generation.reasoning, "reasoning_content": generation.reasoning}
        if calls:
            message["tool_calls"] = [_tool_call(call) for call in calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(generation.tokens),
            "finish_reason": _chat_finish(generation.finish.reason, len(calls)),
        }

    def _logprobs(self, tokens: Sequence[TextToken]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {"content": [_chat_logprob(token) for token in tokens], "refusal": None}


class CompletionAnswer:
    """Owns id, time and model name of one completions call, and makes its object or its chunks."""

    def __init__(self, body: CompletionRequest, served: str, fingerprint: str) -> None:
        self._body = body
        self._head = {
            "object": "text_completion",
            "id": new_id("cmpl"),
            "created": int(time.time()),
            "model": body.shown_model(served),
            "system_fingerprint": fingerprint,
        }
        self._offsets: dict[int, int] = {}

    def object(self, generations: Sequence[Generation], usage: Usage) -> dict[str, Any]:
        choices = [self._choice(index, generation) for index, generation in enumerate(generations)]
        return {**self._head, "choices": choices, "usage": usage.as_dict()}

    def chunk(self, index: int, event: TextEvent, request: GenerationRequest) -> dict[str, Any]:
        is_first = index not in self._offsets
        echoed = request.prompt_text if is_first and self._body.echo else ""
        tokens = [*event.prompt_tokens, *([event.token] if event.token else [])]
        offset = self._offsets.get(index, 0)
        logprobs = self._logprobs(tokens, offset)
        text = echoed + event.text
        self._offsets[index] = offset + len(text)
        finish = _finish(event.finish.reason) if event.finish else None
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head, "choices": [choice], "usage": None}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": usage.as_dict()}

    def _choice(self, index: int, generation: Generation) -> dict[str, Any]:
        assert generation.finish is not None
        text = (generation.request.prompt_text if self._body.echo else "") + generation.text
        tokens = [*generation.prompt_tokens, *generation.tokens]
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(tokens, 0),
            "finish_reason": _finish(generation.finish.reason),
        }

    def _logprobs(self, tokens: Sequence[TextToken], offset: int) -> dict[str, Any] | None:
        """The legacy shape: parallel lists."""
        if self._body.logprobs is None:
            return None
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        with_top = self._body.logprobs > 0
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [logprob(token.logprob) for token in tokens],
            "top_logprobs": [_top_map(token) for token in tokens] if with_top else None,
            "text_offset": offsets,
        }


def models_response(info: ModelInfo, max_total_tokens: int) -> dict[str, Any]:
    return {"object": "list", "data": [model_entry(info, max_total_tokens)]}


def model_entry(info: ModelInfo, max_total_tokens: int) -> dict[str, Any]:
    return {
        "id": info.model_id,
        "object": "model",
        "created": 0,
        "owned_by": info.model_id,
        "max_model_len": max_total_tokens,
    }


def _finish(reason: FinishReason) -> str:
    return "length" if reason is FinishReason.LENGTH else "stop"


def _chat_finish(reason: FinishReason, num_calls: int) -> str:
    return "tool_calls" if num_calls and reason is not FinishReason.LENGTH else _finish(reason)


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def _chat_logprob(token: TextToken) -> dict[str, Any]:
    return _logprob_entry(token) | {"top_logprobs": [_logprob_entry(t) for t in token.top]}


def _logprob_entry(token: TextToken) -> dict[str, Any]:
    value = logprob(token.logprob)
    return {
        "token": token.text,
        "logprob": LOWEST_LOGPROB if value is None else value,
        "bytes": list(token.text.encode()),
    }


def _top_map(token: TextToken) -> dict[str, float | None] | None:
    """The likeliest tokens, and this one even if it is none of them; of two that read the same, the likelier."""
    if not token.top:
        return None
    values: dict[str, float | None] = {}
    for t in token.top if any(t.id == token.id for t in token.top) else (*token.top, token):
        values.setdefault(t.text, logprob(t.logprob))
    return values
