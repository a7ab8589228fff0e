"""The sign-in page of a server with an API key, and the cookie it gives."""

import hashlib
import hmac
from urllib.parse import parse_qs

SIGN_IN_PATH = "/sign-in"
SESSION_COOKIE = "tgi_local_session"
MAX_FORM_BYTES = 8192
FORM_CONTENT_TYPE = b"application/x-www-form-urlencoded"

_SESSION_LABEL = b"tgi-local session v1"
# `no-referrer` would make browsers send `Origin: null` with the form, which is what a foreign page sends;
# the page's own policy keeps the origin.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="same-origin">
<title>Sign in · tgi-local</title>
<style>
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #16181d; --line: #d3d7de; --accent: #3858d6; --error: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --page: #14161a; --card: #1d2026; --text: #e8eaee; --line: #3a3f49; --accent: #8ea4ff; --error: #ffb4ab }
}
* { box-sizing: border-box }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif }
main { width: min(24rem, calc(100vw - 2rem)); padding: 2rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px }
h1 { margin: 0 0 .25rem; font-size: 1.25rem }
p { margin: 0 0 1.25rem }
label { display: block; font-weight: 600 }
input, button { width: 100%; margin-top: .5rem; padding: .65rem .8rem; border-radius: 8px; font: inherit }
input { border: 1px solid var(--line); background: var(--page); color: inherit }
button { margin-top: 1rem; border: 0; background: var(--accent); color: var(--card); font-weight: 600; cursor: pointer }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
[role="alert"] { color: var(--error) }
</style>
</head>
<body>
<main>
<h1>Sign in</h1>
<p>This server asks for its API key.</p>
<!--message-->
<form method="post" action="/sign-in">
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button type="submit">Sign in</button>
</form>
</main>
</body>
</html>
"""


def sign_in_page(message: str | None = None) -> bytes:
    """The page, with one of our own messages; self-contained."""
    alert = f'<p role="alert">{message}</p>' if message else ""
    return _PAGE.replace("<!--message-->", alert).encode()


def session_token(api_key: str) -> str:
    """What the cookie holds: proof of the key, from which the key can not be read."""
    return hmac.new(api_key.encode(), _SESSION_LABEL, hashlib.sha256).hexdigest()


def session_cookie(api_key: str, *, is_https: bool, is_framed: bool) -> str:
    """The `Set-Cookie` value of a browser session. In another site's frame, browsers send no SameSite cookie."""
    scope = "; SameSite=None; Secure; Partitioned" if is_framed else "; SameSite=Strict"
    if is_https and not is_framed:
        scope += "; Secure"
    return f"{SESSION_COOKIE}={session_token(api_key)}; Path=/; HttpOnly{scope}"


def session_cookies(cookie_header: bytes) -> list[bytes]:
    """The session tokens in one `Cookie` header."""
    pairs = (part.strip().partition(b"=") for part in cookie_header.split(b";"))
    return [value for name, _, value in pairs if name == SESSION_COOKIE.encode()]


def read_form_key(body: bytes) -> str:
    """The key of a posted form; empty when there is none. Spaces around a pasted key are dropped."""
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=8)
    except ValueError:
        return ""
    return fields.get("key", [""])[0].strip()
