"""Token events of one request to text events: detokenize, stop strings, reasoning and tool calls."""

from collections.abc import Mapping
from typing import Any

from tgi_local.text.detokenizer import Detokenizer
from tgi_local.text.loose_calls import LooseCallParser
from tgi_local.text.reasoning import ReasoningParser, ThoughtFormat
from tgi_local.text.response_template import TemplateCallParser
from tgi_local.text.stop_strings import StopStrings
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.text.tool_calls import Content, ToolCallParser
from tgi_local.text.tool_formats import HERMES, ToolFormat
from tgi_local.types import (
    Finish,
    FinishReason,
    GenerationRequest,
    SampledToken,
    TextEvent,
    TextToken,
    Timings,
    TokenEvent,
    TokenLogprob,
    ToolCallDelta,
)


class TextStream:
    """Owns the text state of one request. `step` gives an event with `finish` exactly once; after it, stop."""

    def __init__(
        self,
        request: GenerationRequest,
        tokenizer: TextTokenizer,
        thoughts: ThoughtFormat | None,
        submitted_s: float,
        tool_format: ToolFormat = HERMES,
        response_template: Mapping[str, Any] | None = None,
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._special_ids = tokenizer.special_ids
        self._submitted_s = submitted_s
        self._num_tokens = 0
        self._num_reasoning_tokens = 0
        self._num_cached_tokens = 0
        self._reasoning: ReasoningParser | None = None
        shown_ids: frozenset[int] = frozenset()
        if request.text.parse_chat and thoughts is not None:
            # Some templates open the thought themselves, at the end of the prompt.
            self._reasoning = ReasoningParser(thoughts, starts_open=thoughts.starts_open(request.prompt_text))
            shown_ids = tokenizer.special_ids & {tokenizer.token_id(token) for token in thoughts.tokens}
        self._tool_calls: ToolCallParser | LooseCallParser | TemplateCallParser | None = None
        if request.text.parse_tool_calls:
            shown_ids |= tokenizer.special_ids & {tokenizer.token_id(token) for token in tool_format.tokens}
            if request.text.are_calls_valid:
                self._tool_calls = ToolCallParser(tool_format, request.text.tools)
            elif response_template is not None:
                self._tool_calls = TemplateCallParser(response_template)
                shown_ids = tokenizer.special_ids - request.stopping.stop_token_ids
            else:
                self._tool_calls = LooseCallParser(tool_format, request.text.tools)
        self._detokenizer = Detokenizer(
            tokenizer, request.prompt_token_ids, skip_special_tokens=True, shown_ids=shown_ids
        )
        self._stops = StopStrings(request.stopping.stop_strings, keep=request.text.keep_stop_string)

    def step(self, event: TokenEvent) -> TextEvent:
        """Raises the error of an error event."""
        if event.error is not None:
            raise event.error
        assert event.token is not None
        self._num_cached_tokens += event.num_cached_tokens
        prompt_tokens = tuple(map(self._prompt_token, event.prompt_logprobs)) if event.prompt_logprobs else ()
        if self._request.text.scores_only:
            return TextEvent(None, prompt_tokens=prompt_tokens, finish=self._finish(event, FinishReason.LENGTH, None))
        self._num_tokens += 1
        increment = self._detokenizer.step(event.token.id)
        if event.finish_reason is not None:
            increment += self._detokenizer.flush()
        may_end = self._num_tokens > self._request.sampling.min_new_tokens
        emitted, matched = self._stops.step(increment, may_end=may_end)
        reason = self._finish_reason(event, matched)
        if reason is not None and matched is None:
            emitted += self._stops.flush()
        content, reasoning, tool_calls = self._parse(emitted, is_last=reason is not None)
        self._num_reasoning_tokens += bool(reasoning)
        token = self._text_token(event.token, increment)
        finish = self._finish(event, reason, matched) if reason is not None else None
        return TextEvent(token, content, reasoning, tool_calls, prompt_tokens, finish)

    def _finish_reason(self, event: TokenEvent, matched: str | None) -> FinishReason | None:
        # TGI looks at the limit and EOS first; where the stop string is cut from the text, the cut is the reason.
        if matched is not None and not self._request.text.keep_stop_string:
            return FinishReason.STOP_SEQUENCE
        return event.finish_reason or (FinishReason.STOP_SEQUENCE if matched is not None else None)

    def _finish(self, event: TokenEvent, reason: FinishReason, matched: str | None) -> Finish:
        timings = Timings(
            validation_s=self._submitted_s - self._request.received_s,
            queue_s=event.started_s - self._submitted_s,
            inference_s=event.emitted_s - event.started_s,
        )
        return Finish(reason, self._num_tokens, timings, matched, self._num_cached_tokens, self._num_reasoning_tokens)

    def _parse(self, text: str, *, is_last: bool) -> tuple[str, str, tuple[ToolCallDelta, ...]]:
        """Split text into content, reasoning and tool calls."""
        if self._reasoning is None:
            content, reasoning = text, ""
        else:
            parts = self._reasoning.step(text) + (self._reasoning.flush() if is_last else [])
            content = "".join(part for channel, part in parts if channel == "content")
            reasoning = "".join(part for channel, part in parts if channel == "reasoning")
        if self._tool_calls is None:
            return content, reasoning, ()
        items = self._tool_calls.step(content) + (self._tool_calls.flush() if is_last else [])
        content = "".join(item.text for item in items if isinstance(item, Content))
        calls = tuple(item for item in items if isinstance(item, ToolCallDelta))
        return content, reasoning, calls

    def _text_token(self, token: SampledToken, increment: str) -> TextToken:
        special = token.id in self._special_ids
        text = self._tokenizer.token_text(token.id) if special else increment
        return TextToken(token.id, text, token.logprob, special, self._alternatives(token) if token.top else ())

    def _lone_token(self, token: TokenLogprob) -> TextToken:
        """A token outside the text, such as an alternative."""
        text = self._tokenizer.token_text(token.id)
        return TextToken(token.id, text, token.logprob, self._tokenizer.is_special(token.id))

    def _prompt_token(self, token: TokenLogprob) -> TextToken:
        return self._lone_token(token)._replace(top=self._alternatives(token))

    def _alternatives(self, token: SampledToken | TokenLogprob) -> tuple[TextToken, ...]:
        return tuple(self._lone_token(alternative) for alternative in token.top)
