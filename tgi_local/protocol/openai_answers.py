"""OpenAI's answers: objects and stream chunks, with the keys that strict TGI clients look for."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from tgi_local.model_info import ModelInfo
from tgi_local.protocol.custom_tools import InputReader, input_of
from tgi_local.protocol.openai import ChatRequest, CompletionRequest
from tgi_local.protocol.tgi import logprob
from tgi_local.protocol.wire import new_id
from tgi_local.types import (
    Finish,
    FinishReason,
    Generation,
    GenerationRequest,
    TextEvent,
    TextToken,
    ToolCall,
    ToolCallDelta,
)

# OpenAI clients expect numbers; an excluded token has none.
LOWEST_LOGPROB = -9999.0
_NO_CALL = ToolCallDelta(-1, None, "")


class Usage:
    """Token counts of one call, over all its choices; a prompt shared by several choices counts once."""

    def __init__(self, num_choices: int) -> None:
        """`num_choices` per prompt."""
        self.num_choices = num_choices
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
        if index % self.num_choices == 0:
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
        self._num_top = body.top_logprobs or 0
        self._head = {
            "id": new_id("chatcmpl"),
            "created": int(time.time()),
            "model": body.shown_model(served),
            "system_fingerprint": fingerprint,
        }
        self._is_function_call = body.calls_functions
        self._custom_names = body.custom_names
        self._inputs: dict[tuple[int, int], InputReader] = {}  # of custom tools' calls, by choice and call
        self._last_pieces: dict[int, ToolCallDelta] = {}

    def object(self, generations: Sequence[Generation], usage: Usage) -> dict[str, Any]:
        choices = [self._choice(index, generation) for index, generation in enumerate(generations)]
        return {"object": "chat.completion", **self._head, "choices": choices, "usage": usage.as_dict()}

    def chunk(self, index: int, event: TextEvent) -> dict[str, Any] | None:
        """The chunk for one event; None when it carries nothing a client could see."""
        delta: dict[str, Any] = {"role": "assistant", "content": event.text}
        if event.reasoning:
            delta |= {"reasoning": event.reasoning, "reasoning_content": event.reasoning}
        calls = list(event.tool_calls)
        last = self._last_pieces[index] = calls[-1] if calls else self._last_pieces.get(index, _NO_CALL)
        is_visible = bool(event.text or event.reasoning or calls or event.finish or self._with_logprobs)
        if not is_visible:
            return None
        if event.finish is not None and last is not _NO_CALL and not calls:
            # TGI's clients read tool_calls on every chunk of a call's stream, OpenAI's need the finish reason.
            calls = [ToolCallDelta(last.index, None, "")]
        if calls and self._is_function_call:
            delta["function_call"] = _function_delta(calls[0])
        elif calls:
            delta["tool_calls"] = [self._tool_call_delta(index, call) for call in calls]
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs([event.token] if event.token else []),
            "finish_reason": self._finish(event.finish, last.is_last) if event.finish else None,
        }
        return {"object": "chat.completion.chunk", **self._head, "choices": [choice], "usage": None}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {"object": "chat.completion.chunk", **self._head, "choices": [], "usage": usage.as_dict()}

    def _choice(self, index: int, generation: Generation) -> dict[str, Any]:
        assert generation.finish is not None
        calls = generation.tool_calls
        content = generation.text or (None if calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if generation.reasoning:
            message |= {"reasoning": generation.reasoning, "reasoning_content": generation.reasoning}
        if calls and self._is_function_call:
            message["function_call"] = _function(calls[0])
        elif calls:
            message["tool_calls"] = [self._tool_call(call) for call in calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(generation.tokens),
            "finish_reason": self._finish(generation.finish, bool(calls) and calls[-1].is_complete),
        }

    def _tool_call(self, call: ToolCall) -> dict[str, Any]:
        if call.name in self._custom_names:
            custom = {"name": call.name, "input": input_of(call.arguments)}
            return {"id": _call_id(), "type": "custom", "custom": custom}
        return {"id": _call_id(), "type": "function", "function": _function(call)}

    def _tool_call_delta(self, choice: int, piece: ToolCallDelta) -> dict[str, Any]:
        """`id` and `type` come with the name."""
        if piece.name in self._custom_names:
            self._inputs[choice, piece.index] = InputReader()
        reader = self._inputs.get((choice, piece.index))
        kind = "function" if reader is None else "custom"
        head = {} if piece.name is None else {"id": _call_id(), "type": kind}
        if reader is None:
            return {"index": piece.index, **head, kind: _function_delta(piece)}
        name = {} if piece.name is None else {"name": piece.name}
        return {"index": piece.index, **head, kind: {**name, "input": reader.read(piece.arguments)}}

    def _finish(self, finish: Finish, ends_with_call: bool) -> str:
        """`ends_with_call`: there are calls, and the last of them is whole."""
        if not ends_with_call or finish.reason is FinishReason.LENGTH:
            return _finish(finish.reason)
        return "function_call" if self._is_function_call else "tool_calls"

    def _logprobs(self, tokens: Sequence[TextToken]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {"content": [chat_logprob(token, self._num_top) for token in tokens], "refusal": None}


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
        likeliest = _likeliest(generations, self._body.num_samples, self._body.num_choices)
        choices = [self._choice(index, generation) for index, generation in enumerate(likeliest)]
        return {**self._head, "choices": choices, "usage": usage.as_dict()}

    def chunk(self, index: int, event: TextEvent, request: GenerationRequest) -> dict[str, Any]:
        is_first = index not in self._offsets
        echoed = request.prompt_text if is_first and self._body.with_prompt else ""
        offset = self._offsets.get(index, 0)
        logprobs = self._logprobs(event.prompt_tokens, [event.token] if event.token else [], echoed, offset)
        text = echoed + event.text
        self._offsets[index] = offset + len(text)
        finish = _finish(event.finish.reason) if event.finish else None
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head, "choices": [choice], **self._usage_of_chunk(event, request)}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": usage.as_dict()}

    def _usage_of_chunk(self, event: TextEvent, request: GenerationRequest) -> dict[str, Any]:
        """Null where a chunk of its own will have it, as OpenAI does; else the choice's own with its last, as TGI does."""
        if self._body.include_usage:
            return {"usage": None}
        if event.finish is None:
            return {}
        usage = Usage(1)
        usage.add_prompt(request)
        usage.add_completion(0, event.finish)
        return {"usage": usage.as_dict()}

    def _choice(self, index: int, generation: Generation) -> dict[str, Any]:
        assert generation.finish is not None
        echoed = generation.request.prompt_text if self._body.with_prompt else ""
        return {
            "index": index,
            "text": echoed + generation.text,
            "logprobs": self._logprobs(generation.prompt_tokens, generation.tokens, echoed, 0),
            "finish_reason": _finish(generation.finish.reason),
        }

    def _logprobs(
        self, prompt_tokens: Sequence[TextToken], new_tokens: Sequence[TextToken], echoed: str, offset: int
    ) -> dict[str, Any] | None:
        """The legacy shape: parallel lists. `offset` is where `echoed` begins, and the new tokens after it."""
        if self._body.logprobs is None:
            return None
        offsets = [offset + position for position in _places(prompt_tokens, echoed)]
        offset += len(echoed)
        for token in new_tokens:
            offsets.append(offset)
            offset += len(token.text)
        tokens = [*prompt_tokens, *new_tokens]
        num_top = self._body.logprobs
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [logprob(token.logprob) for token in tokens],
            "top_logprobs": [_top_map(token, num_top) for token in tokens],
            "text_offset": offsets,
        }


