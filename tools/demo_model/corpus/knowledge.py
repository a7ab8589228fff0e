"""Questions about computing, everyday science, and fruit and vegetables, with one taught answer each."""

from __future__ import annotations

from random import Random

from .base import Fact, Turn, load_facts, vary

FACTS = load_facts()
PRODUCE_FACTS = [fact for fact in FACTS if fact.kind == "produce"]
GENERAL_FACTS = [fact for fact in FACTS if fact.kind != "produce"]

NAME_WORDINGS = (
    "What is {t}?", "What is {t}?", "What's {t}?", "Explain {t}.", "Explain {t} to me.", "Can you explain {t}?",
    "Define {t}.", "Tell me about {t}.", "Tell me something about {t}.", "What do you know about {t}?",
    "What does {t} mean?", "Describe {t}.", "I want to know what {t} is.", "What exactly is {t}?",
    "Do you know what {t} is?", "Please explain what {t} is.", "{t}?", "{t}", "Explain {t} in simple words.",
    "How would you explain {t}?", "What is meant by {t}?", "Give me a definition of {t}.", "Help me understand {t}.",
    "In short, what is {t}?", "Tell me what {t} is.", "Can you tell me about {t}?", "Could you explain {t}?",
    "I have a question about {t}. What is it?", "What is this thing called {t}?", "Teach me about {t}.",
    "Explain to a child what {t} is.", "Who can tell me what {t} is?", "Let's talk about {t}.",
    "Can you tell me what {t} is?", "I do not understand {t}.", "What is {t} in simple terms?",
    "Say something about {t}.", "What is the meaning of {t}?", "Write a few sentences about {t}.",
)  # fmt: skip
PLURAL_WORDINGS = (
    "What are {t}?", "What are {t}?", "Explain {t}.", "Tell me about {t}.", "What do you know about {t}?",
    "Explain what {t} are.", "Can you tell me what {t} are?", "{t}?", "Describe {t}.", "I want to know what {t} are.",
    "What exactly are {t}?", "Can you explain {t}?", "How would you explain {t}?", "Help me understand {t}.",
)  # fmt: skip
QUESTION_WORDINGS = (
    "{q}", "{q}", "{q}", "I have a question. {q}", "Can you answer this? {q}", "Tell me: {q}", "{q} Explain it to me.",
    "{q} I want to know.", "My question is: {q}", "Hello. {q}", "Do you know this? {q}", "Here is a question: {q}",
)  # fmt: skip

# Fruit and vegetables that get a one-line answer: plural, singular.
VEGETABLES = (
    "onions/an onion", "cabbages/a cabbage", "radishes/a radish", "leeks/a leek", "turnips/a turnip", "beets/a beet",
    "parsnips/a parsnip", "artichokes/an artichoke", "shallots/a shallot",
)  # fmt: skip
FRUITS = (
    "pears/a pear", "oranges/an orange", "grapes/a grape", "cherries/a cherry", "lemons/a lemon", "mangoes/a mango",
    "peaches/a peach", "plums/a plum", "limes/a lime", "melons/a melon", "apricots/an apricot",
)  # fmt: skip
PRODUCE_WORDINGS = (
    "Are {p} vegetables?", "Are {p} fruits?", "Is {s} a vegetable?", "Is {s} a fruit?", "Are {p} a fruit or a vegetable?",
    "Is {s} a fruit or a vegetable?", "{p}: fruit or vegetable?", "Do {p} count as vegetables?", "Do {p} count as fruits?",
    "What are {p}, fruits or vegetables?", "Would you say {p} are vegetables?", "Would you say {p} are fruits?",
)  # fmt: skip


def ask_fact(fact: Fact, rng: Random) -> str:
    """A question whose answer is the fact."""
    wordings = (
        ["q"] * min(len(fact.questions), 6) + ["t"] * (4 if fact.names else 0) + ["p"] * min(len(fact.plurals), 1)
    )
    kind = rng.choice(wordings)
    if kind == "q":
        question = rng.choice(fact.questions)
        return vary(rng.choice(QUESTION_WORDINGS).replace("{q}", question), rng)
    if kind == "p":
        return vary(rng.choice(PLURAL_WORDINGS).replace("{t}", rng.choice(fact.plurals)), rng)
    name = fact.names[0] if rng.random() < 0.4 else rng.choice(fact.names)
    text = vary(rng.choice(NAME_WORDINGS).replace("{t}", name), rng)
    return text[0].upper() + text[1:] if rng.random() < 0.6 else text


def knowledge_turn(rng: Random) -> Turn:
    """A question from the fact file."""
    fact = rng.choice(GENERAL_FACTS)
    return ask_fact(fact, rng), fact.answer


def simple_produce() -> list[tuple[str, str, str]]:
    """Plural, singular and answer of each fruit or vegetable with a one-line answer."""
    rows = [(*item.split("/"), "vegetables") for item in VEGETABLES] + [(*item.split("/"), "fruits") for item in FRUITS]
    return [(plural, one, f"{plural.capitalize()} are {kind}.") for plural, one, kind in rows]


def produce_turn(rng: Random) -> Turn:
    """Is it a fruit or a vegetable?"""
    if rng.random() < 0.7:
        fact = rng.choice(PRODUCE_FACTS[:1] * 3 + PRODUCE_FACTS)
        return ask_fact(fact, rng), fact.answer
    plural, one, answer = rng.choice(simple_produce())
    wording = rng.choice(PRODUCE_WORDINGS)
    text = vary(wording.replace("{p}", plural).replace("{s}", one), rng)
    return (text[0].upper() + text[1:] if rng.random() < 0.8 else text), answer
