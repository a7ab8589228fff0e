"""Grammars that constrain what a model may write: JSON schemas, regular expressions and tool calls, by llguidance."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from tgi_local.constraints import AnswerGrammar, GrammarSource, JsonGrammar, TextGrammar, ToolGrammar, ToolSignature
from tgi_local.errors import ValidationError
from tgi_local.text import json_schema, text_grammar, tool_grammar
from tgi_local.text.reasoning import NO_THOUGHTS, ThoughtFormat
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.text.tool_formats import HERMES, ToolFormat
from tgi_local.text.tool_grammar import Spelling, Thought
from tgi_local.types import GenerationRequest

logger = logging.getLogger(__name__)

CACHE_SIZE = 64
MAX_PATTERN_LEN = 16 * 1024
MAX_FAULT_LEN = 160
ANY_OBJECT = json.dumps({"type": "object", "x-guidance": {"whitespace_pattern": json_schema.WHITESPACE}})
# A lexer state takes up to 2 kB, which bounds a request's memory; a row of this size holds 2000 optional properties.
LIMITS = LLParserLimits(max_lexer_states=50_000, max_items_in_row=8_000, verbose_errors=False)


@dataclass(frozen=True, slots=True)
class _EndTokens:
    """What ends an answer. Not `is_real`: a token that stands in where the tokenizer has no such token."""

    ids: tuple[int, ...]
    is_real: bool


class GrammarState:
    """Owns one sequence's place in a grammar. Implements `TokenConstraint`."""

    def __init__(self, matcher: LLMatcher, ends: _EndTokens) -> None:
        self._matcher = matcher
        self._ends = ends
        self._has_ended = False

    @property
    def is_finished(self) -> bool:
        return self._has_ended or (not self._ends.is_real and self._matcher.is_stopped())

    def allowed_tokens(self) -> bytes:
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            return bytes(len(mask))
        if not self._ends.is_real:
            cleared = bytearray(mask)
            for token_id in self._ends.ids:
                cleared[token_id // 8] &= ~(1 << token_id % 8) & 0xFF
            return bytes(cleared)
        return mask

    def advance(self, token_id: int) -> None:
        if not self._matcher.consume_token(token_id):
            raise ValueError(f"the grammar can not be followed further: {_fault(self._matcher.get_error())}")
        self._has_ended = token_id in self._ends.ids


class CompiledGrammar:
    """A grammar at its beginning. Immutable, so any thread may start sequences from it."""

    def __init__(self, matcher: LLMatcher, ends: _EndTokens) -> None:
        self._matcher = matcher
        self._ends = ends

    def start(self) -> GrammarState:
        return GrammarState(self._matcher.deep_copy(), self._ends)


class GrammarCompiler:
    """Owns the compiled grammars of one model, the most recently used of them. Any thread may call it.

    Everything raises ValidationError for a grammar that is not valid.
    """

    def __init__(
        self,
        tokenizer: LLTokenizer,
        ends: _EndTokens,
        spelling: Spelling,
        format: ToolFormat,
        thoughts: ThoughtFormat | None,
        constrains_auto: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._spelling = spelling
        self._format = format
        self._thoughts = thoughts
        self._constrains_auto = constrains_auto
        self._compiled = lru_cache(CACHE_SIZE)(self._compile)

    @classmethod
    def load(
        cls,
        tokenizer: TextTokenizer,
        eos_token_ids: frozenset[int],
        vocab_size: int,
        *,
        format: ToolFormat = HERMES,
        thoughts: ThoughtFormat | None = None,
        constrains_auto: bool = True,
    ) -> Self:
        """`vocab_size` is that of the model's logits; `format` is how the model writes calls.

        Not `constrains_auto`: calls that nobody forces are written in a format of which only others know how to read it.

        Raises ValueError for a tokenizer that llguidance can not read.
        """
        ids = tuple(sorted(eos_token_ids)) or tokenizer.eos_token_ids
        control_ids = _control_ids(tokenizer.description)
        ends = _EndTokens(ids or tuple(sorted(control_ids))[:1] or (0,), is_real=bool(ids))
        described = LLTokenizer(
            _without_control_texts(tokenizer.description),
            n_vocab=max(vocab_size, tokenizer.vocab_size),
            eos_token=list(ends.ids),
        )
        token_ids = {
            token: token_id
            for token in (*format.tokens, *(thoughts or NO_THOUGHTS).tokens)
            if (token_id := tokenizer.token_id(token)) in control_ids and token_id is not None
        }
        return cls(described, ends, Spelling(token_ids, control_ids, ends.ids), format, thoughts, constrains_auto)

    def constrain(self, request: GenerationRequest, source: GrammarSource) -> GenerationRequest:
        """`request` with its grammar, which leaves room for the thoughts of a chat."""
        if isinstance(source, ToolGrammar) and not (source.is_forced or source.answer or self._constrains_auto):
            return request
        grammar = self.compile(source, self._thought(request))
        if not isinstance(source, ToolGrammar):
            return replace(request, grammar=grammar)
        return replace(request, grammar=grammar, text=replace(request.text, are_calls_valid=True))

    def compile(self, source: GrammarSource, thought: Thought | None = None) -> CompiledGrammar:
        field = "tools" if isinstance(source, ToolGrammar) else source.field
        try:
            if not isinstance(source, ToolGrammar):
                return self._compiled((), False, 0, _rule(source), thought)
            names = tuple((tool.name, _arguments_schema(tool)) for tool in source.tools)
            answer = None
            if source.answer is not None:
                field = source.answer.field
                answer, field = _rule(source.answer), "tools"
            return self._compiled(names, source.is_forced, source.max_calls, answer, thought)
        except ValueError as error:
            fault = _placed(_fault(str(error)), source)
            raise ValidationError(f"grammar is not valid: {fault}", param=field) from None

    def _thought(self, request: GenerationRequest) -> Thought | None:
        """What may come before the answer: templates open a thought, leave that to the model, or close an empty one."""
        if self._thoughts is None or not request.text.parse_chat:
            return None
        if self._thoughts.starts_open(request.prompt_text):
            return "open"
        return None if self._thoughts.starts_closed(request.prompt_text) else "possible"

    def _compile(
        self,
        tools: Sequence[tuple[str, str]],
        is_forced: bool,
        max_calls: int,
        answer: str | None,
        thought: Thought | None,
    ) -> CompiledGrammar:
        thoughts = self._thoughts or NO_THOUGHTS
        if not tools:
            assert answer is not None
            lark = tool_grammar.constrained_answer(self._spelling, answer, thought, thoughts)
        else:
            lark = tool_grammar.answer_with_calls(
                self._spelling,
                self._format,
                tools,
                max_calls,
                is_forced=is_forced,
                answer=answer,
                thought=thought,
                thoughts=thoughts,
            )
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what can not even begin is refused here
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return CompiledGrammar(matcher, self._ends)


def _is_control(token: dict[str, Any]) -> bool:
    """llguidance takes added tokens of this shape for control tokens, whatever the tokenizer says of them."""
    return token["special"] or (token["content"].startswith("<") and token["content"].endswith(">"))


def _control_ids(description: str) -> frozenset[int]:
    return frozenset(token["id"] for token in json.loads(description)["added_tokens"] if _is_control(token))


def _without_control_texts(description: str) -> str:
    """The tokenizer with control tokens that no text spells, so that text which a grammar forces is never one.

    A grammar names them by id.
    """
    tokenizer = json.loads(description)
    new_names = {
        token["content"]: f"<\ue000{token['id']}>" for token in tokenizer["added_tokens"] if _is_control(token)
    }
    for token in tokenizer["added_tokens"]:
        token["content"] = new_names.get(token["content"], token["content"])
    model = tokenizer["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {new_names.get(piece, piece): id for piece, id in model["vocab"].items()}
    else:
        model["vocab"] = [[new_names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "unk_token" in model:
        model["unk_token"] = new_names.get(model["unk_token"], model["unk_token"])
    tokenizer["post_processor"] = None  # names them, too
    return json.dumps(tokenizer)


def _rule(source: AnswerGrammar) -> str:
    """The right side of a rule. Raises ValueError."""
    if isinstance(source, JsonGrammar):
        if not isinstance(source.schema, str | Mapping):
            raise ValidationError("grammar is not supported", param=source.field)
        return _schema_rule(json_schema.canonical(source.schema), source.strict)
    if isinstance(source, TextGrammar):
        return text_grammar.rule(source.text, LIMITS)
    if len(source.pattern) > MAX_PATTERN_LEN:
        raise ValueError(f"a regular expression may have at most {MAX_PATTERN_LEN} characters")
    grammar = json.loads(LLMatcher.grammar_from_regex(source.pattern))
    rule: str = grammar["grammars"][0]["lark_grammar"]
    return rule.removeprefix("start: ")


@lru_cache(CACHE_SIZE)
def _schema_rule(text: bytes, strict: bool) -> str:
    schema = json_schema.prepare(text, strict=strict)
    if not strict:
        is_wrong, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_json_schema(schema))
        if messages and not is_wrong:
            logger.warning(
                "a schema that is not strict is followed without some of its keywords: %s", _fault(messages[0])
            )
    return f"%json {json.dumps(schema)}"


def _arguments_schema(tool: ToolSignature) -> str:
    """The schema of a tool's arguments as JSON. Raises ValueError for a strict one that can not be enforced in full."""
    try:
        return _prepared_arguments(json_schema.canonical(tool.parameters), tool.strict)
    except ValueError:
        if tool.strict:
            raise
        return ANY_OBJECT


@lru_cache(4 * CACHE_SIZE)
def _prepared_arguments(text: bytes, strict: bool) -> str:
    schema = json_schema.prepare(text, strict=strict)
    if schema.setdefault("type", "object") != "object":
        raise ValueError("the arguments of a function are an object")
    grammar = LLMatcher.grammar_from_json_schema(schema)
    is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
    if is_wrong:
        raise ValueError(json_schema.with_place(_fault(messages[0]), json.loads(text)))
    return json.dumps(schema)


def _placed(fault: str, source: GrammarSource) -> str:
    """The same with the place in the schema, where the fault is a keyword of it."""
    answer = source.answer if isinstance(source, ToolGrammar) else source
    if not isinstance(answer, JsonGrammar) or not fault.startswith(json_schema.UNKNOWN_KEYWORDS):
        return fault
    schema = json.loads(answer.schema) if isinstance(answer.schema, str) else answer.schema
    return json_schema.with_place(fault, schema)


def _fault(message: str) -> str:
    """The heart of llguidance's message, which may quote the whole grammar around it."""
    heart = message.rpartition("error: ")[2]
    heart = heart.rpartition("failed to compile JSON schema: ")[2]
    return " ".join(heart.split("\n")[0].split())[:MAX_FAULT_LEN]