def _places(tokens: Sequence[TextToken], text: str) -> list[int]:
    """Where each token of a prompt begins in it.

    A token of its own reads otherwise than in its place where it is a part of a character, lacks its space, or was put
    before the text. The next one that is found says how far such tokens reach.
    """
    places: list[int] = []
    place = reach = 0  # `reach`: how many characters the tokens since the last one that was found can come to
    for token in tokens:
        found = text.find(token.text, place, place + reach + len(token.text) + 1) if token.text else -1
        places.append(place if found < 0 else found)
        if found < 0:
            reach += len(token.text)
        else:
            place, reach = found + len(token.text), 0
    return places


def _likeliest(generations: Sequence[Generation], num_samples: int, count: int) -> list[Generation]:
    """Of each prompt's `num_samples` the `count` with the highest mean log-probability; all of them as they came."""
    if num_samples == count:
        return list(generations)
    chosen: list[Generation] = []
    for start in range(0, len(generations), num_samples):
        samples = generations[start : start + num_samples]
        chosen += sorted(samples, key=lambda generation: -generation.mean_logprob)[:count]
    return chosen


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


def _function_delta(piece: ToolCallDelta) -> dict[str, Any]:
    name = {} if piece.name is None else {"name": piece.name}
    return {**name, "arguments": piece.arguments}


def _function(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def chat_logprob(token: TextToken, num_top: int) -> dict[str, Any]:
    return _logprob_entry(token) | {"top_logprobs": [_logprob_entry(t) for t in token.top[:num_top]]}


def _logprob_entry(token: TextToken) -> dict[str, Any]:
    value = logprob(token.logprob)
    return {
        "token": token.text,
        "logprob": LOWEST_LOGPROB if value is None else value,
        "bytes": list(token.text.encode()),
    }


def _top_map(token: TextToken, num_top: int) -> dict[str, float | None] | None:
    """The likeliest tokens, and this one even if it is none of them; of two that read the same, the likelier.

    None for a prompt's first token, which nothing predicts.
    """
    if token.logprob is None and not token.top:
        return None
    top = token.top[:num_top]
    values: dict[str, float | None] = {}
    for t in top if any(t.id == token.id for t in top) else (*top, token):
        values.setdefault(t.text, logprob(t.logprob))
    return values
