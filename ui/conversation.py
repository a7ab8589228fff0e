"""From what Gradio keeps of a chat to the messages the API takes."""

from collections.abc import Iterable, Mapping
from typing import Any

from ui.markdown import unshield

ChatMessage = dict[str, str]
ROLES = ("system", "user", "assistant")


def text_of(content: object) -> str:
    """The text of one message's content: a string, or Gradio's list of blocks, of which only text is ever sent."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return str(content.get("text") or "")
    if isinstance(content, Iterable):
        return "".join(text_of(block) for block in content)
    return ""


def api_messages(history: Iterable[Mapping[str, Any]], message: str, system_prompt: str = "") -> list[ChatMessage]:
    """The conversation so far and the new message.

    Thoughts and notices (messages with a title) were said by the page, not to the model, and stay out. Neighbours of one role,
    as a failed turn leaves them, become one message: many chat templates insist that roles alternate.
    """
    messages: list[ChatMessage] = []
    if system_prompt.strip():
        messages.append({"role": "system", "content": system_prompt.strip()})
    for entry in history:
        role, text = entry.get("role"), unshield(text_of(entry.get("content")))
        if role not in ROLES or not text.strip() or (entry.get("metadata") or {}).get("title"):
            continue
        _append(messages, str(role), text)
    _append(messages, "user", unshield(message))
    return messages


def settled(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The history with no spinner left turning, for an answer that was stopped; empty when none was."""
    messages = [dict(entry) for entry in history]
    pending = [entry for entry in messages if (entry.get("metadata") or {}).get("status") == "pending"]
    for entry in pending:
        entry["metadata"] = {**entry["metadata"], "status": "done"}
    return messages if pending else []


def _append(messages: list[ChatMessage], role: str, text: str) -> None:
    if messages and messages[-1]["role"] == role:
        messages[-1] = {"role": role, "content": f"{messages[-1]['content']}\n\n{text}"}
    else:
        messages.append({"role": role, "content": text})
