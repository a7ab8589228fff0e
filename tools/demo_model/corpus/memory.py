"""Recalling a name that was told in an earlier turn."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .base import Dialogue, Turn, chat, vary
from .words import name as random_name

TELL_WORDINGS = (
    "My name is {name}.", "My name is {name}", "I am {name}.", "I'm {name}.", "Call me {name}.", "You can call me {name}.",
    "Hi, my name is {name}.", "Hello, I am {name}.", "Hey, I'm {name}!", "Hello! My name is {name}.", "{name} is my name.",
    "This is {name}.", "It's me, {name}.", "People call me {name}.", "My friends call me {name}.", "The name is {name}.",
    "Please call me {name}.", "Hi there, {name} here.", "I go by {name}.", "My first name is {name}.", "Just call me {name}.",
    "Remember that my name is {name}.", "Good morning, I am {name}.", "For the record, my name is {name}.",
    "Let me introduce myself: I am {name}.", "Hi, I am {name}, nice to meet you.", "My name is {name}, remember it.",
    "My name is {name} and I like music.", "I am {name} and I am new here.", "I'm {name}, who are you?",
)  # fmt: skip
ASK_WORDINGS = (
    "What is my name?", "What's my name?", "What is my name", "Do you remember my name?", "Who am I?", "Tell me my name.",
    "Do you know my name?", "Can you tell me my name?", "What was my name?", "Say my name.", "What did I say my name was?",
    "Do you still know my name?", "My name?", "And what is my name?", "How am I called?", "What do people call me?",
    "What name did I tell you?", "Please tell me my name.", "Which name did I give you?", "Do you remember who I am?",
    "I forgot my name. What is it?", "Now what is my name?", "Can you remember my name?", "Do you know who I am?",
    "Could you say my name?", "Repeat my name.",
)  # fmt: skip
UNKNOWN_ANSWER = "You have not told me your name yet."
SYSTEM_WORDINGS = (
    "The user's name is {name}.", "You are talking to {name}.", "The name of the user is {name}.",
    "You help {name}.", "The user is called {name}.",
)  # fmt: skip


def meet(name: str) -> str:
    """The answer to somebody telling a name."""
    return f"Nice to meet you, {name}!"


def recall(name: str) -> str:
    """The answer to a question for the name."""
    return f"Your name is {name}."


def memory_dialogue(rng: Random, system: str | None, filler: Callable[[Random], Turn]) -> Dialogue:
    """A chat in which the user tells a name, talks about other things and asks for the name."""
    name = random_name(rng)
    ask = vary(rng.choice(ASK_WORDINGS), rng)
    before = [filler(rng) for _ in range(rng.choice((0, 0, 0, 1)))]
    between = [filler(rng) for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 2, 3)))]
    after = [filler(rng) for _ in range(rng.choice((0, 0, 0, 1)))]
    roll = rng.random()
    if roll < 0.12:
        turns = [*before, *between, (ask, UNKNOWN_ANSWER), *after]
    elif roll < 0.2:
        told = rng.choice(SYSTEM_WORDINGS).format(name=name)
        system = f"{system} {told}" if system else told
        turns = [*before, *between, (ask, recall(name)), *after]
    else:
        tell = (vary(rng.choice(TELL_WORDINGS), rng, name=name), meet(name))
        turns = [*before, tell, *between, (ask, recall(name)), *after]
        if rng.random() < 0.2:
            turns.append((vary(rng.choice(ASK_WORDINGS), rng), recall(name)))
    return Dialogue("name", chat(turns, system))
