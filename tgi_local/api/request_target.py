"""The address in a request's first line, as proxies write it and as routes are found by it."""

from starlette.types import Scope


def in_origin_form(scope: Scope) -> Scope:
    """`GET http://host/path` as `GET /path` with that Host, whatever the header says: RFC 9112, sections 3.2.2 and 3.3."""
    scheme, separator, rest = scope["path"].partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        return scope
    authority, _, path = rest.partition("/")
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    raw_path = b"/" + scope["raw_path"].partition(b"://")[2].partition(b"/")[2]
    host = (b"host", authority.encode("latin-1", "replace"))
    return {**scope, "path": f"/{path}", "raw_path": raw_path, "headers": [host, *headers]}
