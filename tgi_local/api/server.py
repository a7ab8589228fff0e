"""The FastAPI application: routes, error handlers, 405s."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tgi_local.api import (
    routes_anthropic,
    routes_cloud,
    routes_docs,
    routes_openai,
    routes_ops,
    routes_responses,
    routes_tgi,
)
from tgi_local.api.context import ApiContext
from tgi_local.api.error_responses import handle_bug, handle_disconnect, handle_error, handle_http_exception
from tgi_local.api.sse import ClientGoneError
from tgi_local.errors import StartupError, TgiLocalError

ALL_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})

ROUTERS = (
    routes_ops.router,
    routes_tgi.router,
    routes_openai.router,
    routes_responses.router,
    routes_anthropic.router,
    routes_cloud.router,
    routes_docs.router,
)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    api: ApiContext,
    lifespan: Lifespan | None = None,
    *,
    has_page: bool = False,
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> FastAPI:
    """The HTTP API. With a page, GET / is left to it. `aliases` are more paths for some routes."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    app.state.api = api
    for router in ROUTERS:
        app.include_router(router)
    for route in _api_routes(app):
        route.methods = _with_head(route)
    _add_aliases(app, aliases)
    if not has_page:
        app.add_api_route("/", routes_ops.root_health, methods=["GET", "HEAD"])
    _add_method_not_allowed(app, skip=("/",) if has_page else ())
    if has_page:
        # The page is mounted at / and would answer these in its own words.
        for path in ("/v1/{rest:path}", "/v2/{rest:path}"):
            app.add_api_route(path, _not_found, methods=sorted(ALL_METHODS))
    app.add_exception_handler(TgiLocalError, handle_error)
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.add_exception_handler(ClientDisconnect, handle_disconnect)
    app.add_exception_handler(ClientGoneError, handle_disconnect)
    app.add_exception_handler(Exception, handle_bug)
    return app


def _api_routes(app: FastAPI) -> list[APIRoute]:
    """Ours; an app does not list those of the routers it includes."""
    routes = [route for router in ROUTERS for route in router.routes] + list(app.routes)
    return [route for route in routes if isinstance(route, APIRoute)]


def _with_head(route: APIRoute) -> set[str]:
    """HEAD follows GET, as everywhere on the web."""
    methods = route.methods or set()
    return methods | {"HEAD"} if "GET" in methods else methods


def _add_aliases(app: FastAPI, aliases: Mapping[str, str]) -> None:
    """A path that is served already keeps its meaning; for a health route that would open it: StartupError."""
    served = {route.path: route for route in _api_routes(app)}
    for path, target in aliases.items():
        is_other = path in served and served[path].endpoint is not served[target].endpoint
        if is_other and target == "/health":
            raise StartupError(f"{path} is a route of this server already; choose another AIP_HEALTH_ROUTE")
        if path not in served:
            app.add_api_route(path, served[target].endpoint, methods=sorted(_with_head(served[target])))


def _add_method_not_allowed(app: FastAPI, skip: tuple[str, ...]) -> None:
    """Answer the methods a path does not have with 405; a page mounted at / would swallow them otherwise."""
    methods: dict[str, set[str]] = {}
    for route in _api_routes(app):
        methods.setdefault(route.path, set()).update(_with_head(route))
    for path, allowed in methods.items():
        if path not in skip:
            missing = ALL_METHODS - allowed
            app.add_api_route(path, _method_not_allowed(allowed), methods=sorted(missing))


def _not_found(request: Request) -> Response:
    raise HTTPException(404)


def _method_not_allowed(allowed: set[str]) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        raise HTTPException(405, headers={"allow": ", ".join(sorted(allowed))})

    return endpoint
