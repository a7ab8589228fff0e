"""Text increments to content and tool calls, of an answer whose calls a grammar keeps valid: calls come as they grow."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tgi_local.constraints import ToolSignature
from tgi_local.text.call_arguments import ArgumentsReader, JsonArguments, TaggedArguments
from tgi_local.text.literal_arguments import LiteralArguments
from tgi_local.text.stop_strings import partial_match_len
from tgi_local.text.tool_formats import ToolFormat, match_head
from tgi_local.types import ToolCallDelta


@dataclass(frozen=True, slots=True)
class Content:
    """Text outside of tool calls."""

    text: str


Item = Content | ToolCallDelta


class ToolCallParser:
    """Owns the tool calls of one sequence; one thread at a time.

    White space around calls is dropped. What does not become a call after all is passed on as content, never dropped.
    """

    def __init__(self, format: ToolFormat, tools: Sequence[ToolSignature]) -> None:
        self._format = format
        self._parameters = {tool.name: tool.parameters for tool in tools}
        self._first_heads = self._heads(format.after_marker)
        self._next_heads = self._heads(format.separator + format.call_begin)
        self._bare_heads = self._heads(format.begin + format.call_begin) if format.is_bare else {}
        self._held = ""
        self._space = ""  # before the call that is open, in case it is none
        self._state: Callable[[], Iterator[Item]] = self._in_text
        self._is_at_start = True
        self._follows_call = False
        self._arguments: ArgumentsReader = JsonArguments()
        self._num_calls = 0

    def step(self, text: str) -> list[Item]:
        """What this text adds; pieces of one call as one."""
        self._held += text
        return _joined(self._run())

    def flush(self) -> list[Item]:
        """What is held back, now that no more can follow: an unfinished head of a call is content."""
        rest, self._held, self._space = self._space + self._held, "", ""
        if self._state == self._in_arguments:
            piece = self._arguments.flush(rest)
            return [ToolCallDelta(self._num_calls - 1, None, piece)] if piece else []
        if self._state == self._in_tail or not rest or (self._follows_call and rest.isspace()):
            return []
        return [Content(rest)]

    def _run(self) -> Iterator[Item]:
        while True:
            before = (self._state, len(self._held))
            yield from self._state()
            if before == (self._state, len(self._held)) or not self._held:
                return

    def _in_text(self) -> Iterator[Item]:
        if self._follows_call:
            self._held = self._held.lstrip()
        if self._is_at_start and self._bare_heads and self._may_begin_bare():
            self._state = self._in_bare_head
            return
        marker = self._format.marker
        start = self._held.find(marker) if marker is not None else -1
        if marker is not None and start >= 0:
            content = self._held[:start].rstrip()
            yield from self._content(content)
            self._space = self._held[len(content) : start] + marker
            self._held = self._held[start + len(marker) :]
            self._state = self._in_head
            return
        held = partial_match_len(self._held, marker) if marker is not None else 0
        num_safe = len(self._held[: len(self._held) - held].rstrip())
        content, self._held = self._held[:num_safe], self._held[num_safe:]
        yield from self._content(content)

    def _may_begin_bare(self) -> bool:
        text = self._held.lstrip()
        return any(head.startswith(text) or text.startswith(head) for head in self._bare_heads)

    def _in_bare_head(self) -> Iterator[Item]:
        if not self._may_begin_bare():
            self._is_at_start = False
            self._state = self._in_text
            return
        text = self._held.lstrip()
        if any(text.startswith(head) for head in self._bare_heads):
            self._held = text
            yield from self._head(self._bare_heads)

    def _in_head(self) -> Iterator[Item]:
        """After the marker."""
        return self._head(self._first_heads)

    def _after_call(self) -> Iterator[Item]:
        """After a call of a series: the next one, or the end."""
        end = self._format.end
        if end and self._held.startswith(end):
            self._held = self._held[len(end) :]
            self._state = self._in_text
            return
        if not end.startswith(self._held):
            yield from self._head(self._next_heads)

    def _head(self, heads: dict[str, str]) -> Iterator[Item]:
        lengths = {head: match_head(head, self._held) for head in heads}
        if any(length == 0 for length in lengths.values()):
            return  # one name may begin another
        head, length = max(lengths.items(), key=lambda item: item[1], default=("", -1))
        if length > 0:
            name = heads[head]
            self._held = self._held[length:]
            self._space = ""
            self._arguments = self._new_arguments(name)
            self._state = self._in_arguments
            self._num_calls += 1
            yield ToolCallDelta(self._num_calls - 1, name, "")
        else:
            text, self._space = self._space, ""
            self._state = self._in_text
            yield from self._content(text)

    def _in_arguments(self) -> Iterator[Item]:
        text, num_used = self._arguments.read(self._held)
        self._held = self._held[num_used:]
        if text or self._arguments.is_done:
            yield ToolCallDelta(self._num_calls - 1, None, text, is_last=self._arguments.is_done)
        if self._arguments.is_done:
            self._state = self._in_tail

    def _in_tail(self) -> Iterator[Item]:
        tail = self._format.call_end
        if not self._held.startswith(tail):
            if not tail.startswith(self._held):  # no grammar lets this happen
                self._state = self._in_text
            return
        self._held = self._held[len(tail) :]
        self._follows_call = True
        self._is_at_start = False
        self._state = self._in_text if self._format.opens_each_call else self._after_call
        yield from ()

    def _content(self, text: str) -> Iterator[Item]:
        if text:
            self._follows_call = self._is_at_start = False
            yield Content(text)

    def _heads(self, opening: str) -> dict[str, str]:
        format = self._format
        return {opening + format.spell_name(name) + format.name_end: name for name in self._parameters}

    def _new_arguments(self, name: str) -> ArgumentsReader:
        if self._format.parameters is None:
            return JsonArguments()
        reader = LiteralArguments if self._format.parameters.quotes else TaggedArguments
        return reader(self._format.parameters, self._format.call_end, self._parameters[name])


def _joined(items: Iterator[Item]) -> list[Item]:
    joined: list[Item] = []
    for item in items:
        last = joined[-1] if joined else None
        if isinstance(item, ToolCallDelta) and item.name is None and isinstance(last, ToolCallDelta):
            joined[-1] = ToolCallDelta(last.index, last.name, last.arguments + item.arguments, item.is_last)
        else:
            joined.append(item)
    return joined
