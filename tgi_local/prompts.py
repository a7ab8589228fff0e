"""Prompts as clients give them: messages or token ids to text and ids. Any thread; large ones take long."""

from collections.abc import Mapping, Sequence
from typing import Any

from tgi_local.text.chat_template import ChatTemplate, RenderedPrompt
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import Limits
from tgi_local.validation import check_length, checked_ids


def decode_prompt(tokenizer: TextTokenizer, token_ids: Sequence[int], limits: Limits) -> tuple[str, list[int]]:
    """The text of a prompt that was given as ids, and these. Raises ValidationError for an unknown id."""
    known_ids = checked_ids(token_ids, limits.vocab_size)
    return tokenizer.decode(known_ids, skip_special_tokens=False), known_ids


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
