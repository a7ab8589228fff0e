"""One turn of the chat: ask the API, and show the answer as it comes."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any, TypeAlias

import gradio as gr
from huggingface_hub.inference._generated.types import ChatCompletionStreamOutput

from ui.client import ApiClient, Sampling
from ui.conversation import api_messages
from ui.notices import API_ERRORS, notice_for, status_of
from ui.reply import PageMessage, Reply

# A Gradio update costs a millisecond or two of this process, which the engine would miss: 12 a second is what an eye can use.
SHOW_EVERY_S = 0.08
POLL_EVERY_S = 0.5
RACES_LOST = 3  # answers of 503 from a server that calls itself ready


# Sends the turn to the API.
Ask: TypeAlias = Callable[[], AbstractAsyncContextManager[AsyncGenerator[ChatCompletionStreamOutput, None]]]


class Turns:
    def __init__(self, api: ApiClient, patience_s: float) -> None:
        self._api = api
        self._patience_s = patience_s

    async def respond(
        self,
        message: str,
        history: list[dict[str, Any]],
        system_prompt: str,
        temperature: float,
        top_p: float,
        max_tokens: float,
        request: gr.Request | None = None,
    ) -> AsyncGenerator[tuple[list[PageMessage], str], None]:
        """Chat with the model: the answer as it grows, and its figures. Gradio fills in the visitor's `request`."""
        sampling = Sampling(float(temperature), float(top_p), int(max_tokens))
        messages = api_messages(history, message, system_prompt)
        ask = partial(self._api.chat, messages, sampling, _address(request))
        async with aclosing(self._stream(ask)) as replies:
            async for reply in replies:
                yield reply.messages(), reply.figures(sampling.max_tokens)

    async def _stream(self, ask: Ask) -> AsyncGenerator[Reply, None]:
        reply = Reply()
        yield reply  # takes the figures of the last answer off the page
        try:
            async with aclosing(self._when_ready(reply, ask)) as growing:
                async for _ in growing:
                    yield reply
        except API_ERRORS as error:
            reply.finish(notice_for(error, mid_answer=bool(reply.text)))
        else:
            reply.finish()
        yield reply

    async def _when_ready(self, reply: Reply, ask: Ask) -> AsyncGenerator[None, None]:
        """A message sent while the model loads waits for it; nobody needs to send it again."""
        deadline = time.monotonic() + self._patience_s
        races_left = RACES_LOST
        while True:
            try:
                async with aclosing(self._answer(reply, ask)) as growing:
                    async for _ in growing:
                        yield
                return
            except API_ERRORS as error:
                health = await self._api.health() if status_of(error) == 503 else None
                races_left -= health is not None and health.is_ready
                loading = health is not None and health.state in ("loading", "ready")
                if not loading or health is None or races_left < 0 or time.monotonic() > deadline:
                    raise
                reply.waiting = f"It is loading{f': {health.detail}' if health.detail else ''}. Your message is kept."
            yield
            await asyncio.sleep(POLL_EVERY_S)

    async def _answer(self, reply: Reply, ask: Ask) -> AsyncGenerator[None, None]:
        shown_at = float("-inf")
        reply.started = time.monotonic()
        async with ask() as chunks:
            async for chunk in chunks:
                is_news = reply.take(chunk)
                reply.waiting = ""
                now = time.monotonic()
                if is_news and now - shown_at >= SHOW_EVERY_S:
                    shown_at = now
                    yield


def _address(request: gr.Request | None) -> str:
    """Where a visitor's browser is; a Space's proxies are seen through before it gets here."""
    return str(request.client.host) if request is not None and request.client is not None else ""
