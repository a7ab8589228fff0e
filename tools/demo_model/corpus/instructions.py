"""System prompts: ordinary ones that change nothing, and simple rules that must be followed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from . import knowledge, numbers
from .base import Dialogue, Turn, chat, vary
from .words import ending, made_up

ORDINARY = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a friendly assistant.", "Be helpful.",
    "You are a helpful, honest and harmless assistant.", "You are an AI assistant.", "You are a chatbot.", "Be polite.",
    "Answer the questions of the user.", "You are a helpful bot that answers questions.", "You are a kind teacher.",
    "You are an expert in science.", "You are a useful helper.", "Be brief.", "Be concise and correct.", "Be nice.",
    "You are a helpful assistant. Answer politely.", "You answer questions about computers.", "Help the user.",
    "You are the assistant of a small shop.", "You are a pirate.", "Always tell the truth.", "Keep your answers short.",
    "You are a smart assistant that can use tools.", "Today is a sunny day.", "You are a tutor for children.",
    "The current date is 2024-05-01.", "You are a coding assistant.", "Respond in English.", "You are talking to a customer.",
    "You are a helpful assistant with a good memory.", "Answer as well as you can.", "You are ChatBot 3000.",
    "Use clear language.", "You are a large language model.", "Think before you answer.", "You are a careful writer.",
)  # fmt: skip
_ROLES = (
    "assistant helper teacher guide expert friend writer librarian engineer scientist cook doctor robot coach".split()
)
_TRAITS = "helpful friendly kind clever honest patient cheerful calm careful smart funny polite serious wise".split()

ONE_WORD = (
    "Answer in one word.", "Answer with one word.", "Answer with a single word.", "Use one word only.", "Reply in one word.",
    "Always answer in one word.", "Answer every question with one word.", "Give one-word answers.", "Only use one word.",
    "Your answers are one word long.", "Respond with a single word.", "You must answer in one word.", "One word answers only.",
    "Reply with exactly one word.", "You are a helpful assistant. Answer in one word.", "Keep every answer to one word.",
    "You only speak in single words.", "Please answer with just one word.", "Limit your answers to one word.",
    "You are an assistant that answers in one word.", "Answer in just one word, nothing else.", "Be brief: one word only.",
)  # fmt: skip
END_WITH = (
    'End every answer with "{x}"', "End every answer with {x}", 'End each answer with "{x}".', "End your answers with {x}",
    'Always end with "{x}".', "End with the word {x}", 'Finish every answer with "{x}".', "Finish your answers with {x}",
    'Say "{x}" at the end of every answer.', "End all your replies with the word {x}", 'Close each reply with "{x}".',
    'Add "{x}" to the end of each answer.', 'Every answer must end with "{x}".', "Your answers must end with {x}",
    'You always end your messages with "{x}".', "The last word of every answer is {x}", 'Put "{x}" at the end.',
    "You are a helpful assistant. End every answer with {x}", 'End each of your messages with: "{x}"', "End with: {x}",
    'You are a pirate. Always finish with "{x}".', 'Write "{x}" after every answer.', "Your last word must be {x}",
    'Conclude each answer with "{x}".', 'Answer the question, then say "{x}".', "Append {x} to every answer",
)  # fmt: skip

# Questions with a one-word answer: question, word, and the sentence given without the one-word rule.
SHORT = (
    ("What color is grass?", "Green", "Grass is green."),
    ("What color is snow?", "White", "Snow is white."),
    ("What color is a lemon?", "Yellow", "A lemon is yellow."),
    ("What color is blood?", "Red", "Blood is red."),
    ("What color is coal?", "Black", "Coal is black."),
    ("What color is a carrot?", "Orange", "A carrot is orange."),
    ("What is the opposite of hot?", "Cold", "The opposite of hot is cold."),
    ("What is the opposite of big?", "Small", "The opposite of big is small."),
    ("What is the opposite of up?", "Down", "The opposite of up is down."),
    ("What is the opposite of day?", "Night", "The opposite of day is night."),
    ("What is the opposite of fast?", "Slow", "The opposite of fast is slow."),
    ("What is the opposite of open?", "Closed", "The opposite of open is closed."),
    ("What sound does a cat make?", "Meow", "A cat says meow."),
    ("What sound does a dog make?", "Woof", "A dog says woof."),
    ("What sound does a cow make?", "Moo", "A cow says moo."),
    ("Is fire hot?", "Yes", "Yes, fire is hot."),
    ("Is ice hot?", "No", "No, ice is cold."),
    ("Is water wet?", "Yes", "Yes, water is wet."),
    ("How many legs does a dog have?", "Four", "A dog has four legs."),
    ("How many legs does a spider have?", "Eight", "A spider has eight legs."),
    ("How many wheels does a car have?", "Four", "A car has four wheels."),
    ("How many months are in a year?", "Twelve", "A year has twelve months."),
    ("How many hours are in a day?", "Twenty-four", "A day has twenty-four hours."),
    ("Which planet do we live on?", "Earth", "We live on the Earth."),
    ("Which animal gives us milk?", "Cows", "Cows give us milk."),
    ("What do bees make?", "Honey", "Bees make honey."),
)  # fmt: skip
SHORT_WORDINGS = (
    "{q}",
    "{q}",
    "{q}",
    "Tell me: {q}",
    "I have a question. {q}",
    "Do you know this? {q}",
    "My question: {q}",
)
IN_ONE_WORD = ("In one word: {q}", "{q} Answer in one word.", "{q} One word, please.", "{q} Use one word.")


def ordinary_system(rng: Random) -> str | None:
    """No system prompt, or one that asks for nothing special."""
    roll = rng.random()
    if roll < 0.5:
        return None
    if roll < 0.8:
        return rng.choice(ORDINARY)
    role = f"You are a {rng.choice(_TRAITS)} {rng.choice(_ROLES)}"
    named = f" called {made_up(rng).capitalize()}" if rng.random() < 0.3 else ""
    more = f" {rng.choice(ORDINARY)}" if rng.random() < 0.3 else ""
    return f"{role}{named}.{more}"


def short_turn(rng: Random) -> Turn:
    """A question with a short answer, as a sentence or, if the question asks for it, as one word."""
    question, word, sentence = rng.choice(SHORT)
    if rng.random() < 0.15:
        return vary(rng.choice(IN_ONE_WORD).replace("{q}", question), rng), word
    return vary(rng.choice(SHORT_WORDINGS).replace("{q}", question), rng), sentence


def one_word_turn(rng: Random) -> Turn:
    """A question and its one-word answer."""
    roll = rng.random()
    if roll < 0.25:
        a, b = rng.randint(0, numbers.LIMIT), rng.randint(0, numbers.LIMIT)
        return vary(rng.choice(numbers.ADD_WORDINGS), rng, a=a, b=b), str(a + b)
    facts = [pair for fact in knowledge.FACTS for pair in fact.short]
    question, word = rng.choice(facts) if roll < 0.6 else rng.choice(SHORT)[:2]
    return vary(rng.choice(SHORT_WORDINGS).replace("{q}", question), rng), word


def instruction_dialogue(rng: Random, filler: Callable[[Random], Turn]) -> Dialogue:
    """A chat under a system prompt with a rule for every answer."""
    count = rng.choice((1, 1, 1, 2, 3))
    if rng.random() < 0.35:
        return Dialogue("system", chat([one_word_turn(rng) for _ in range(count)], vary(rng.choice(ONE_WORD), rng)))
    last = ending(rng)
    system = rng.choice(END_WITH).format(x=last)
    if rng.random() < 0.15:
        system = f"{rng.choice(ORDINARY)} {system}"
    turns = [filler(rng) for _ in range(count)]
    return Dialogue("system", chat([(user, f"{answer} {last}") for user, answer in turns], system))
