"""Chat messages as clients send them to chat messages as templates expect them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from tgi_local.errors import ValidationError


def normalize_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """New messages with one string as content, `system` for `developer`, and tool arguments as objects.

    Raises `ValidationError` for a content part that is not text, and for tool calls that are no objects.
    """
    return [_normalize_message(message) for message in messages]


def _normalize_message(message: Mapping[str, Any]) -> dict[str, Any]:
    normalized = {**message, "content": _join_content(message.get("content"))}
    if normalized.get("role") == "developer":
        normalized["role"] = "system"
    tool_calls = message.get("tool_calls")
    if tool_calls:
        if not (isinstance(tool_calls, list | tuple) and all(isinstance(call, Mapping) for call in tool_calls)):
            raise ValidationError("`tool_calls` must be a list of objects", param="messages")
        normalized["tool_calls"] = [_normalize_tool_call(call) for call in tool_calls]
    return normalized


def _join_content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise ValidationError("message content must be a string or a list of text parts", param="messages")
    return "".join(_part_text(part) for part in content)


def _part_text(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
    if not isinstance(text, str):
        raise ValidationError("message content parts must be text", param="messages")
    return text


def _normalize_tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return dict(call)
    return {**call, "function": {**function, "arguments": _parse_arguments(function.get("arguments"))}}


def _parse_arguments(arguments: Any) -> Any:
    """Most templates write the arguments as an object; what is not one is left to them as it came."""
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")
