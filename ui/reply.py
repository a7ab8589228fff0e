"""One answer as it grows: what of it is shown, and the figures below it."""

import time
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.inference._generated.types import ChatCompletionStreamOutput

from ui.markdown import shield
from ui.notices import Notice

PageMessage = dict[str, Any]


@dataclass
class Reply:
    started: float = field(default_factory=time.monotonic)
    text: str = ""
    reasoning: str = ""
    waiting: str = ""  # shown while the model loads
    notice: Notice | None = None
    finish_reason: str | None = None
    completion_tokens: int | None = None
    first_at: float | None = None
    thought_at: float | None = None  # when the reasoning gave way to the answer
    ended_at: float | None = None

    def take(self, chunk: ChatCompletionStreamOutput) -> bool:
        """True when the chunk brought something to show."""
        if chunk.usage is not None:
            self.completion_tokens = chunk.usage.completion_tokens
        if not chunk.choices:
            return False
        choice = chunk.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        delta = choice.delta
        thought = delta.reasoning or getattr(delta, "reasoning_content", None) or ""
        said = delta.content or ""
        if not (thought or said):
            return False
        now = time.monotonic()
        self.first_at = self.first_at or now
        if said and self.reasoning and self.thought_at is None:
            self.thought_at = now
        self.reasoning += thought
        self.text += said
        return True

    def finish(self, notice: Notice | None = None) -> None:
        self.waiting = ""
        self.ended_at = time.monotonic()
        self.notice = notice
        if notice is None and not self.text and not self.reasoning:
            self.notice = Notice("An empty answer", "The model ended its turn without a word. Ask in another way.")

    def messages(self) -> list[PageMessage]:
        """What the chat shows. A message with a title is the page's own and is never sent back to the model."""
        shown: list[PageMessage] = []
        if self.waiting:
            shown.append(_titled("Waiting for the model", self.waiting, status="pending"))
        if self.reasoning:
            shown.append(self._thought())
        if self.text:
            shown.append({"role": "assistant", "content": _blocks(self.text)})
        if self.notice is not None:
            shown.append(_titled(f"⚠️ {self.notice.title}", self.notice.text))
        return shown

    def figures(self, max_tokens: int) -> str:
        """`42 tokens · 63 tok/s · first token 0.2 s`, as far as it is known yet."""
        if self.first_at is None:
            return ""
        facts = [f"first token {self.first_at - self.started:.1f} s"]
        if self.completion_tokens and self.ended_at is not None:
            elapsed = self.ended_at - self.first_at
            if self.completion_tokens > 1 and elapsed > 0:
                facts.insert(0, f"{(self.completion_tokens - 1) / elapsed:.0f} tok/s")
            facts.insert(0, f"{self.completion_tokens} token{'s' if self.completion_tokens > 1 else ''}")
        if self.finish_reason == "length":
            facts.append(f"cut at the limit of {max_tokens} tokens")
        return " · ".join(facts)

    def _thought(self) -> PageMessage:
        ended = self.thought_at or self.ended_at
        if ended is None or self.first_at is None:
            return _titled("Thinking", self.reasoning, status="pending")
        return _titled("Thinking", self.reasoning, status="done", duration=round(ended - self.first_at, 1))


def _titled(title: str, text: str, **metadata: Any) -> PageMessage:
    return {"role": "assistant", "content": _blocks(text), "metadata": {"title": title, **metadata}}


def _blocks(text: str) -> list[dict[str, str]]:
    # A bare string would be dedented and its tabs expanded by Gradio, which breaks code.
    return [{"type": "text", "text": shield(text)}]
