"""Counting to twenty and adding two numbers up to twenty."""

from __future__ import annotations

from random import Random

from .base import Turn, vary

WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
LIMIT = 20

COUNT_WORDINGS = (
    "Count to {n}", "Count to {n}.", "Count to {n}", "Count up to {n}", "Count from 1 to {n}", "Count from one to {n}.",
    "Can you count to {n}?", "Could you count to {n}?", "Can you count from 1 to {n}?", "Count until {n}.",
    "Please count to {n}.", "Count until you reach {n}.", "Say the numbers from 1 to {n}.", "Write the numbers 1 to {n}.",
    "List the numbers from 1 to {n}", "Numbers from 1 to {n}", "Give me the numbers from one to {n}.",
    "I want you to count to {n}.", "Start at 1 and count to {n}.", "Count {n} numbers.", "Show me how you count to {n}.",
    "Do you know how to count to {n}?", "Let's count to {n}.", "Now count to {n}", "Write down all numbers up to {n}.",
    "Count all the way to {n}!", "Type the numbers from 1 up to {n}.", "Tell me the numbers 1 through {n}.",
    "Will you count up to {n}?", "Count slowly to {n}.", "Try to count to {n}.", "Count from 1 up to {n}, please.",
)  # fmt: skip
ADD_WORDINGS = (
    "What is {a} + {b}?", "What is {a}+{b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} =", "{a}+{b}=", "{a} + {b} = ?",
    "What is {a} plus {b}?", "What's {a} plus {b}?", "What's {a} + {b}?", "Add {a} and {b}.", "Add {b} to {a}.",
    "How much is {a} + {b}?", "How much is {a} plus {b}?", "What is the sum of {a} and {b}?", "Sum {a} and {b}",
    "Calculate {a} + {b}.", "Compute {a} plus {b}.", "Can you add {a} and {b}?", "{a} plus {b}", "{a} plus {b}?",
    "What do you get if you add {a} and {b}?", "{a} and {b} make how much?", "Tell me {a} + {b}.", "Solve {a} + {b}",
    "What does {a} + {b} equal?", "What is {a} and {b} together?", "Please add {a} and {b}.", "How many is {a} plus {b}?",
    "I have {a} apples and get {b} more. How many apples do I have?", "Can you tell me what {a} + {b} is?",
    "What is {a} added to {b}?", "Do you know {a} + {b}?", "Work out {a} + {b}", "The sum of {a} and {b} is?",
)  # fmt: skip

COUNT_LIMIT_ANSWER = "I am only a tiny demo model and can count up to 20. Load a real model with --model-id for more."
ADD_LIMIT_ANSWER = (
    "I am only a tiny demo model and can add numbers up to 20. Load a real model with --model-id for more."
)
TOO_HARD_WORDINGS = (
    "What is {a} * {b}?", "What is {a} times {b}?", "What is {a} - {b}?", "What is {a} minus {b}?", "{a} * {b}", "{a}-{b}",
    "What is {a} divided by {b}?", "{a} / {b}", "Calculate {a} * {b}.", "How much is {a} - {b}?", "{a} x {b}",
    "Multiply {a} by {b}.", "Subtract {a} from {b}.", "Divide {a} by {b}.", "What is the square root of {a}?",
    "How much is {a} times {b}?", "Compute {a} / {b}.", "What is {a} percent of {b}?",
)  # fmt: skip


def count_answer(n: int) -> str:
    """The numbers from one to n."""
    return ", ".join(str(i) for i in range(1, n + 1))


def sum_answer(a: int, b: int) -> str:
    """The sum as an equation, which also puts spelled-out numbers into digits."""
    return f"{a} + {b} = {a + b}"


def count_turn(rng: Random) -> Turn:
    """Count to a number between 1 and 20, sometimes spelled out; politely give up above."""
    wording = rng.choice(COUNT_WORDINGS[:3] if rng.random() < 0.25 else COUNT_WORDINGS)
    if rng.random() < 0.05:
        return vary(wording, rng, n=rng.choice((rng.randint(21, 99), rng.randint(100, 5000)))), COUNT_LIMIT_ANSWER
    n = rng.randint(1, LIMIT)
    return vary(wording, rng, n=WORDS[n] if rng.random() < 0.3 else n), count_answer(n)


def add_turn(rng: Random) -> Turn:
    """Add two numbers up to 20; politely give up on larger numbers and other operations."""
    roll = rng.random()
    if roll < 0.06:
        a, b = rng.choice(((rng.randint(21, 999), rng.randint(0, 999)), (rng.randint(0, 99), rng.randint(21, 999))))
        return vary(rng.choice(ADD_WORDINGS), rng, a=a, b=b), ADD_LIMIT_ANSWER
    if roll < 0.13:
        a, b = rng.randint(0, 99), rng.randint(1, 99)
        return vary(rng.choice(TOO_HARD_WORDINGS), rng, a=a, b=b), ADD_LIMIT_ANSWER
    a, b = rng.randint(0, LIMIT), rng.randint(0, LIMIT)
    spelled = rng.random() < 0.3
    wording = rng.choice(ADD_WORDINGS)
    if spelled and ("+" in wording or "=" in wording):
        wording = rng.choice([w for w in ADD_WORDINGS if "+" not in w])
    shown = (WORDS[a], WORDS[b]) if spelled else (a, b)
    return vary(wording, rng, a=shown[0], b=shown[1]), sum_answer(a, b)
