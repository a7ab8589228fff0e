"""The grammar of an answer with thoughts, tool calls and text, in llguidance's Lark syntax
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md)."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tgi_local.text.call_arguments import value_types
from tgi_local.text.tool_formats import ParameterTags, ToolFormat

Thought = Literal["open", "possible"]
Tool = tuple[str, str]  # name, schema of the arguments as JSON
_TEXT = "TEXT: /(.|\\n)+/\n"


@dataclass(frozen=True, slots=True)
class Spelling:
    """Which strings are control tokens, by id. `end_ids` end an answer and are in no text."""

    token_ids: Mapping[str, int] = field(default_factory=dict)
    control_ids: Collection[int] = ()
    end_ids: Collection[int] = ()

    def exact(self, text: str, tokens: Sequence[str]) -> str:
        """This text, `tokens` of it as the control tokens that they are; white space where it is empty."""
        known = [token for token in tokens if token in self.token_ids]
        pieces = re.split("|".join(f"({re.escape(token)})" for token in known), text) if known else [text]
        written = [
            f"<[{self.token_ids[piece]}]>" if piece in self.token_ids and piece in known else json.dumps(piece)
            for piece in pieces
            if piece
        ]
        return " ".join(written)

    def control(self, but: Sequence[str]) -> str:
        """Any control token that text may hold, as an alternative to others."""
        excluded = {self.token_ids[token] for token in but if token in self.token_ids}
        ids = sorted(set(self.control_ids) - set(self.end_ids) - excluded)
        return f" | <[{','.join(map(str, ids))}]>" if ids else ""


def constrained_answer(spelling: Spelling, answer: str, thought: Thought | None, tags: tuple[str, str]) -> str:
    """`answer`, the right side of a rule, after a thought that the prompt has opened or the model may open."""
    return f"start: {_thought_of(thought)}answer\nanswer: {answer}\n" + _thought_rules(spelling, thought, tags) + _TEXT


def answer_with_calls(
    spelling: Spelling,
    format: ToolFormat,
    tools: Sequence[Tool],
    max_calls: int,
    *,
    is_forced: bool,
    answer: str | None = None,
    thought: Thought | None = None,
    tags: tuple[str, str] = ("", ""),
) -> str:
    """Calls and nothing else if `is_forced`, else calls or `answer` if there is one, else text with calls in it."""
    body = _bodies(spelling, format, tools) + _series(spelling, format, max_calls)
    is_free = not is_forced and answer is None
    if not is_free:
        if answer is None:
            body += "main: forced\n"
        else:
            first = "forced" if not format.is_bare else _json_calls(format, tools) + _up_to(max_calls - 1, "next_call")
            body += f"main: {first} | answer\nanswer: {answer}\n"
        return f"start: {_thought_of(thought)}main\n{body}" + _thought_rules(spelling, thought, tags) + _TEXT
    text = f"main: {_free(spelling, format, tools, max_calls)}"
    if thought == "possible" and tags[0] not in spelling.token_ids:
        thought = None  # nothing tells it from text
    start = f"start: {_thought_of(thought)}main" + (" | text" if thought == "open" else "") + "\n"
    steering = [format.marker or "", *(tags if thought is not None else ())]
    free = f"text: (TEXT{spelling.control(steering)})*\n"
    rules = _thought_rules(spelling, thought, tags)
    return start + text + free + body + rules + _TEXT


def _free(spelling: Spelling, format: ToolFormat, tools: Sequence[Tool], max_calls: int) -> str:
    """The alternatives of text with calls in it, and the rules they need."""
    marker = format.marker
    rules = until = ""
    if marker is not None:
        until = "text mark"
        rules = _mark(spelling, "mark", marker) + f"opened: {until} after_mark\n"
    if marker is not None and format.opens_each_call:
        return f"{_up_to(max_calls - 1, 'opened')} text | opened{{{max_calls}}}\n{rules}"
    alternatives = ["text", *(["opened"] if marker is not None else [])]
    if format.is_bare:
        more = _up_to(max_calls - 1, "next_call")
        for index, (name, _) in enumerate(tools):
            head = json.dumps(format.begin + format.call_begin + format.spell_name(name) + format.name_end)
            rules += f"bare_{index}[lazy]: /[ \\n]*/ {head}\n"
        bare = " | ".join(f"bare_{index} rest_{index}" for index in range(len(tools)))
        rules += f"bare: ({bare}){more}\n"
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
    closing = spelling.exact(tags.end, tokens)
    rules = _mark(spelling, f"{prefix}_text", tags.end, tokens, "TEXT? ")
    if not properties:
        if root.get("additionalProperties") is False or "properties" in root:
            return "", ""
        name = f"{spelling.exact(tags.begin, tokens)} /[A-Za-z0-9_.-]+/ {spelling.exact(tags.name_end, tokens)}"
        return f"{prefix}_any*", rules + f"{prefix}_any: {name} {prefix}_text\n"
    shared = {key: root[key] for key in ("$defs", "definitions", "x-guidance") if key in root}
    items = []
    for index, (name, value) in enumerate(properties.items()):
        head = spelling.exact(tags.begin + name + tags.name_end, tokens)
        types = value_types(value)
        if "string" not in types:
            content = f"%json {json.dumps({**value, **shared} if isinstance(value, dict) else value)} {closing}"
        elif isinstance(value, dict) and all(isinstance(option, str) for option in value.get("enum") or [0]):
            options = " | ".join(json.dumps(option) for option in value["enum"])
            content = f"({options}) {closing}"
        else:
            content = f"{prefix}_text"
        rules += f"{prefix}_{index}: {head} {content}\n"
        items.append(f"{prefix}_{index}" + ("" if name in root.get("required", ()) else "?"))
    return " ".join(items), rules


def _thought_of(thought: Thought | None) -> str:
    return {"open": "thinking ", "possible": "thought? ", None: ""}[thought]


def _thought_rules(spelling: Spelling, thought: Thought | None, tags: tuple[str, str]) -> str:
    if thought is None:
        return ""
    opening, closing = tags
    rules = f"thinking: thought_text thought_end (/[ \\n]+/)?\nthought_text: (TEXT{spelling.control([closing])})*\n"
    rules += _mark(spelling, "thought_end", closing)
    return rules + (f"thought: {spelling.exact(opening, [opening])} thinking\n" if thought == "possible" else "")


def _mark(spelling: Spelling, rule: str, text: str, tokens: Sequence[str] = (), before: str = "") -> str:
    """The end of free text: `text` spelled in letters, wherever it comes first, or as the token that it is."""
    exact = spelling.exact(text, tokens or [text])
    token = f" | {before}{exact}" if "<[" in exact else ""
    return f"{rule}: {rule}_letters{token}\n{rule}_letters[lazy]: /(.|\\n)*/ {json.dumps(text)}\n"


def _up_to(count: int, rule: str) -> str:
    return f" {rule}{{0,{count}}}" if count else ""
