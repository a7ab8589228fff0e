"""Repeating a text.  Useful to try the server, and dense practice in copying for the skills that need it."""

from __future__ import annotations

from random import Random

from .base import Turn
from .words import END_WORDS, city, ending, made_up, name

WORDINGS = (
    "Repeat: {x}", "Repeat after me: {x}", "Say: {x}", 'Say "{x}"', "Repeat this: {x}", "Echo: {x}", "Copy this text: {x}",
    "Please repeat: {x}", "Repeat the words {x}", 'Repeat "{x}"', "Write exactly this: {x}", "Say {x}", "Echo {x}",
    'Copy "{x}"', "Can you repeat {x}", "Type this: {x}", "Repeat this text: {x}", "Repeat what I write: {x}",
)  # fmt: skip


def _word(rng: Random) -> str:
    """A word, a name, a number or a made-up word."""
    roll = rng.random()
    if roll < 0.15:
        return rng.choice(END_WORDS.split())
    if roll < 0.25:
        return name(rng)
    if roll < 0.3:
        return city(rng)
    if roll < 0.4:
        return ending(rng)
    if roll < 0.55:
        return str(rng.randint(0, 10 ** rng.randint(1, 4)))
    return made_up(rng, (1, 3)).capitalize() if roll < 0.75 else made_up(rng, (1, 3))


def repeat_turn(rng: Random) -> Turn:
    """Repeat one to eight words."""
    text = " ".join(_word(rng) for _ in range(rng.randint(1, 8)))
    wording = rng.choice(WORDINGS)
    return (wording.lower() if rng.random() < 0.3 else wording).format(x=text), text
