"""How models write tool calls: one object of plain data for each format, and which of them a chat template means."""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ParameterTags:
    """Arguments as one element per parameter; a string stands there as it is, any other value as JSON."""

    begin: str
    name_end: str
    end: str


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Calls are written `begin (call_begin NAME name_end ARGUMENTS call_end) separator ... end`.

    `marker` opens calls in free text. Where it begins `call_begin` each call has its own, and text may come between
    calls; where it begins `begin` the calls are the last of an answer. `is_bare`: calls may also begin an answer
    without a marker. `tokens` are the strings that vocabularies have as one token.
    """

    call_begin: str
    name_end: str
    call_end: str = ""
    begin: str = ""
    separator: str = ""
    end: str = ""
    marker: str | None = None
    is_bare: bool = False
    tokens: tuple[str, ...] = ()
    parameters: ParameterTags | None = None

    @property
    def opens_each_call(self) -> bool:
        return self.marker is not None and self.call_begin.startswith(self.marker)

    @property
    def after_marker(self) -> str:
        """What follows the marker, up to the name of the first call."""
        opening = self.begin + self.call_begin
        return opening.removeprefix(self.marker) if self.marker is not None else opening

    @property
    def close_tag(self) -> str:
        """What tells the end of calls that were opened by the marker; empty where nothing does."""
        tail = (self.call_end if self.opens_each_call else self.end).strip()
        return next((token for token in self.tokens if tail.endswith(token)), "")

    def spell_name(self, name: str) -> str:
        """A function's name as it stands between `call_begin` and `name_end`."""
        return json.dumps(name, ensure_ascii=False)[1:-1] if self.call_begin.endswith('"') else name


HERMES = ToolFormat(
    call_begin='<tool_call>\n{"name": "',
    name_end='", "arguments": ',
    call_end="}\n</tool_call>",
    separator="\n",
    marker="<tool_call>",
    tokens=("<tool_call>", "</tool_call>"),
)
QWEN_CODER = ToolFormat(
    call_begin="<tool_call>\n<function=",
    name_end=">\n",
    call_end="</function>\n</tool_call>",
    separator="\n",
    marker="<tool_call>",
    tokens=("<tool_call>", "</tool_call>"),
    parameters=ParameterTags("<parameter=", ">\n", "\n</parameter>\n"),
)
GLM = ToolFormat(
    call_begin="<tool_call>",
    name_end="\n",
    call_end="</tool_call>",
    separator="\n",
    marker="<tool_call>",
    tokens=("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    parameters=ParameterTags("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
)
_LIST = ToolFormat(call_begin='{"name": "', name_end='", "arguments": ', call_end="}", separator=", ", end="]")
MISTRAL = replace(
    _LIST,
    begin="[TOOL_CALLS] [",
    marker="[TOOL_CALLS]",
    tokens=("[TOOL_CALLS]",),
)
MISTRAL_TEKKEN = replace(
    _LIST,
    begin="[TOOL_CALLS][",
    marker="[TOOL_CALLS]",
    tokens=("[TOOL_CALLS]",),
)
MISTRAL_NAMED = ToolFormat(
    call_begin="[TOOL_CALLS]",
    name_end="[ARGS]",
    marker="[TOOL_CALLS]",
    tokens=("[TOOL_CALLS]", "[ARGS]"),
)
GRANITE = replace(
    _LIST,
    begin="<|tool_call|>[",
    marker="<|tool_call|>",
    tokens=("<|tool_call|>",),
)
PHI = replace(
    _LIST,
    begin="<|tool_call|>[",
    end="]<|/tool_call|>",
    marker="<|tool_call|>",
    tokens=("<|tool_call|>", "<|/tool_call|>"),
)
DEEPSEEK = ToolFormat(
    begin="<｜tool▁calls▁begin｜>",
    call_begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    name_end="\n```json\n",
    call_end="\n```<｜tool▁call▁end｜>",
    separator="\n",
    end="<｜tool▁calls▁end｜>",
    marker="<｜tool▁calls▁begin｜>",
    tokens=(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
)
DEEPSEEK_V31 = ToolFormat(
    begin="<｜tool▁calls▁begin｜>",
    call_begin="<｜tool▁call▁begin｜>",
    name_end="<｜tool▁sep｜>",
    call_end="<｜tool▁call▁end｜>",
    end="<｜tool▁calls▁end｜>",
    marker="<｜tool▁calls▁begin｜>",
    tokens=DEEPSEEK.tokens,
)
LLAMA = ToolFormat(
    call_begin='{"name": "',
    name_end='", "parameters": ',
    call_end="}",
    separator="; ",
    marker="<|python_tag|>",
    is_bare=True,
    tokens=("<|python_tag|>",),
)
# For templates whose format nobody here knows: what most of them ask for in words.
JSON = ToolFormat(call_begin='{"name": "', name_end='", "arguments": ', call_end="}", separator="; ", is_bare=True)

# What a template must hold, the most telling first.
_BY_TEMPLATE = (
    (("<tool_call>", "<function="), QWEN_CODER),
    (("<tool_call>", "<arg_key>"), GLM),
    (("<tool_call>",), HERMES),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL_NAMED),
    (("[TOOL_CALLS] [",), MISTRAL),
    (("[TOOL_CALLS]",), MISTRAL_TEKKEN),
    (("<|tool_call|>", "<|/tool_call|>"), PHI),
    (("<|tool_call|>",), GRANITE),
    (("<｜tool▁calls▁begin｜>", "```json"), DEEPSEEK),
    (("<｜tool▁calls▁begin｜>",), DEEPSEEK_V31),
    (("<|python_tag|>",), LLAMA),
    (('"parameters": ', '"name": '), LLAMA),
)
# What a vocabulary must hold, where the template only describes the tools.
_BY_VOCABULARY = (
    (("<|tool_call|>", "<|/tool_call|>"), PHI),
    (("<|tool_call|>",), GRANITE),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL_NAMED),
    (("[TOOL_CALLS]",), MISTRAL),
    (("<|python_tag|>",), LLAMA),
    (("<tool_call>", "</tool_call>"), HERMES),
)


def find_format(template: str, added_tokens: Collection[str]) -> ToolFormat | None:
    """The format that a chat template's source shows, or else the one that the vocabulary was made for."""
    for signs, format in _BY_TEMPLATE:
        if all(sign in template for sign in signs):
            return format
    for signs, format in _BY_VOCABULARY:
        if all(sign in added_tokens for sign in signs):
            return format
    return None
