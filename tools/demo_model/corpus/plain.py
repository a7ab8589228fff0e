"""Plain text without chat markup, for clients that send raw text to /generate."""

from __future__ import annotations

from random import Random

from . import knowledge, numbers, other
from .base import Dialogue


def _title(text: str) -> str:
    small = {"a", "an", "the", "of", "in", "is", "are", "do", "does", "and"}
    words = text.split(" ")
    return " ".join(w if i and w in small else w[:1].upper() + w[1:] for i, w in enumerate(words))


def plain_dialogue(rng: Random) -> Dialogue:
    """A question and its answer as two lines, or only a taught text."""
    fact = rng.choice(knowledge.FACTS)
    roll = rng.random()
    if roll < 0.6:
        questions = [f"What is {name}?" for name in fact.names] + fact.questions
        question = questions[0] if rng.random() < 0.3 else rng.choice(questions)
        question = rng.choice((question, question, _title(question), question.lower(), question.rstrip("?")))
        text = f"{question}\n{fact.answer}"
    elif roll < 0.72:
        text = fact.answer
    elif roll < 0.8:
        n = rng.randint(1, numbers.LIMIT)
        text = f"{rng.choice(('Count to', 'count to', 'Count up to'))} {n}\n{numbers.count_answer(n)}"
    elif roll < 0.88:
        a, b = rng.randint(0, numbers.LIMIT), rng.randint(0, numbers.LIMIT)
        text = rng.choice((f"What is {a} + {b}?\n", f"{a} + {b} = ?\n", "")) + numbers.sum_answer(a, b)
    elif roll < 0.98:
        text = f"{other.unknown_question(rng)}\n{other.REFUSAL}"
    else:
        text = other.STORY
    return Dialogue("plain", text=text)
