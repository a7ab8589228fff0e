"""What a chat template does with tools, found by rendering short conversations with it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Render(Protocol):
    """A template's text; raises whatever the template raises."""

    def __call__(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str: ...


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """`writes_tools`: of the `tools` it gets; `writes_system_tools`: of a system message's key `tools`.

    `writes_calls`: an assistant's `tool_calls`, and results in messages with the role `tool`; `takes_many_calls` in one
    message. `names_in_ids`: it writes a call's id where others write the function's name. `thought_key`: where it looks for
    what the assistant thought before a call. `takes_later_system`: after another system message, and after a user's. `wants_arguments_text`: it joins the arguments to its text as they come, where others write an object.
    """

    writes_tools: bool = False
    writes_system_tools: bool = False
    writes_calls: bool = False
    takes_many_calls: bool = True
    wants_arguments_text: bool = False
    takes_system: bool = True
    takes_later_system: bool = True
    wants_short_ids: bool = False
    names_in_ids: bool = False
    thought_key: str | None = None
    takes_thought_beside_text: bool = True


_USER = {"role": "user", "content": "probe-question"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_function",
        "description": "probe",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "integer", "description": "probe"}}},
    },
}
_OBJECT = {"probe_key": 1}
_TEXT = '{"probe_key": 1}'
_IDS = ("probe0001", "probe0002")
_NAMED_IDS = ("functions.probe_function:0", "functions.probe_other:1")  # as Kimi's
_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")


def probe(render: Render, source: str) -> TemplateTraits:
    """The traits of the template `render` uses, whose text is `source`. Never raises."""

    def written(messages: Sequence[Mapping[str, Any]], tools: bool = False) -> str:
        try:
            return render(messages, [_TOOL] if tools else None)
        except Exception:  # a template may raise whatever Python can
            return ""

    writes_tools = "probe_function" in written([_USER], tools=True)
    system = {"role": "system", "content": "probe-system"}
    later = {"role": "system", "content": "probe-later"}

    def takes_thought(key: str, content: str) -> bool:
        user, message, result = _called(arguments, *ids[:1])
        return "probe-thought" in written([user, {**message, "content": content, key: "probe-thought"}, result])

    with_tools = {**system, "tools": "probe_function"}
    unnamed, named = written(_called(_OBJECT)[:2]), written(_called(_OBJECT, _NAMED_IDS[0])[:2])
    ids = _NAMED_IDS if "probe_function" not in unnamed and _NAMED_IDS[0] in named else _IDS
    as_object, as_text = written(_called(_OBJECT, ids[0])), written(_called(_TEXT, ids[0]))
    wants_text = not _shows_call(as_object) and _shows_call(as_text)
    arguments = _TEXT if wants_text else _OBJECT
    many = written(_called(arguments, *ids))
    return TemplateTraits(
        writes_tools=writes_tools,
        writes_system_tools=not writes_tools and _shows_tools(written([with_tools, _USER])),
        writes_calls=_shows_call(as_object) or _shows_call(as_text),
        takes_many_calls="probe_other" in many,
        wants_arguments_text=wants_text,
        takes_system="probe-system" in written([system, _USER]),
        takes_later_system=all("probe-later" in written(m) for m in ([system, later, _USER], [_USER, later])),
        # As Mistral's: ids of exactly nine letters and digits.
        names_in_ids=ids is _NAMED_IDS,
        thought_key=(key := next((key for key in _THOUGHT_KEYS if takes_thought(key, "")), None)),
        takes_thought_beside_text=key is not None and takes_thought(key, "probe-text"),
        wants_short_ids=re.search(r"id\s*\|\s*length\s*!=\s*9", source) is not None,
    )


def _called(arguments: Any, *ids: str) -> list[dict[str, Any]]:
    ids = ids or _IDS[:1]
    names = ("probe_function", "probe_other")
    calls = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id, name in zip(ids, names, strict=False)
    ]
    results = [{"role": "tool", "name": "probe_function", "tool_call_id": id, "content": "probe-result"} for id in ids]
    return [_USER, {"role": "assistant", "content": "", "tool_calls": calls}, *results]


def _shows_tools(text: str) -> bool:
    """Whether the tools are there, and not as part of a message written as Python would."""
    return "probe_function" in text and "'tools'" not in text


def _shows_call(text: str) -> bool:
    """Whether a call and its result are there, and the arguments not as Python writes a dictionary."""
    shown: Callable[[str], bool] = text.__contains__
    return all(map(shown, ("probe_function", "probe-result", "probe_key"))) and "{'probe_key'" not in text
