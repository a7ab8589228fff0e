"""Normalized messages with tool calls and results, as one template takes them; in plain words, where it takes none."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tgi_local.text.template_traits import TemplateTraits

Message = dict[str, Any]

# For models whose template knows no tools; the format is the one most models have seen.
PLAIN_PROMPT = """\
You may call these functions, one JSON object each:
<tools>
{tools}
</tools>

To call functions, write one such block for each call, and nothing after the last:
<tool_call>
{{"name": <name of the function>, "arguments": <JSON object with its arguments>}}
</tool_call>"""
THOUGHT = "reasoning_content"  # the key of what the assistant thought
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")


def fit_messages(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, traits: TemplateTraits
) -> tuple[list[Message], Sequence[Mapping[str, Any]] | None]:
    """The same conversation and tools in the form that a template with these traits writes."""
    if not traits.takes_later_system:
        messages = _with_system_first(messages)
    fitted = [_with_thought(message, traits) for message in _with_ids(messages)]
    if not traits.writes_calls:
        fitted = list(_in_plain_words(fitted))
    elif not traits.takes_many_calls:
        fitted = list(_one_by_one(fitted))
    if traits.names_in_ids:
        fitted = _with_names_in_ids(fitted)
    if traits.wants_short_ids:
        fitted = [_with_short_ids(message) for message in fitted]
    if traits.wants_arguments_text:
        fitted = [_with_arguments_text(message) for message in fitted]
    if not tools or traits.writes_tools:
        return fitted, tools
    if traits.writes_system_tools:
        return _with_system(fitted, {"tools": json.dumps([tool["function"] for tool in tools])}), None
    listed = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    return _with_prompt(fitted, PLAIN_PROMPT.format(tools=listed), traits.takes_system), None


def _with_system_first(messages: Sequence[Message]) -> list[Message]:
    """Those at the beginning as one; a later one as what the user says there, for that keeps the prompt's beginning."""
    fitted: list[Message] = []
    is_open = False  # the last one is a system message's text, which the user's next words join
    for message in messages:
        last_role = fitted[-1].get("role") if fitted else None
        is_system = message.get("role") == "system"
        if (
            (is_system and last_role == "system")
            or (is_system and last_role == "user")
            or (is_open and message.get("role") == "user")
        ):
            fitted[-1] = _joined(fitted[-1], message)
        else:
            fitted.append({**message, "role": "user"} if is_system and fitted else message)
        is_open = is_system and fitted[-1].get("role") == "user"
    return fitted


def _joined(first: Message, second: Message) -> Message:
    return {**first, "content": f"{first['content']}\n\n{second['content']}"}


def _with_ids(messages: Sequence[Message]) -> Iterator[Message]:
    """Every call with an id; every result with the id and the function's name of its call."""
    waiting: dict[str, str] = {}
    num_calls = 0
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                num_calls += 1
                call = call if call.get("id") else {**call, "id": f"call{num_calls:05d}"}
                function = call.get("function")
                waiting[call["id"]] = function.get("name") or "" if isinstance(function, Mapping) else ""
                calls.append(call)
            yield {**message, "tool_calls": calls}
        elif message.get("role") in ("tool", "function"):
            yield _named_result(message, waiting)
        else:
            yield message


def _named_result(message: Message, waiting: dict[str, str]) -> Message:
    given, name = message.get("tool_call_id"), message.get("name")
    call_id = given or next((id for id, called in waiting.items() if name in (None, called)), None)
    called = waiting.pop(call_id, "") if call_id is not None else ""
    result = {**message, "role": "tool"}
    if call_id is not None:
        result["tool_call_id"] = call_id
    if name is None and called:
        result["name"] = called
    return result


def _one_by_one(messages: Sequence[Message]) -> Iterator[Message]:
    """Each call in a message of its own, followed by its result."""
    position = 0
    while position < len(messages):
        message = messages[position]
        position += 1
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            yield message
            continue
        results = []
        while position < len(messages) and messages[position].get("role") == "tool":
            results.append(messages[position])
            position += 1
        for index, call in enumerate(calls):
            yield {**message, "content": "" if index else message["content"], "tool_calls": [call]}
            own = [result for result in results if result.get("tool_call_id") == call["id"]]
            yield from own
            results = [result for result in results if result not in own]
        yield from results


