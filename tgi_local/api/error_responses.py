"""The error tree as each dialect writes it: status and body, or an event inside a stream."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.errors import (
    BodyShapeError,
    ContextLengthError,
    MalformedBodyError,
    NotReadyError,
    OverloadedError,
    TgiLocalError,
    UnsupportedError,
)
from tgi_local.protocol.wire import new_id

MAX_MESSAGE_CHARACTERS = 1000
RETRY_AFTER_S = "1"
# Anthropic's clients choose their exception by status; the type is for people and logs.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def native_response(error: TgiLocalError) -> Response:
    """TGI's form: parse errors as plain text, everything else as a flat JSON object."""
    if isinstance(error, BodyShapeError | MalformedBodyError):
        return Response(_message(error), error.status, media_type="text/plain; charset=utf-8")
    return Response(orjson.dumps(native_body(error)), error.status, _headers(error), "application/json")


def openai_response(error: TgiLocalError) -> Response:
    """OpenAI's form, with TGI's `error_type` beside it."""
    body = {"error": openai_error(error), "error_type": error.error_type}
    return Response(orjson.dumps(body), error.openai_status, _headers(error), "application/json")


def anthropic_response(error: TgiLocalError) -> Response:
    return _anthropic_response(error.openai_status, anthropic_body(error), _headers(error))


def native_body(error: TgiLocalError) -> dict[str, Any]:
    body = {"error": _message(error), "error_type": error.error_type}
    if isinstance(error, NotReadyError):
        return body | {"state": error.state}
    return body


def openai_error(error: TgiLocalError) -> dict[str, Any]:
    return {"message": _openai_message(error), "type": error.openai_type, "param": error.param, "code": error.code}


def openai_event(error: TgiLocalError) -> dict[str, Any]:
    """The event of an error after a stream has begun; TGI's clients read `http_status_code`."""
    return {"error": openai_error(error) | {"http_status_code": error.openai_status}}


def anthropic_body(error: TgiLocalError) -> dict[str, Any]:
    """Anthropic's form, which is also the event of an error after a stream has begun."""
    body = _anthropic_body(error.openai_status, _anthropic_message(error))
    if isinstance(error, UnsupportedError) and error.code is not None:
        # By these its SDKs know that they can go on without.
        body["error"]["details"] = {"error_code": error.code, "unsupported": [error.param]}
    return body


def refusal_body(path: str, status: int, text: str, error_type: str, *, is_plain: bool) -> tuple[bytes, bytes]:
    """What the gate answers, as content type and body: TGI's form on native routes (an empty 401 among them)."""
    if speaks_anthropic(path):
        return b"application/json", orjson.dumps(_anthropic_body(status, text))
    if speaks_openai(path):
        kind = "authentication_error" if status == 401 else "invalid_request_error"
        error = {"message": text, "type": kind, "param": None, "code": None}
        return b"application/json", orjson.dumps({"error": error, "error_type": error_type})
    if status == 401:
        return b"", b""
    if is_plain:
        return b"text/plain; charset=utf-8", text.encode()
    return b"application/json", orjson.dumps({"error": text, "error_type": error_type})


def speaks_openai(path: str) -> bool:
    return path.startswith("/v1/") and path != "/v1/"


def speaks_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def is_for_anthropic(request: Request) -> bool:
    """Whether the client is one of Anthropic's; the models have the same path as OpenAI's."""
    path = request.url.path
    return speaks_anthropic(path) or (path.startswith("/v1/models") and "anthropic-version" in request.headers)


async def handle_error(request: Request, error: Exception) -> Response:
    """Exception handler for the whole tree."""
    assert isinstance(error, TgiLocalError)
    return _response(request, error)


async def handle_bug(request: Request, error: Exception) -> Response:
    """Exception handler for everything else; what went wrong is in the log, not in the answer."""
    return _response(request, TgiLocalError("Internal error; the server's log has the details"))


async def handle_disconnect(request: Request, error: Exception) -> Response:
    """The client went before its request was sent or answered; nobody reads this."""
    return Response(status_code=499)


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """Unknown path or wrong method: TGI's empty body, OpenAI's JSON on its own routes."""
    status = getattr(error, "status_code", 404)
    headers = getattr(error, "headers", None)
    if not speaks_openai(request.url.path):
        return Response(status_code=status, headers=headers)
    text, error_type = ("Method not allowed", "validation") if status == 405 else ("No such route", "not_found")
    if is_for_anthropic(request):
        return _anthropic_response(status, _anthropic_body(status, text), headers)
    told = {"message": text, "type": "invalid_request_error", "param": None, "code": None}
    body: dict[str, Any] = {"error": told, "error_type": error_type}
    return Response(orjson.dumps(body), status, headers, "application/json")


def _response(request: Request, error: TgiLocalError) -> Response:
    if is_for_anthropic(request):
        return anthropic_response(error)
    return openai_response(error) if speaks_openai(request.url.path) else native_response(error)


def request_id_headers() -> dict[str, str]:
    """Anthropic's SDKs show it with every answer and error."""
    return {"request-id": new_id("req", "_")}


def _anthropic_response(status: int, body: dict[str, Any], headers: Mapping[str, str] | None) -> Response:
    own = request_id_headers()
    told = {**body, "request_id": own["request-id"]}
    return Response(orjson.dumps(told), status, {**own, **(headers or {})}, "application/json")


def _anthropic_body(status: int, text: str) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": text}}


def _message(error: TgiLocalError) -> str:
    return error.message[:MAX_MESSAGE_CHARACTERS]


def _openai_message(error: TgiLocalError) -> str:
    return error.in_words_of_openai if isinstance(error, ContextLengthError) else _message(error)


def _anthropic_message(error: TgiLocalError) -> str:
    return error.in_words_of_anthropic if isinstance(error, ContextLengthError) else _message(error)


def _headers(error: TgiLocalError) -> dict[str, str] | None:
    return {"retry-after": RETRY_AFTER_S} if isinstance(error, OverloadedError | NotReadyError) else None
