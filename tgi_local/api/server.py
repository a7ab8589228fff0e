"""The FastAPI application: routes, error handlers, 405s."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tgi_local.api import routes_anthropic, routes_cloud, routes_openai, routes_ops, routes_responses, routes_tgi
from tgi_local.api.context import ApiContext
from tgi_local.api.error_responses import handle_bug, handle_error, handle_http_exception
from tgi_local.errors import TgiLocalError

ALL_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(api: ApiContext, lifespan: Lifespan | None = None, *, has_page: bool = False) -> FastAPI:
    """The HTTP API. With a page, GET / is left to it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    app.state.api = api
    for routes in (routes_ops, routes_tgi, routes_openai, routes_responses, routes_anthropic, routes_cloud):
        app.include_router(routes.router)
    if not has_page:
        app.add_api_route("/", routes_ops.root_health, methods=["GET", "HEAD"])
    _add_method_not_allowed(app, skip=("/",) if has_page else ())
    app.add_exception_handler(TgiLocalError, handle_error)
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.add_exception_handler(Exception, handle_bug)
    return app


def _add_method_not_allowed(app: FastAPI, skip: tuple[str, ...]) -> None:
    """Answer the methods a path does not have with 405; a page mounted at / would swallow them otherwise."""
    methods: dict[str, set[str]] = {}
    for route in app.routes:
        if isinstance(route, APIRoute):
            methods.setdefault(route.path, set()).update(route.methods or ())
    for path, allowed in methods.items():
        if path not in skip:
            # HEAD follows GET, as everywhere on the web.
            missing = ALL_METHODS - allowed - ({"HEAD"} if "GET" in allowed else set())
            app.add_api_route(path, _method_not_allowed(allowed), methods=sorted(missing))


def _method_not_allowed(allowed: set[str]) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        raise HTTPException(405, headers={"allow": ", ".join(sorted(allowed))})

    return endpoint
