"""Whom a request is for: the visitor whom the page names, or the address it comes from."""

import hmac
import ipaddress
import secrets

from starlette.types import Scope

from tgi_local.types import Caller

# The page's server sends it with each of its calls: its token, a space, and the address of its visitor.
VISITOR_HEADER = "x-page-visitor"
# One person has as many IPv6 addresses as they like, all in one network of this size.
IPV6_PREFIX = 64


class Callers:
    """Tells callers apart. There is one API key for all, so that it names nobody; addresses do.

    The page calls the API for all its visitors from this machine. It proves that it is the page by `page_token`,
    which never leaves the process, and is believed whom it names.
    """

    def __init__(self) -> None:
        self.page_token = secrets.token_urlsafe()

    def identify(self, scope: Scope, *, isolates: bool) -> Caller:
        """`isolates`: callers do not trust each other, and share no cached prefixes either."""
        client = scope.get("client")
        principal = self._visitor(scope) or (_network(client[0]) if client else "")
        return Caller(principal, principal if isolates else "")

    def _visitor(self, scope: Scope) -> str:
        values = [value for name, value in scope["headers"] if name == VISITOR_HEADER.encode()]
        token, _, address = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        if not hmac.compare_digest(token, self.page_token.encode()):
            return ""
        return _network(address.decode("latin-1"))


def _network(address: str) -> str:
    """The address, or for IPv6 the network it is in; what is no address stands for itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
