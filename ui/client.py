"""The page's way to the server: one short-lived client per turn, our own key, and no detour.

The proxy of the environment never sees a call to this machine, and the user's Hugging Face token never leaves it:
huggingface_hub sends that token to any address when it is given no key, so it is always given one.
"""

import functools
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import AsyncInferenceClient, set_async_client_factory
from huggingface_hub.inference._generated.types import ChatCompletionInputStreamOptions, ChatCompletionStreamOutput

from ui.conversation import ChatMessage

NO_KEY = "-"
VISITOR_HEADER = "x-page-visitor"
PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Health:
    """What `GET /health` says, in one word (`ready`, `loading`, `failed`, `unhealthy`, `unreachable`) and one sentence."""

    state: str
    detail: str = ""

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"


@dataclass(frozen=True)
class Sampling:
    temperature: float
    top_p: float
    max_tokens: int


class ApiClient:
    def __init__(self, base_url: str, api_key: str | None, page_token: str = "") -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._key = api_key or NO_KEY
        self._page_token = page_token
        self._trusts_environment = not is_loopback(self.base_url)
        # Process-wide in huggingface_hub. The default factory reads every CA certificate anew: 40 ms of CPU for each turn.
        set_async_client_factory(self._session)

    async def health(self) -> Health:
        try:
            response = await self._get("/health")
        except httpx2.HTTPError:
            return Health("unreachable")
        if response.is_success:
            return Health("ready")
        body = _json_object(response)
        return Health(str(body.get("state") or "unhealthy"), str(body.get("detail") or ""))

    async def info(self) -> dict[str, Any]:
        try:
            response = await self._get("/info")
        except httpx2.HTTPError:
            return {}
        return _json_object(response) if response.is_success else {}

    @asynccontextmanager
    async def chat(
        self, messages: list[ChatMessage], sampling: Sampling, visitor: str = ""
    ) -> AsyncGenerator[AsyncGenerator[ChatCompletionStreamOutput, None], None]:
        """Leaving the block, for whatever reason, closes the connection, and with it the generation.

        `visitor` is the address that the turn came from: the engine serves visitors in turn, not this page.
        """
        headers = {VISITOR_HEADER: f"{self._page_token} {visitor}"} if self._page_token and visitor else None
        async with AsyncInferenceClient(base_url=self.base_url, api_key=self._key, headers=headers) as client:
            yield await client.chat_completion(
                messages,
                stream=True,
                stream_options=ChatCompletionInputStreamOptions(include_usage=True),
                temperature=sampling.temperature,
                top_p=sampling.top_p if sampling.top_p < 1 else None,  # TGI's own range ends before 1
                max_tokens=sampling.max_tokens,
            )

    async def _get(self, path: str) -> httpx2.Response:
        async with self._session() as session:
            headers = {"Authorization": f"Bearer {self._key}"}
            return await session.get(self.base_url + path, headers=headers, timeout=PROBE_TIMEOUT_S)

    def _session(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            verify=_tls(),
            trust_env=self._trusts_environment,
            timeout=httpx2.Timeout(None, connect=PROBE_TIMEOUT_S),  # an answer may take as long as it takes
            event_hooks={"response": [_read_error_body]},
        )


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _read_error_body(response: httpx2.Response) -> None:
    if response.is_error:
        await response.aread()


def _json_object(response: httpx2.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return dict(body) if isinstance(body, Mapping) else {}