def _in_plain_words(messages: Sequence[Message]) -> Iterator[Message]:
    """Calls in the assistant's text; results in the user's next message."""
    results: list[str] = []
    for message in messages:
        if message.get("role") == "tool":
            results.append(f"<tool_response>\n{message['content']}\n</tool_response>")
            continue
        if results and message.get("role") == "user":
            message = {**message, "content": "\n".join([*results, message["content"]])}
        elif results:
            yield {"role": "user", "content": "\n".join(results)}
        results = []
        if message.get("tool_calls"):
            written = [text for text in (message["content"], *map(_written_call, message["tool_calls"])) if text]
            message = {key: value for key, value in message.items() if key != "tool_calls"}
            message["content"] = "\n".join(written)
        yield message
    if results:
        yield {"role": "user", "content": "\n".join(results)}


def _written_call(call: Mapping[str, Any]) -> str:
    function = call.get("function") or {}
    written = {"name": function.get("name"), "arguments": function.get("arguments")}
    return f"<tool_call>\n{json.dumps(written, ensure_ascii=False)}\n</tool_call>"


def _with_thought(message: Message, traits: TemplateTraits) -> Message:
    """What was thought, under the template's own key; nothing where it has none."""
    if THOUGHT not in message:
        return message
    thought = message[THOUGHT]
    message = {key: value for key, value in message.items() if key != THOUGHT}
    if traits.thought_key is None:
        return message
    if message.get("tool_calls") and message["content"] and not traits.takes_thought_beside_text:
        return {**message, traits.thought_key: f"{thought}\n\n{message['content']}", "content": ""}
    return {**message, traits.thought_key: thought}


def _with_names_in_ids(messages: Sequence[Message]) -> list[Message]:
    """Ids that say which function was called, numbered through the conversation."""
    ids: dict[str, str] = {}
    num_calls = 0
    fitted = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call.get("function")
            name = function.get("name") if isinstance(function, Mapping) else ""
            ids[call["id"]] = f"functions.{name}:{num_calls}"
            num_calls += 1
        if message.get("tool_calls"):
            message = {**message, "tool_calls": [{**call, "id": ids[call["id"]]} for call in message["tool_calls"]]}
        elif message.get("tool_call_id") in ids:
            message = {**message, "tool_call_id": ids[message["tool_call_id"]]}
        fitted.append(message)
    return fitted


def _with_short_ids(message: Message) -> Message:
    if "tool_call_id" in message:
        message = {**message, "tool_call_id": short_id(message["tool_call_id"])}
    if message.get("tool_calls"):
        message = {**message, "tool_calls": [{**call, "id": short_id(call["id"])} for call in message["tool_calls"]]}
    return message


def short_id(id: str) -> str:
    """Nine letters and digits; the same for the same id, in a call and in its result."""
    return id if _SHORT_ID.fullmatch(id) else hashlib.sha256(id.encode(errors="replace")).hexdigest()[:9]


def _with_arguments_text(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function")
        if isinstance(function, Mapping) and not isinstance(function.get("arguments"), str):
            text = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
            call = {**call, "function": {**function, "arguments": text}}
        calls.append(call)
    return {**message, "tool_calls": calls}


def _with_system(messages: list[Message], fields: Message) -> list[Message]:
    if messages and messages[0].get("role") == "system":
        return [{**messages[0], **fields}, *messages[1:]]
    return [{"role": "system", "content": "", **fields}, *messages]


def _with_prompt(messages: list[Message], prompt: str, takes_system: bool) -> list[Message]:
    """`prompt` at the end of the system message, or where there can be none, at the beginning of the user's first."""
    if messages and messages[0].get("role") == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{prompt}".lstrip()}, *messages[1:]]
    if takes_system:
        return [{"role": "system", "content": prompt}, *messages]
    for index, message in enumerate(messages):
        if message.get("role") == "user":
            asked = {**message, "content": f"{prompt}\n\n{message['content']}"}
            return [*messages[:index], asked, *messages[index + 1 :]]
    return [{"role": "user", "content": prompt}, *messages]
