"""Messages and tools to the prompt a model was trained on."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import TracebackType
from typing import Any, NamedTuple

from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import TemplateError as JinjaTemplateError

from tgi_local.errors import TemplateError, ValidationError
from tgi_local.text.control_tokens import ControlTokenShield, find_control_tokens, iter_strings
from tgi_local.text.messages import normalize_messages
from tgi_local.text.reasoning import ThoughtFormat, find_thoughts
from tgi_local.text.response_template import reads_calls
from tgi_local.text.template_traits import TemplateTraits, probe
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.text.tool_formats import HERMES, JSON, ToolFormat, find_format
from tgi_local.text.tool_messages import fit_messages
from tgi_local.types import TokenSpan

# What running a template can raise: Jinja's own errors, and Python's from the expressions in it.
_RENDER_ERRORS = (
    JinjaTemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_MAX_DETAIL_LEN = 300
_MIN_REDACTED_LEN = 4


class Piece(NamedTuple):
    """A part of a prompt that is tokenized apart. `is_literal`: no control token, though it spells one."""

    text: str
    is_literal: bool = False
    is_first: bool = False


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt as text and as the token ids the model gets."""

    token_ids: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class ChatTemplate:
    """Owns a checkpoint's chat template. Immutable, so any thread may call it.

    No string of a request ever becomes a control token of the prompt; one that would is encoded as plain text.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._source = tokenizer.chat_template
        self._tool_source = tokenizer.chat_template_for(tools=[{}])
        sources = f"{self._source or ''}\0{self._tool_source or ''}"
        control_tokens = find_control_tokens(tokenizer.special_tokens, tokenizer.added_tokens, sources)
        self._control_ids = frozenset(
            token_id for token in control_tokens if (token_id := tokenizer.token_id(token)) is not None
        ) - {tokenizer.unknown_token_id}
        is_normalized = not tokenizer.normalized_tokens.isdisjoint(control_tokens)
        self._shield = ControlTokenShield(control_tokens, is_normalized=is_normalized)
        self._all_sources = sources
        self._traits = probe(self._render_probe, sources) if self._tool_source is not None else TemplateTraits()
        self.tool_format: ToolFormat = self._find_tool_format()
        self.thoughts: ThoughtFormat | None = find_thoughts(sources, tokenizer.added_tokens)
        # Read where nobody here knows the format: it can not be a grammar, and tells calls only when they are whole.
        found = tokenizer.response_template if self.tool_format is JSON else None
        self.response_template: Mapping[str, Any] | None = found if reads_calls(found) else None

    @property
    def supports_tools(self) -> bool:
        """Whether the template writes the tools it is given; otherwise they are described in a message."""
        return self._traits.writes_tools or self._traits.writes_system_tools

    def reads(self, variable: str) -> bool:
        """Whether the template looks at a variable of this name."""
        return re.search(rf"\b{re.escape(variable)}\b", self._all_sources) is not None

    def _find_tool_format(self) -> ToolFormat:
        """How the model writes calls: as it was trained to, or as the tools' description asks for."""
        if not self.supports_tools:
            return HERMES
        return find_format(self._tool_source or "", self._tokenizer.added_tokens) or JSON

    def _render_probe(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
        return self._tokenizer.render_chat(messages, tools=tools, add_generation_prompt=True)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        """The prompt of a conversation. Raises `TemplateError`, and `ValidationError` for text that is not Unicode."""
        if (self._tool_source if tools else self._source) is None:
            raise TemplateError("template not found")
        self._check_template_kwargs(template_kwargs or {})
        fitted, shown_tools = fit_messages(normalize_messages(messages), tools, self._traits)
        conversation: dict[str, Any] = {
            "messages": fitted,
            "tools": list(shown_tools) if shown_tools else None,
            "kwargs": dict(template_kwargs or {}),
        }
        if continue_final_message:
            # As TGI: white space at the end would keep the model from its own tokens, which begin with a space.
            last = conversation["messages"][-1]
            last["content"] = last["content"].rstrip()
        options = {
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            "continue_final_message": continue_final_message,
        }
        prompt = self._render_shielded(conversation, options)
        self._check_control_ids(prompt, conversation, options)
        return prompt

    def _render_shielded(self, conversation: dict[str, Any], options: dict[str, bool]) -> RenderedPrompt:
        if not self._shield.contains_token(conversation):
            pieces = [Piece(self._render_text(conversation, options), is_first=True)]
        else:
            marking = self._shield.new_marking()
            pieces = []
            for text, is_literal in marking.split(self._render_text(marking.apply(conversation), options)):
                pieces += self._literal_pieces(text) if is_literal else [Piece(text, is_first=not pieces)]
        return RenderedPrompt(tuple(id for piece in pieces for id in self._encode(piece)), tuple(pieces))

    def _literal_pieces(self, text: str) -> list[Piece]:
        pieces = [Piece(text, is_literal=True)]
        if not self._control_ids.isdisjoint(self._encode(pieces[0])):
            # A unigram vocabulary can hold the token as an ordinary piece too; its characters alone are never one.
            pieces = [Piece(character, is_literal=True) for character in text]
            if not all(self._control_ids.isdisjoint(self._encode(piece)) for piece in pieces):
                raise TemplateError("a message spells a special token that this tokenizer can not write as text")
        return pieces

    def _encode(self, piece: Piece) -> list[int]:
        if piece.is_first:
            return self._tokenizer.encode(piece.text, add_special_tokens=False)
        return self._tokenizer.encode_continuation(piece.text, literal=piece.is_literal)

    def spans(self, prompt: RenderedPrompt) -> list[TokenSpan]:
        """The tokens of a prompt with the bytes of its text they came from."""
        spans: list[TokenSpan] = []
        start = 0
        for piece in prompt.pieces:
            if piece.is_first:
                found = self._tokenizer.encode_spans(piece.text, add_special_tokens=False)
            else:
                found = self._tokenizer.continuation_spans(piece.text, literal=piece.is_literal)
            spans += [replace(span, start=span.start + start, stop=span.stop + start) for span in found]
            start += len(piece.text.encode())
        return spans

    def _check_control_ids(
        self, prompt: RenderedPrompt, conversation: dict[str, Any], options: dict[str, bool]
    ) -> None:
        """Refuse text that only became a control token when the template joined it, or the tokenizer normalized it."""
        if not self._shield.is_suspicious(conversation):
            return
        neutral_text = self._render_text(self._shield.neutralize(conversation), options)
        neutral_ids = self._tokenizer.encode(neutral_text, add_special_tokens=False)
        if self._only_control(prompt.token_ids) != self._only_control(neutral_ids):
            raise TemplateError("messages must not form special tokens")

    def _only_control(self, token_ids: Sequence[int]) -> list[int]:
        return [token_id for token_id in token_ids if token_id in self._control_ids]

    def _render_text(self, conversation: dict[str, Any], options: dict[str, bool]) -> str:
        try:
            return self._tokenizer.render_chat(
                conversation["messages"], tools=conversation["tools"], **options, **conversation["kwargs"]
            )
        except _RENDER_ERRORS as error:
            raise TemplateError(self._describe(error, conversation)) from error

    def _check_template_kwargs(self, template_kwargs: Mapping[str, Any]) -> None:
        reserved = _reserved_names() | self._tokenizer.template_variables
        if not reserved.isdisjoint(template_kwargs):
            raise ValidationError("`chat_template_kwargs` holds a reserved name", param="chat_template_kwargs")

    def _describe(self, error: Exception, conversation: dict[str, Any]) -> str:
        detail = self._redact(str(error), conversation) if _has_safe_text(error) else type(error).__name__
        line = _template_line(error.__traceback__)
        place = f" (in <string>:{line})" if line else ""
        return f"{_error_kind(error)}: {detail}{place}"

    def _redact(self, detail: str, conversation: dict[str, Any]) -> str:
        """What the template's author wrote, without what the client sent."""
        if detail not in self._all_sources:
            for text in sorted(set(iter_strings(conversation)), key=len, reverse=True):
                if len(text) >= _MIN_REDACTED_LEN and text not in self._all_sources:
                    detail = detail.replace(text, "...")
        return " ".join(detail.split())[:_MAX_DETAIL_LEN]


def _has_safe_text(error: Exception) -> bool:
    """Python's own messages quote values; the template's `raise_exception` and Jinja's name what is missing."""
    return isinstance(error, JinjaTemplateError) and not isinstance(error, SecurityError)


def _error_kind(error: Exception) -> str:
    if isinstance(error, UndefinedError):
        return "undefined value"
    if type(error) is JinjaTemplateError or isinstance(error, TemplateSyntaxError):
        return "syntax error"
    return "invalid operation"


def _template_line(traceback: TracebackType | None) -> int | None:
    """The line of the template in which an error was raised; Jinja gives its frames this file name."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


@lru_cache(maxsize=1)
def _reserved_names() -> frozenset[str]:
    """Names a client may not pass to the template: `chat_template` would be its own template."""
    from transformers import PreTrainedTokenizerBase

    parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset(parameters) - {"documents"} | {"messages", "return_assistant_tokens_mask"}
