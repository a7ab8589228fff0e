"""Prompts as clients give them: messages or token ids to text and ids. Any thread; large ones take long."""

from collections.abc import Mapping, Sequence
from typing import Any

from tgi_local.errors import ValidationError
from tgi_local.text.chat_template import ChatTemplate, RenderedPrompt
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import Limits

# A message is at least a byte; nothing that long can fit, and tokenizing it would only hold a worker.
MAX_CHARACTERS_PER_TOKEN = 64


def check_length(text: str, limits: Limits) -> None:
    """Raises ValidationError for a text that can not fit, however it is tokenized."""
    if len(text) > limits.max_input_tokens * MAX_CHARACTERS_PER_TOKEN:
        raise ValidationError(
            f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {len(text)} characters",
            param="inputs",
            code="context_length_exceeded",
        )


def decode_prompt(tokenizer: TextTokenizer, token_ids: Sequence[int], limits: Limits) -> tuple[str, list[int]]:
    """The text of a prompt that was given as ids, and these. Raises ValidationError for an unknown id."""
    if any(not 0 <= token_id < limits.vocab_size for token_id in token_ids):
        raise ValidationError(f"`prompt` token ids must be from 0 to {limits.vocab_size - 1}", param="prompt")
    return tokenizer.decode(token_ids, skip_special_tokens=False), list(token_ids)


def render_prompt(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    template_kwargs: Mapping[str, Any] | None,
    limits: Limits,
) -> RenderedPrompt:
    """A conversation's prompt; a last message from the assistant is continued. Raises RequestError."""
    continues = bool(messages) and messages[-1].get("role") == "assistant" and not messages[-1].get("tool_calls")
    check_length("".join(str(m.get("content") or "") for m in messages), limits)
    return template.render(
        messages,
        tools=tools,
        add_generation_prompt=not continues,
        continue_final_message=continues,
        template_kwargs=template_kwargs,
    )
