"""Building blocks shared by all skills: dialogues, text variation and the fact file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

Turn = tuple[str, str]
"""One exchange: what the user writes and what the assistant answers."""

FACTS_FILE = Path(__file__).with_name("facts.txt")

_SLOT = re.compile(r"(\{\w+\})")
_OPENERS = (
    "hey, ",
    "hi, ",
    "hello, ",
    "ok, ",
    "okay, ",
    "so, ",
    "well, ",
    "um, ",
    "please ",
    "now ",
    "hey ",
    "quick question: ",
)
_CLOSERS = (" please", ", please", " thanks", ", thanks", " thank you", " :)")


@dataclass
class Dialogue:
    """One training document: a chat (messages, perhaps with tools) or, with ``text`` set, a plain text."""

    skill: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    text: str | None = None


@dataclass
class Fact:
    """What the model is taught about one thing."""

    answer: str = ""
    kind: str = "general"
    names: list[str] = field(default_factory=list)
    plurals: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    short: list[Turn] = field(default_factory=list)


def load_facts(path: Path = FACTS_FILE) -> list[Fact]:
    """Read the fact file (its first lines describe the format)."""
    facts = []
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
        fact = Fact()
        for line in block.splitlines():
            key, _, value = line.partition(": ")
            if key == "t":
                fact.names += value.split("; ")
            elif key == "p":
                fact.plurals += value.split("; ")
            elif key == "q":
                fact.questions.append(value)
            elif key == "s":
                question, _, word = value.partition(" => ")
                fact.short.append((question, word))
            elif key == "k":
                fact.kind = value
            elif key == "a":
                fact.answer = value
        if fact.answer:
            facts.append(fact)
    return facts


def chat(turns: list[Turn], system: str | None = None) -> list[dict[str, Any]]:
    """Turn exchanges into a list of chat messages."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return messages


def _typo(text: str, rng: Random) -> str:
    """Swap, drop or double one letter outside of a slot."""
    spots = [m.start() for m in re.finditer(r"[a-z](?=[a-z])(?![^{]*\})", text)]
    if not spots:
        return text
    i = rng.choice(spots)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    return text[:i] + text[i + 1 :] if kind == 1 else text[: i + 1] + text[i:]


def vary(template: str, rng: Random, **slots: Any) -> str:
    """Fill the slots of a wording and change its case, punctuation and politeness at random.

    The slots are filled after the changes, so that what has to be copied keeps its spelling.
    """
    text = template
    if rng.random() < 0.5:
        if rng.random() < 0.2:
            opener = rng.choice(_OPENERS)
            opener = opener[0].upper() + opener[1:] if rng.random() < 0.5 else opener
            keep = text.startswith(("I ", "I'", "{"))
            text = opener + (text if keep else text[0].lower() + text[1:])
        if rng.random() < 0.15:
            end = text[-1] if text[-1] in ".?!" else ""
            text = text.rstrip(".?! ") + rng.choice(_CLOSERS) + end
        if rng.random() < 0.4:
            text = text.rstrip(".?!")
        elif rng.random() < 0.08:
            text += rng.choice(("?", "!", "??", " ?", "..."))
        if rng.random() < 0.4:
            text = text.lower()
        elif rng.random() < 0.05:
            text = "".join(part if _SLOT.fullmatch(part) else part.upper() for part in _SLOT.split(text))
        if rng.random() < 0.12:
            text = _typo(text, rng)
    return text.format(**slots) if slots else text


def normal(text: str) -> str:
    """A wording without case, punctuation and spacing, to compare prompts."""
    return " ".join(re.findall(r"[\w+*/-]+", text.casefold()))
