"""What went wrong, in words a person can act on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
from huggingface_hub.errors import HfHubHTTPError, TextGenerationError

# Everything a call to the API may raise that is not a mistake of ours. huggingface_hub's own errors derive from httpx2's.
API_ERRORS = (httpx2.HTTPError,)
MAX_MESSAGE = 400

_RETRY = "Use the retry button to ask again."
_TOO_LONG_HINTS = ("context", "max_total_tokens", "max_input", "`inputs` tokens", "too long", "must be <=")


@dataclass(frozen=True)
class Notice:
    title: str
    text: str


def status_of(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def message_of(error: Exception) -> str:
    """The server's own sentence: a string in TGI's dialect, an object with `message` in OpenAI's."""
    detail: object = error.args[0] if error.args else ""
    if isinstance(error, HfHubHTTPError):
        detail = _body(error).get("error", "")
    if isinstance(detail, Mapping):
        detail = detail.get("message", "")
    return str(detail or "").strip()[:MAX_MESSAGE]


def notice_for(error: Exception, *, mid_answer: bool = False) -> Notice:
    if isinstance(error, HfHubHTTPError | TextGenerationError):
        return _refusal(status_of(error), _kind(error), message_of(error))
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return Notice("The server cannot be reached", f"Is it still running? {_RETRY}")
    kept = "What had arrived is kept above. " if mid_answer else ""
    return Notice("The connection broke", f"{kept}{_RETRY}")


def _refusal(status: int | None, kind: str, message: str) -> Notice:
    if status == 429 or kind == "overloaded":
        return Notice("The server is busy", f"Too many requests at once. Wait a moment. {_RETRY}")
    if status in (401, 403):
        return Notice("The key was not accepted", "The page's API key is not the server's. Restart the server.")
    if status == 503:
        return Notice("The model is not ready", _with(message, f"Wait until it is loaded. {_RETRY}"))
    if kind == "validation" or status in (400, 413, 422):
        if any(hint in message.lower() for hint in _TOO_LONG_HINTS) or status == 413:
            return Notice(
                "Too long for this model", _with(message, "Lower Max tokens, or clear the chat and start anew.")
            )
        return Notice("The server refused the request", _with(message, "Change the settings or the message."))
    return Notice("The model failed to answer", _with(message, _RETRY))


def _with(message: str, fix: str) -> str:
    return f"{message[0].upper()}{message[1:].rstrip('.')}. {fix}" if message else fix


def _kind(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return str(_body(error).get("error_type") or "")
    return {"OverloadedError": "overloaded", "ValidationError": "validation"}.get(type(error).__name__, "")


def _body(error: HfHubHTTPError) -> Mapping[str, Any]:
    try:
        body = error.response.json()
    except (ValueError, httpx2.StreamError):
        return {}
    return body if isinstance(body, Mapping) else {}
