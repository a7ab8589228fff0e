"""How models write tool calls: one object of plain data for each format, and which of them a chat template means."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

# Stands in a format for an id or a number, which the model chooses.
ID = "\0"
_ID_RUN = re.compile(r"[0-9A-Za-z]*")


@dataclass(frozen=True, slots=True)
class ParameterTags:
    """Arguments as one element per parameter, not as a JSON object.

    With `quotes`, strings stand between two of one of them, and what has none is a literal; without, a string stands as it
    is up to `end`, and any other value as JSON. `is_python`: backslashes escape, and `True`, `None` are words.
    """

    begin: str
    name_end: str
    end: str
    separator: str = ""
    quotes: tuple[str, ...] = ()
    is_python: bool = False


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


def match_head(head: str, text: str) -> int:
    """How many characters of `text` are this beginning of a call; 0 where more text may tell, -1 where it is not one."""
    position = 0
    for index, part in enumerate(head.split(ID)):
        if index:
            run = _ID_RUN.match(text, position)
            assert run is not None
            if run.end() == len(text):
                return 0
            if run.end() == position:
                return -1
            position = run.end()
        rest = text[position:]
        if not rest.startswith(part):
            return 0 if part.startswith(rest) else -1
        position += len(part)
    return position


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
GLM_47 = replace(
    GLM, name_end="", separator="", parameters=ParameterTags("<arg_key>", "</arg_key><arg_value>", "</arg_value>")
)
SEED = ToolFormat(
    call_begin="<seed:tool_call>\n<function=",
    name_end=">\n",
    call_end="</function>\n</seed:tool_call>",
    separator="\n",
    marker="<seed:tool_call>",
    tokens=("<seed:tool_call>", "</seed:tool_call>"),
    parameters=ParameterTags("<parameter=", ">", "</parameter>\n"),
)
MINIMAX = ToolFormat(
    begin="<minimax:tool_call>\n",
    call_begin='<invoke name="',
    name_end='">\n',
    call_end="</invoke>\n",
    end="</minimax:tool_call>",
    marker="<minimax:tool_call>",
    tokens=("<minimax:tool_call>", "</minimax:tool_call>"),
    parameters=ParameterTags('<parameter name="', '">', "</parameter>\n"),
)
FUNCTION_GEMMA = ToolFormat(
    call_begin="<start_function_call>call:",
    name_end="{",
    call_end="}<end_function_call>",
    marker="<start_function_call>",
    tokens=("<start_function_call>", "<end_function_call>", "<escape>"),
    parameters=ParameterTags("", ":", "", ",", quotes=("<escape>",)),
)
GEMMA4 = ToolFormat(
    call_begin="<|tool_call>call:",
    name_end="{",
    call_end="}<tool_call|>",
    marker="<|tool_call>",
    tokens=("<|tool_call>", "<tool_call|>", '<|"|>'),
    parameters=ParameterTags("", ":", "", ",", quotes=('<|"|>',)),
)
# As Python calls functions: Llama 3.2 and 4 by vLLM's templates.
PYTHONIC = ToolFormat(
    begin="[",
    call_begin="",
    name_end="(",
    call_end=")",
    separator=", ",
    end="]",
    is_bare=True,
    parameters=ParameterTags("", "=", "", ", ", quotes=("'", '"'), is_python=True),
)
LFM2 = replace(
    PYTHONIC,
    begin="<|tool_call_start|>[",
    end="]<|tool_call_end|>",
    marker="<|tool_call_start|>",
    is_bare=False,
    tokens=("<|tool_call_start|>", "<|tool_call_end|>"),
)
OLMO = replace(
    PYTHONIC,
    begin="<function_calls>\n",
    separator="\n",
    end="\n</function_calls>",
    marker="<function_calls>",
    is_bare=False,
    tokens=("<function_calls>", "</function_calls>"),
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
MISTRAL_WITH_ID = replace(MISTRAL_NAMED, name_end=f"[CALL_ID]{ID}[ARGS]", tokens=(*MISTRAL_NAMED.tokens, "[CALL_ID]"))
NEMOTRON = replace(
    _LIST,
    begin="<TOOLCALL>[",
    end="]</TOOLCALL>",
    marker="<TOOLCALL>",
    tokens=("<TOOLCALL>", "</TOOLCALL>"),
)
# Hunyuan, Jamba, Apriel.
TOOL_CALLS = replace(
    _LIST,
    begin="<tool_calls>[",
    end="]</tool_calls>",
    marker="<tool_calls>",
    tokens=("<tool_calls>", "</tool_calls>"),
)
FUNCTOOLS = replace(_LIST, begin="functools[", marker="functools")
COMMAND_R7B = ToolFormat(
    begin="<|START_ACTION|>[\n",
    call_begin=f'    {{"tool_call_id": "{ID}", "tool_name": "',
    name_end='", "parameters": ',
    call_end="}",
    separator=",\n",
    end="\n]<|END_ACTION|>",
    marker="<|START_ACTION|>",
    tokens=("<|START_ACTION|>", "<|END_ACTION|>"),
)
COMMAND_R = ToolFormat(
    begin="Action: ```json\n[\n",
    call_begin='    {\n        "tool_name": "',
    name_end='",\n        "parameters": ',
    call_end="\n    }",
    separator=",\n",
    end="\n]```",
    marker="Action: ```json",
)
KIMI = ToolFormat(
    begin="<|tool_calls_section_begin|>",
    call_begin="<|tool_call_begin|>functions.",
    name_end=f":{ID}<|tool_call_argument_begin|>",
    call_end="<|tool_call_end|>",
    end="<|tool_calls_section_end|>",
    marker="<|tool_calls_section_begin|>",
    tokens=(
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<|tool_calls_section_end|>",
    ),
)
# gpt-oss. `<|call|>` ends an answer, and is in no text.
HARMONY = ToolFormat(
    call_begin="<|channel|>commentary to=functions.",
    name_end=" <|constrain|>json<|message|>",
    separator="<|end|><|start|>assistant",
    marker="<|channel|>commentary to=functions.",
    tokens=("<|channel|>", "<|constrain|>", "<|message|>", "<|start|>", "<|end|>"),
)
# Llama 3.1 and its kin, for functions of one's own.
FUNCTION_TAGS = ToolFormat(
    call_begin="<function=",
    name_end=">",
    call_end="</function>",
    separator="\n",
    marker="<function=",
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
    (("<|channel|>", "functions."), HARMONY),
    (("<seed:tool_call>",), SEED),
    (("<minimax:tool_call>",), MINIMAX),
    (("<start_function_call>",), FUNCTION_GEMMA),
    (("<|tool_call>", "<tool_call|>"), GEMMA4),
    (("<|tool_call_start|>",), LFM2),
    (("<|tool_calls_section_begin|>",), KIMI),
    (("<|START_ACTION|>",), COMMAND_R7B),
    (("<TOOLCALL>",), NEMOTRON),
    (("<tool_call>", "<function="), QWEN_CODER),
    (("<tool_call>", "</arg_key><arg_value>"), GLM_47),
    (("<tool_call>", "<arg_key>"), GLM),
    (("<tool_call>",), HERMES),
    (("<tool_calls>",), TOOL_CALLS),
    (("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"), MISTRAL_WITH_ID),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL_NAMED),
    (("[TOOL_CALLS] [",), MISTRAL),
    (("[TOOL_CALLS]",), MISTRAL_TEKKEN),
    (("<|tool_call|>", "<|/tool_call|>"), PHI),
    (("<|tool_call|>",), GRANITE),
    (("<｜tool▁calls▁begin｜>", "```json"), DEEPSEEK),
    (("<｜tool▁calls▁begin｜>",), DEEPSEEK_V31),
    (("[func_name1(",), PYTHONIC),
    (("<function_calls>",), OLMO),
    (("functools[",), FUNCTOOLS),
    (("Action:", "```json", '"tool_name"'), COMMAND_R),
    (("<function=", "</function>"), FUNCTION_TAGS),
    (("<|python_tag|>",), LLAMA),
    (('"parameters": ', '"name": '), LLAMA),
)
# What a vocabulary must hold, where the template only describes the tools.
_BY_VOCABULARY = (
    (("<|tool_call|>", "<|/tool_call|>"), PHI),
    (("<|tool_call|>",), GRANITE),
    (("<|tool_call_start|>", "<|tool_call_end|>"), LFM2),
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
