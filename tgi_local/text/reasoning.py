"""How models mark what they think, and text increments to (channel, text): what a model thinks, and what it says."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from tgi_local.text.stop_strings import partial_match_len

Channel = Literal["content", "reasoning"]


@dataclass(frozen=True, slots=True)
class ThoughtFormat:
    """A thought is written `begin THOUGHT end`, and after it comes the answer, or a call.

    `answer_begin` opens every answer; `asides` open what is said besides one, up to `end`; with `repeats`, more thoughts may
    follow. `around_answer` are tags that some models write around an answer. `tokens` are the strings that vocabularies
    have as one token.
    """

    begin: str
    end: str
    tokens: tuple[str, ...] = ()
    answer_begin: str = ""
    asides: tuple[str, ...] = ()
    repeats: bool = False
    around_answer: tuple[str, str] = ("", "")

    def starts_open(self, prompt: str) -> bool:
        """Whether a template has opened a thought at the end of its prompt."""
        return prompt.rstrip().endswith(self.begin.rstrip())

    def starts_closed(self, prompt: str) -> bool:
        """Whether a template has closed an empty thought, or an answer goes on that has begun."""
        if self.answer_begin:  # whose `end` also begins the assistant's turn
            return not prompt.rstrip().endswith(self.end[self.end.rindex("<") :])
        return prompt.rstrip().endswith(self.end)


def _tagged(begin: str, end: str, around_answer: tuple[str, str] = ("", "")) -> ThoughtFormat:
    return ThoughtFormat(begin, end, tokens=(begin, end), around_answer=around_answer)


NO_THOUGHTS = ThoughtFormat("", "")
THINK = _tagged("<think>", "</think>")
# gpt-oss.
HARMONY = ThoughtFormat(
    begin="<|channel|>analysis<|message|>",
    end="<|end|><|start|>assistant",
    tokens=("<|channel|>", "<|message|>", "<|end|>", "<|start|>"),
    answer_begin="<|channel|>final<|message|>",
    asides=("<|channel|>commentary<|message|>",),
    repeats=True,
)
GEMMA4 = ThoughtFormat(begin="<|channel>thought\n", end="<channel|>", tokens=("<|channel>", "<channel|>"))

# What a template or a vocabulary must hold, the most telling first.
_KNOWN = (
    ("<|channel|>", HARMONY),
    ("<|channel>thought", GEMMA4),
    ("<|START_THINKING|>", _tagged("<|START_THINKING|>", "<|END_THINKING|>")),
    ("<seed:think>", _tagged("<seed:think>", "</seed:think>")),
    ("[THINK]", _tagged("[THINK]", "[/THINK]")),
    ("◁think▷", _tagged("◁think▷", "◁/think▷")),
    ("Here is my thought process:", _tagged("Here is my thought process:", "Here is my response:")),
    (
        "[BEGIN FINAL RESPONSE]",
        _tagged("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", ("", "[END FINAL RESPONSE]")),
    ),
    (
        "<|begin_of_thought|>",
        _tagged("<|begin_of_thought|>", "<|end_of_thought|>", ("<|begin_of_solution|>", "<|end_of_solution|>")),
    ),
    ("<thought>", _tagged("<thought>", "</thought>")),
)


def find_thoughts(sources: str, added_tokens: Collection[str]) -> ThoughtFormat | None:
    """How a model marks its thoughts, by its chat template's text or its vocabulary; None where nothing tells."""
    for sign, format in _KNOWN:
        if sign in sources or sign in added_tokens:
            return format
    if THINK.begin not in sources and THINK.begin not in added_tokens:
        return None
    for tag in ("answer", "response"):  # Hunyuan; Granite and ERNIE
        if f"</{tag}>" in sources:
            return _tagged(THINK.begin, THINK.end, (f"<{tag}>", f"</{tag}>"))
    return THINK


class ReasoningParser:
    """Owns the channel of one sequence; one thread at a time.

    Only the start of an output can open a thought, so an answer may write about the tags; what is a message of its own
    may follow any other. White space around the open tag and after the close tag is dropped.
    """

    def __init__(self, format: ThoughtFormat, *, starts_open: bool) -> None:
        """`starts_open`: the prompt already ended in the open tag."""
        self._format = format
        self._openings: dict[str, Channel] = {format.begin: "reasoning"}
        if format.repeats:
            self._openings |= dict.fromkeys((format.answer_begin, *format.asides), "content")
        self._channel: Channel = "reasoning" if starts_open else "content"
        self._awaits_opening = True
        self._drops_space = starts_open
        self._closing = ""  # the tag that closes an answer whose opening was there
        self._held = ""

    def step(self, text: str) -> list[tuple[Channel, str]]:
        """The text whose channel is now known."""
        self._held += text
        items: list[tuple[Channel, str]] = []
        while self._advance(items):
            pass
        return items

    def flush(self) -> list[tuple[Channel, str]]:
        """The text held back, now that no more can follow."""
        self._awaits_opening = False
        if self._closing and self._held.rstrip().endswith(self._closing):
            self._held = self._held.rstrip().removesuffix(self._closing).rstrip()
        if self._format.repeats:  # a message's end that nothing follows
            self._held = self._held.removesuffix(self._format.end[: self._format.end.index(">") + 1])
        items: list[tuple[Channel, str]] = []
        self._emit(items, len(self._held))
        return items

    def _advance(self, items: list[tuple[Channel, str]]) -> bool:
        """Move over one mark; False when the held text ends before the next one."""
        if self._awaits_opening:
            return self._passes_opening()
        end = self._format.end
        if self._channel == "content" and not self._format.repeats:
            self._emit(items, len(self._held) - self._len_of_tail())
            return False
        stop = self._held.find(end)
        if stop < 0:
            self._emit(items, len(self._held) - partial_match_len(self._held, end))
            return False
        self._emit(items, stop)
        self._held = self._held[len(end) :]
        self._channel = "content"
        self._drops_space = True
        opening, closing = self._format.around_answer
        if not self._format.repeats:
            self._openings = {opening: "content"} if opening else {}
            self._closing = "" if opening else closing
        self._awaits_opening = bool(self._openings)
        return True

    def _len_of_tail(self) -> int:
        """How much of the end of an answer may be its closing tag, and white space around it."""
        closing = self._closing
        if not closing:
            return 0
        text = self._held.rstrip()
        text = (
            text.removesuffix(closing)
            if text.endswith(closing)
            else text[: len(text) - partial_match_len(text, closing)]
        )
        return len(self._held) - len(text.rstrip())

    def _passes_opening(self) -> bool:
        """Decide whether a message begins with one of its marks; False while that is not known."""
        start = self._held.lstrip()
        for opening, channel in self._openings.items():
            if start.startswith(opening):
                self._held = start[len(opening) :]
                self._channel = channel
                self._drops_space = True
                self._awaits_opening = False
                if opening == self._format.around_answer[0]:
                    self._closing = self._format.around_answer[1]
                return True
        if any(opening.startswith(start) for opening in self._openings):
            return False
        self._awaits_opening = False
        return True

    def _emit(self, items: list[tuple[Channel, str]], num_characters: int) -> None:
        text, self._held = self._held[:num_characters], self._held[num_characters:]
        if self._drops_space:
            text = text.lstrip()
            self._drops_space = not text
        if text:
            items.append((self._channel, text))
