"""The grammar of an answer with thoughts, tool calls and text, in llguidance's Lark syntax
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md)."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tgi_local.text.call_arguments import value_types
from tgi_local.text.reasoning import NO_THOUGHTS, ThoughtFormat
from tgi_local.text.tool_formats import ID, ParameterTags, ToolFormat

Thought = Literal["open", "possible"]
Tool = tuple[str, str]  # name, schema of the arguments as JSON
_PYTHON_WORDS = (("boolean", "True"), ("boolean", "False"), ("null", "None"))
_TEXT = "TEXT: /(.|\\n)+/\n"


@dataclass(frozen=True, slots=True)
class Spelling:
    """Which strings are control tokens, by id. `end_ids` end an answer and are in no text."""

    token_ids: Mapping[str, int] = field(default_factory=dict)
    control_ids: Collection[int] = ()
    end_ids: Collection[int] = ()

    def exact(self, text: str, tokens: Sequence[str]) -> str:
        """This text, `tokens` of it as the control tokens that they are; white space where it is empty."""
        return " ".join(self._spelled(piece) for piece in self._pieces(text, tokens))

    def begins_with_control(self, text: str, tokens: Sequence[str]) -> bool:
        return any(piece in self.token_ids for piece in self._pieces(text, tokens)[:1])

    def _pieces(self, text: str, tokens: Sequence[str]) -> list[str]:
        known = [ID, *(token for token in tokens if token in self.token_ids)]
        return [piece for piece in re.split("|".join(f"({re.escape(token)})" for token in known), text) if piece]

    def _spelled(self, piece: str) -> str:
        if piece == ID:
            return "/[0-9A-Za-z]{1,9}/"
        return f"<[{self.token_ids[piece]}]>" if piece in self.token_ids else json.dumps(piece)

    def control(self, but: Sequence[str], tokens: Sequence[str]) -> str:
        """Any control token that text may hold, as an alternative to others: none that begins one of `but`."""
        firsts = [self._pieces(text, tokens)[:1] for text in but]
        excluded = {self.token_ids[piece] for pieces in firsts for piece in pieces if piece in self.token_ids}
        ids = sorted(set(self.control_ids) - set(self.end_ids) - excluded)
        return f" | <[{','.join(map(str, ids))}]>" if ids else ""


def constrained_answer(spelling: Spelling, answer: str, thought: Thought | None, thoughts: ThoughtFormat) -> str:
    """`answer`, the right side of a rule, after a thought that the prompt has opened or the model may open."""
    begin = _answer_begin(spelling, thought, thoughts)
    start = f"start: {_thought_of(thought, thoughts)}{begin}answer\nanswer: {answer}\n"
    return start + _thought_rules(spelling, thought, thoughts) + _TEXT


def answer_with_calls(
    spelling: Spelling,
    format: ToolFormat,
    tools: Sequence[Tool],
    max_calls: int,
    *,
    is_forced: bool,
    answer: str | None = None,
    thought: Thought | None = None,
    thoughts: ThoughtFormat = NO_THOUGHTS,
) -> str:
    """Calls and nothing else if `is_forced`, else calls or `answer` if there is one, else text with calls in it."""
    body = _bodies(spelling, format, tools) + _series(spelling, format, max_calls)
    begin = _answer_begin(spelling, thought, thoughts)
    if is_forced or answer is not None:
        if answer is None:
            body += "main: forced\n"
        else:
            first = "forced"
            if format.is_bare and format.parameters is None:
                first = _json_calls(format, tools) + _up_to(max_calls - 1, "next_call")
            body += f"main: {first} | {begin}answer\nanswer: {answer}\n"
        rules = _thought_rules(spelling, thought, thoughts)
        return f"start: {_thought_of(thought, thoughts)}main\n{body}" + rules + _TEXT
    main = f"main: forced | {begin}text\n" if begin else f"main: {_free(spelling, format, tools, max_calls)}"
    if thought == "possible" and not spelling.begins_with_control(thoughts.begin, thoughts.tokens):
        thought = None  # nothing tells it from text
    start = f"start: {_thought_of(thought, thoughts)}main" + (" | text" if thought == "open" else "") + "\n"
    steering = [format.marker or "", *((thoughts.begin, thoughts.end) if thought is not None else ())]
    free = f"text: (TEXT{spelling.control(steering, (*format.tokens, *thoughts.tokens))})*\n"
    return start + main + free + body + _thought_rules(spelling, thought, thoughts) + _TEXT


def _free(spelling: Spelling, format: ToolFormat, tools: Sequence[Tool], max_calls: int) -> str:
    """The alternatives of text with calls in it, and the rules they need."""
    marker = format.marker
    rules = until = ""
    if marker is not None:
        until = "text mark"
        rules = _mark(spelling, "mark", marker, format.tokens) + f"opened: {until} after_mark\n"
    if marker is not None and format.opens_each_call:
        return f"{_up_to(max_calls - 1, 'opened')} text | opened{{{max_calls}}}\n{rules}"
    alternatives = ["text", *(["opened"] if marker is not None else [])]
    if format.is_bare:
        more = _up_to(max_calls - 1, "next_call")
        for index, (name, _) in enumerate(tools):
            head = json.dumps(format.begin + format.call_begin + format.spell_name(name) + format.name_end)
            rules += f"bare_{index}[lazy]: /[ \\n]*/ {head}\n"
        bare = " | ".join(f"bare_{index} rest_{index}" for index in range(len(tools)))
        rules += f"bare: ({bare}){more} {spelling.exact(format.end, format.tokens)}\n"
        alternatives.append("bare")
    return f"{' | '.join(alternatives)}\n{rules}"


def _series(spelling: Spelling, format: ToolFormat, max_calls: int) -> str:
    """`forced`: all calls from the first character; `after_mark`: what follows the marker."""
    begin, end = spelling.exact(format.begin, format.tokens), spelling.exact(format.end, format.tokens)
    opening = spelling.exact(format.after_marker, format.tokens)
    more = _up_to(max_calls - 1, "next_call")
    rules = f"call: {spelling.exact(format.call_begin, format.tokens)} body\n"
    rules += f"next_call: {spelling.exact(format.separator, format.tokens)} call\n"
    rules += f"forced: {begin} call{more} {end}\n"
    if format.marker is not None:
        rules += f"after_mark: {opening} body" + ("" if format.opens_each_call else f"{more} {end}") + "\n"
    return rules


def _bodies(spelling: Spelling, format: ToolFormat, tools: Sequence[Tool]) -> str:
    """One rule per tool, so that each schema keeps a root of its own for its references."""
    end = spelling.exact(format.call_end, format.tokens)
    rules = f"body: {' | '.join(f'tool_{index}' for index in range(len(tools)))}\n"
    for index, (name, schema) in enumerate(tools):
        head = spelling.exact(format.spell_name(name) + format.name_end, format.tokens)
        rules += f"tool_{index}: {head} rest_{index}\n"
        if format.parameters is None:
            rules += f"rest_{index}: %json {schema} {end}\n"
        else:
            elements, own = _elements(spelling, format.parameters, format.tokens, f"p_{index}", schema)
            rules += f"rest_{index}: {elements} {end}\n{own}"
    return rules


def _json_calls(format: ToolFormat, tools: Sequence[Tool]) -> str:
    """Calls that are JSON from their first character, as schemas: so they can be told from other JSON as late as needed."""
    key = format.name_end.split('"')[2]
    calls = []
    for name, schema in tools:
        call = {
            "type": "object",
            "properties": {"name": {"const": name}, key: _below(json.loads(schema), f"/properties/{key}")},
            "required": ["name", key],
            "additionalProperties": False,
            "x-guidance": {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "},
        }
        calls.append(f"%json {json.dumps(call)}")
    return f"({' | '.join(calls)})"


def _below(schema: Any, place: str) -> Any:
    """A schema that was a root, with references that fit its new place."""
    if isinstance(schema, list):
        return [_below(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _below(value, place) for key, value in schema.items() if key != "x-guidance"}
    if isinstance(reference := moved.get("$ref"), str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = f"#{place}{reference[1:]}"
    return moved


def _elements(
    spelling: Spelling, tags: ParameterTags, tokens: Sequence[str], prefix: str, schema: str
) -> tuple[str, str]:
    """Parameters in the order of the schema: (right side of a rule, rules it needs)."""
    root = json.loads(schema)
    properties = root.get("properties") or {}
    rules = _mark(spelling, f"{prefix}_text", tags.quotes[0] if tags.quotes else tags.end, tokens, "TEXT? ")
    if not properties:
        if root.get("additionalProperties") is False or "properties" in root:
            return "", ""
        name = f"{spelling.exact(tags.begin, tokens)} /[A-Za-z0-9_.-]+/ {spelling.exact(tags.name_end, tokens)}"
        rules += f"{prefix}_any: {name} {_text_value(spelling, tags, tokens, prefix)}\n"
        separator = spelling.exact(tags.separator, tokens)
        return f"({prefix}_any ({separator} {prefix}_any)*)?" if separator else f"{prefix}_any*", rules
    shared = {key: root[key] for key in ("$defs", "definitions", "x-guidance") if key in root}
    for index, (name, value) in enumerate(properties.items()):
        head = spelling.exact(tags.begin + name + tags.name_end, tokens)
        own = {**value, **shared} if isinstance(value, dict) else value
        rules += f"{prefix}_{index}: {head} {_value(spelling, tags, tokens, prefix, own)}\n"
    needed = [name in root.get("required", ()) for name in properties]
    if not tags.separator:
        return " ".join(f"{prefix}_{i}" + ("" if is_needed else "?") for i, is_needed in enumerate(needed)), rules
    return f"{prefix}_from_0", rules + _separated(prefix, needed, spelling.exact(tags.separator, tokens))


def _separated(prefix: str, needed: Sequence[bool], separator: str) -> str:
    """Rules `from_0` of all elements with a separator between those that are there; `then` follows another one."""
    rules = f'{prefix}_from_{len(needed)}: ""\n{prefix}_then_{len(needed)}: ""\n'
    for index, is_needed in enumerate(needed):
        item, after = f"{prefix}_{index}", f"{prefix}_then_{index + 1}"
        skipped = ("", "") if is_needed else (f" | {prefix}_from_{index + 1}", f" | {after}")
        rules += f"{prefix}_from_{index}: {item} {after}{skipped[0]}\n"
        rules += f"{prefix}_then_{index}: {separator} {item} {after}{skipped[1]}\n"
    return rules


def _value(spelling: Spelling, tags: ParameterTags, tokens: Sequence[str], prefix: str, schema: Any) -> str:
    """One value and what closes it."""
    closing = spelling.exact(tags.end, tokens)
    types = value_types(schema)
    if tags.is_python:
        choices = [] if types == {"string"} and _is_free(schema) else [f"%json {json.dumps(schema)}"]
        if _is_free(schema):
            choices += [f'"{word}"' for kind, word in _PYTHON_WORDS if kind in types or not types]
            choices += [_text_value(spelling, tags, tokens, prefix)] if "string" in types else []
        return f"({' | '.join(choices)}) {closing}"
    if "string" not in types:
        return f"%json {json.dumps(schema)} {closing}"
    if isinstance(schema, dict) and all(isinstance(option, str) for option in schema.get("enum") or [0]):
        quotes = spelling.exact(tags.quotes[0], tokens) if tags.quotes else ""
        options = " | ".join(json.dumps(option) for option in schema["enum"])
        return f"{quotes} ({options}) {quotes} {closing}"
    return _text_value(spelling, tags, tokens, prefix)


def _text_value(spelling: Spelling, tags: ParameterTags, tokens: Sequence[str], prefix: str) -> str:
    """Any text and what closes it."""
    if tags.is_python:
        return f"({' | '.join(_python_string(quote) for quote in tags.quotes)})"
    if tags.quotes:
        return f"{spelling.exact(tags.quotes[0], tokens)} {prefix}_text {spelling.exact(tags.end, tokens)}"
    return f"{prefix}_text"


def _python_string(quote: str) -> str:
    escape = r"\\(['\"\\nrt]|u[0-9a-fA-F]{4})"
    return rf"/{quote}([^{quote}\\\x00-\x1f]|{escape})*{quote}/"


def _is_free(schema: Any) -> bool:
    """Whether a schema says nothing but the type of a value, as far as texts and words go."""
    bounds = ("enum", "const", "pattern", "format", "minLength", "maxLength", "anyOf", "oneOf", "allOf", "not", "$ref")
    return isinstance(schema, dict) and schema.keys().isdisjoint(bounds)


def _answer_begin(spelling: Spelling, thought: Thought | None, thoughts: ThoughtFormat) -> str:
    if thought is None or not thoughts.answer_begin:
        return ""
    return spelling.exact(thoughts.answer_begin, thoughts.tokens) + " "


def _thought_of(thought: Thought | None, thoughts: ThoughtFormat) -> str:
    if thought is None:
        return ""
    if not thoughts.repeats:
        return "thinking " if thought == "open" else "thought? "
    return ("thinking " if thought == "open" else "") + "thought* "


def _thought_rules(spelling: Spelling, thought: Thought | None, thoughts: ThoughtFormat) -> str:
    if thought is None:
        return ""
    control = spelling.control([thoughts.end], thoughts.tokens)
    rules = f"thinking: thought_text thought_end (/[ \\n]+/)?\nthought_text: (TEXT{control})*\n"
    rules += _mark(spelling, "thought_end", thoughts.end, thoughts.tokens)
    if thought == "open" and not thoughts.repeats:
        return rules
    begins = (thoughts.begin, *thoughts.asides)
    openings = " | ".join(spelling.exact(begin, thoughts.tokens) for begin in begins)
    return rules + f"thought: ({openings}) thinking\n"


def _mark(spelling: Spelling, rule: str, text: str, tokens: Sequence[str] = (), before: str = "") -> str:
    """The end of free text: `text` spelled in letters, wherever it comes first, or as the token that it is."""
    exact = spelling.exact(text, tokens or [text])
    token = f" | {before}{exact}" if "<[" in exact else ""
    return f"{rule}: {rule}_letters{token}\n{rule}_letters[lazy]: /(.|\\n)*/ {json.dumps(text)}\n"


def _up_to(count: int, rule: str) -> str:
    return f" {rule}{{0,{count}}}" if count else ""
