"""The training corpus of the demo chat model: dialogues made from templates, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from . import functions, instructions, knowledge, memory, numbers, other, plain, repeat, smalltalk
from .base import Dialogue, Turn, chat

SINGLE_TURNS = {
    "knowledge": (knowledge.knowledge_turn, 30),
    "produce": (knowledge.produce_turn, 6),
    "count": (numbers.count_turn, 11),
    "add": (numbers.add_turn, 18),
    "greet": (smalltalk.greet_turn, 6),
    "identity": (smalltalk.identity_turn, 11),
    "short": (instructions.short_turn, 4),
    "unknown": (other.unknown_turn, 20),
    "repeat": (repeat.repeat_turn, 12),
    "story": (other.story_turn, 1.4),
}
"""Skills that need one exchange only: maker and weight."""

SKILLS = (*SINGLE_TURNS, "name", "system", "tools", "plain")
_SKILL_NAMES = tuple(SINGLE_TURNS)
_WEIGHTS = tuple(weight for _, weight in SINGLE_TURNS.values())
_KIND_WEIGHTS = {"chat": 42, "long": 2, "name": 14, "system": 15, "tools": 21, "plain": 6}


def single_turn(rng: Random, skip: tuple[str, ...] = ()) -> tuple[str, Turn]:
    """A skill and an exchange that shows it."""
    while True:
        skill = rng.choices(_SKILL_NAMES, weights=_WEIGHTS)[0]
        if skill not in skip:
            return skill, SINGLE_TURNS[skill][0](rng)


def short_filler(rng: Random) -> Turn:
    """An exchange for the middle of a chat; the long story is left out to save tokens."""
    skip = ("story",) if rng.random() < 0.5 else ("story", "knowledge", "unknown")
    return single_turn(rng, skip)[1]


def brief_filler(rng: Random) -> Turn:
    """An exchange that is mostly short, so that a rule about the answer is practised more often."""
    skip = ("story",) if rng.random() < 0.3 else ("story", "knowledge", "unknown", "identity", "produce")
    return single_turn(rng, skip)[1]


def no_arithmetic(rng: Random) -> Turn:
    """An exchange for chats with tools, where a calculation would be a call."""
    return single_turn(rng, ("story", "add", "unknown"))[1]


def unknown_with_tools(rng: Random) -> Turn:
    """A question outside of the taught skills that is not about the weather."""
    while True:
        question, answer = other.unknown_turn(rng)
        if not any(word in question.lower() for word in _WEATHER_HINTS):
            return question, answer


_WEATHER_HINTS = (
    "weather",
    "rain",
    "cold",
    "sunny",
    "warm",
    "hot",
    "temperature",
    "umbrella",
    "wind",
    "wear",
    "prime",
    "binary",
)


def dialogue(rng: Random) -> Dialogue:
    """One training document."""
    kind = rng.choices(list(_KIND_WEIGHTS), weights=list(_KIND_WEIGHTS.values()))[0]
    system = instructions.ordinary_system(rng)
    if kind == "name":
        return memory.memory_dialogue(rng, system, short_filler)
    if kind == "system":
        return instructions.instruction_dialogue(rng, brief_filler)
    if kind == "tools":
        return functions.tool_dialogue(rng, system, no_arithmetic, unknown_with_tools)
    if kind == "plain":
        return plain.plain_dialogue(rng)
    if kind == "long":
        return Dialogue("long", chat([short_filler(rng) for _ in range(rng.randint(5, 10))], system))
    skill, turn = single_turn(rng)
    rest = [] if skill == "story" else [short_filler(rng) for _ in range(rng.choice((0, 0, 1, 2)))]
    turns = [*rest, turn]
    return Dialogue(skill, chat(turns, system))


def build(count: int, seed: int) -> Iterator[Dialogue]:
    """The first ``count`` documents of the corpus for a seed."""
    rng = Random(seed)
    for _ in range(count):
        yield dialogue(rng)


def build_copying(count: int, seed: int) -> list[Dialogue]:
    """Chats that only repeat texts.  Training starts with them: the model learns to copy before it learns facts."""
    rng = Random(seed)
    return [Dialogue("repeat", chat([repeat.repeat_turn(rng) for _ in range(rng.randint(1, 3))])) for _ in range(count)]
