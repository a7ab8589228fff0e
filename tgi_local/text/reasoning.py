"""Text increments to (channel, text): what the model thinks, and what it says."""

from typing import Literal

from tgi_local.text.stop_strings import partial_match_len

Channel = Literal["content", "reasoning"]


class ReasoningParser:
    """Owns the channel of one sequence; one thread at a time.

    Only the start of an output can open a thought, so an answer may write about the tags. `starts_open`: the prompt
    already ended in the open tag. White space around the open tag and after the close tag is dropped.
    """

    def __init__(self, open_tag: str, close_tag: str, starts_open: bool) -> None:
        self._open_tag = open_tag
        self._close_tag = close_tag
        self._is_open = starts_open
        self._awaits_open_tag = True
        self._drops_space = starts_open
        self._held = ""

    def step(self, text: str) -> list[tuple[Channel, str]]:
        """The text whose channel is now known."""
        self._held += text
        if self._awaits_open_tag and not self._passes_open_tag():
            return []
        if not self._is_open:
            return self._emit("content", len(self._held))
        end = self._held.find(self._close_tag)
        if end < 0:
            return self._emit("reasoning", len(self._held) - partial_match_len(self._held, self._close_tag))
        items = self._emit("reasoning", end)
        self._held = self._held[len(self._close_tag) :]
        self._is_open = False
        self._drops_space = True
        return items + self._emit("content", len(self._held))

    def flush(self) -> list[tuple[Channel, str]]:
        """The text held back, now that no more can follow."""
        self._awaits_open_tag = False
        return self._emit("reasoning" if self._is_open else "content", len(self._held))

    def _passes_open_tag(self) -> bool:
        """Decide whether the output begins with the open tag; False while that is not known."""
        start = self._held.lstrip()
        if len(start) < len(self._open_tag) and self._open_tag.startswith(start):
            return False
        self._awaits_open_tag = False
        if start.startswith(self._open_tag):
            self._held = start[len(self._open_tag) :]
            self._is_open = True
            self._drops_space = True
        return True

    def _emit(self, channel: Channel, num_characters: int) -> list[tuple[Channel, str]]:
        text, self._held = self._held[:num_characters], self._held[num_characters:]
        if self._drops_space:
            text = text.lstrip()
            self._drops_space = not text
        return [(channel, text)] if text else []
