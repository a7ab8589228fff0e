"""The error tree as each dialect writes it: status and body, or an event inside a stream."""

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.errors import BodyShapeError, MalformedBodyError, NotReadyError, OverloadedError, TgiLocalError

MAX_MESSAGE_CHARACTERS = 1000
RETRY_AFTER_S = "1"


def native_response(error: TgiLocalError) -> Response:
    """TGI's form: parse errors as plain text, everything else as a flat JSON object."""
    if isinstance(error, BodyShapeError | MalformedBodyError):
        return Response(_message(error), error.status, media_type="text/plain; charset=utf-8")
    return Response(orjson.dumps(native_body(error)), error.status, _headers(error), "application/json")


def openai_response(error: TgiLocalError) -> Response:
    """OpenAI's form, with TGI's `error_type` beside it."""
    body = {"error": openai_error(error), "error_type": error.error_type}
    return Response(orjson.dumps(body), error.openai_status, _headers(error), "application/json")


def native_body(error: TgiLocalError) -> dict[str, Any]:
    body = {"error": _message(error), "error_type": error.error_type}
    if isinstance(error, NotReadyError):
        return body | {"state": error.state}
    return body


def openai_error(error: TgiLocalError) -> dict[str, Any]:
    return {"message": _message(error), "type": error.openai_type, "param": error.param, "code": error.code}


def openai_event(error: TgiLocalError) -> dict[str, Any]:
    """The event of an error after a stream has begun; TGI's clients read `http_status_code`."""
    return {"error": openai_error(error) | {"http_status_code": error.openai_status}}


def speaks_openai(path: str) -> bool:
    return path.startswith("/v1/") and path != "/v1/"


async def handle_error(request: Request, error: Exception) -> Response:
    """Exception handler for the whole tree."""
    assert isinstance(error, TgiLocalError)
    return openai_response(error) if speaks_openai(request.url.path) else native_response(error)


async def handle_bug(request: Request, error: Exception) -> Response:
    """Exception handler for everything else; what went wrong is in the log, not in the answer."""
    bug = TgiLocalError("Internal error; the server's log has the details")
    return openai_response(bug) if speaks_openai(request.url.path) else native_response(bug)


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """Unknown path or wrong method: TGI's empty body, OpenAI's JSON on its own routes."""
    status = getattr(error, "status_code", 404)
    headers = getattr(error, "headers", None)
    if not speaks_openai(request.url.path):
        return Response(status_code=status, headers=headers)
    text = "Method not allowed" if status == 405 else "No such route"
    body = {"error": {"message": text, "type": "invalid_request_error", "param": None, "code": None}}
    return Response(orjson.dumps(body), status, headers, "application/json")


def _message(error: TgiLocalError) -> str:
    return error.message[:MAX_MESSAGE_CHARACTERS]


def _headers(error: TgiLocalError) -> dict[str, str] | None:
    return {"retry-after": RETRY_AFTER_S} if isinstance(error, OverloadedError | NotReadyError) else None
