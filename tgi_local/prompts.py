"""Prompts as clients give them: messages or token ids to text and ids. Any thread; large ones take long."""

from collections.abc import Sequence

from tgi_local.conversation import Conversation
from tgi_local.text.chat_template import ChatTemplate, RenderedPrompt
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import Limits
from tgi_local.validation import check_length, checked_ids


def decode_prompt(tokenizer: TextTokenizer, token_ids: Sequence[int], limits: Limits) -> tuple[str, list[int]]:
    """The text of a prompt that was given as ids, and these. Raises ValidationError for an unknown id."""
    known_ids = checked_ids(token_ids, limits.vocab_size)
    return tokenizer.decode(known_ids, skip_special_tokens=False), known_ids


def render_prompt(template: ChatTemplate, conversation: Conversation, limits: Limits) -> RenderedPrompt:
    """Raises RequestError."""
    check_length("".join(str(message.get("content") or "") for message in conversation.messages), limits)
    return template.render(
        conversation.messages,
        tools=conversation.tools,
        add_generation_prompt=conversation.add_generation_prompt,
        continue_final_message=conversation.continue_final_message,
        template_kwargs=conversation.template_kwargs,
    )
