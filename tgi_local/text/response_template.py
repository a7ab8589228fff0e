"""Tool calls by a checkpoint's own `response_template`, read by Transformers, for formats that are not known here."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tgi_local.text.tool_calls import Content, Item
from tgi_local.types import ToolCallDelta

logger = logging.getLogger(__name__)

_CALLS = "tool_calls"


def reads_calls(template: Any) -> bool:
    """Whether this is a response template that tells how calls are written, and Transformers takes it."""
    if not isinstance(template, Mapping) or _CALLS not in (template.get("fields") or {}):
        return False
    from transformers.utils.chat_parsing.response_templates import load_response_template

    try:
        load_response_template(dict(template))
    except Exception as error:  # the checkpoint's own patterns are compiled here
        logger.warning("the response_template of this tokenizer is not used (%s)", type(error).__name__)
        return False
    return True


class TemplateCallParser:
    """Owns the tool calls of one sequence; one thread at a time. Calls come when they are whole.

    What the template does not read is passed on as content, without the marks around it.
    """

    def __init__(self, template: Mapping[str, Any]) -> None:
        from transformers.utils.chat_parsing.response_parser import ResponseParser

        self._parser: Any = ResponseParser(dict(template), prefix="")
        self._region = ""  # what was read of a call so far
        self._has_failed = False
        self._num_calls = 0

    def step(self, text: str) -> list[Item]:
        """The content and the calls this text completes."""
        if self._has_failed:
            return [Content(text)] if text else []
        return self._read(text, lambda: self._parser.feed(text))

    def flush(self) -> list[Item]:
        """What is held back, now that no more can follow."""
        return [] if self._has_failed else self._read("", lambda: self._parser.finalize()[1])

    def _read(self, text: str, feed: Callable[[], list[Mapping[str, Any]]]) -> list[Item]:
        try:
            return [item for event in feed() for item in self._items(event)]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._has_failed = True
            rest = self._region + text
            return [Content(rest)] if rest else []

    def _items(self, event: Mapping[str, Any]) -> Iterator[Item]:
        kind, is_call = event["type"], event["field"] == _CALLS
        if kind == "region_chunk" and not is_call:
            yield Content(event["text"])
        elif kind == "region_chunk":
            self._region += event["text"]
        elif kind == "region_close" and is_call:
            value = event["value"]
            for call in value if isinstance(value, list) else [value]:
                function = call.get("function", call)
                arguments = function.get("arguments", {})
                text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
                yield ToolCallDelta(self._num_calls, function["name"], text, is_last=True)
                self._num_calls += 1
            self._region = ""
