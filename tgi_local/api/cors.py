"""Cross-origin resource sharing: what an answer says to the pages of other origins."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

_MAX_HEADERS: Final = 100
_HEADER_NAME: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_USUAL_HEADERS: Final = b"authorization, content-type, x-api-key"
_VARY: Final = (b"vary", b"origin, access-control-request-method, access-control-request-headers")


class Cors:
    """Knows the origins whose pages may call the API; `*` for all."""

    def __init__(self, allowed_origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.lower().rstrip("/").encode() for origin in allowed_origins)

    def is_listed(self, origin: bytes) -> bool:
        """`origin` in lower case."""
        return b"*" in self._origins or origin in self._origins

    def headers(self, origins: Sequence[bytes], asked: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """What every answer carries, errors too: nothing unless origins are listed, and never credentials.

        `origins` and `asked` are the values of a request's Origin and Access-Control-Request-Headers.
        """
        if not self._origins:
            return []
        allowed = b"*" if b"*" in self._origins else origins[0] if len(origins) == 1 else b""
        if not self.is_listed(allowed.lower()):
            return [_VARY]
        return [
            (b"access-control-allow-origin", allowed),
            (b"access-control-allow-headers", _requested_headers(asked)),
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-expose-headers", b"*"),
            _VARY,
        ]


def _requested_headers(asked: Sequence[bytes]) -> bytes:
    """SDKs add headers of their own; a listed origin may send any, for no answer ever allows credentials."""
    names = [name.strip() for name in b",".join(asked).split(b",")][:_MAX_HEADERS]
    return b", ".join(name for name in names if _HEADER_NAME.fullmatch(name)) or _USUAL_HEADERS
