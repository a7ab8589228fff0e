"""Held-out prompts: wordings, names, places and rules that occur nowhere in the training corpus.

They are kept apart from the templates of ``corpus/`` and are only used to measure the trained model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from corpus import knowledge, memory, numbers, other, smalltalk

Check = Callable[[str], bool]


@dataclass
class Case:
    """A chat that waits for an answer, and what makes the answer right."""

    skill: str
    messages: list[dict[str, Any]]
    check: Check
    tools: list[dict[str, Any]] | None = field(default=None)
    limit: int = 200

    @property
    def prompt(self) -> str:
        """The last thing the user wrote."""
        return next(m["content"] for m in reversed(self.messages) if m["role"] == "user")


SYSTEMS = (
    None, None, None, "You are a helpful assistant.", "You are an attentive helper for visitors of a museum.",
    "Help people in a friendly tone.", "You assist a busy programmer.",
)  # fmt: skip

NAME_WORDINGS = (
    "Could you tell me what {t} is?", "Give a short explanation of {t}.", "I would like to learn about {t}.",
    "Would you mind explaining {t}?", "what is {t} again", "How do you define {t}?", "Can you describe {t} for me?",
    "What should I know about {t}?", "hey can u tell me what {t} is", "Please tell me about {t}, I am curious.",
)  # fmt: skip
# Whole questions: how the taught answer begins, and other ways to ask for it.
QUESTIONS = (
    ("The sky is blue", "Why's the sky blue?", "what is the reason that the sky is blue", "Can you tell me why the sky is blue?"),
    ("A week has seven", "How many days make up a week?", "tell me how many days a week has", "Which days does a week have?"),
    ("We have seasons", "What is the reason for the seasons?", "why are there seasons", "Can you tell me why we have seasons?"),
    ("Deep learning is", "what's deep learning all about?", "So what is deep learning, really?"),
    ("The capital of France", "What's the French capital?", "Paris is the capital of which country? I mean: what is the capital of France?"),
    ("Photosynthesis is", "What happens during photosynthesis?", "how do plants do photosynthesis"),
    ("Overfitting happens", "When does overfitting happen?", "What does it mean when a model is overfitting?"),
    ("Temperature controls", "What is the effect of temperature when generating text?", "what does setting the temperature do"),
    ("A GPU is", "What is a GPU good for?", "what are GPUs for"),
    ("Python is", "Is Python a programming language?", "what can I do with Python"),
)  # fmt: skip
PRODUCE = (
    ("In botany tomatoes", "are tomatoes really vegetables?", "Is the tomato a vegetable?", "Do you think a tomato is a vegetable?",
     "Should I call tomatoes vegetables?", "tomato - fruit or vegetable?", "Please tell me, are tomatoes vegetables?"),
    ("In botany cucumbers", "Are cucumbers really vegetables?", "Should I call a cucumber a vegetable?", "cucumber - fruit or vegetable?"),
    ("Yes, carrots", "Are carrots really vegetables?", "Should I call a carrot a vegetable?", "Is the carrot a vegetable?"),
    ("Yes, potatoes", "Are potatoes really vegetables?", "Do you think a potato is a vegetable?", "Is the potato a vegetable?"),
    ("Bananas are fruits", "Are bananas really fruits?", "Should I call a banana a fruit?", "banana - fruit or vegetable?"),
    ("Apples are fruits", "Are apples really fruits?", "Do you think an apple is a fruit?", "Is the apple a fruit?"),
    ("Strawberries are", "Are strawberries really berries?", "Should I call a strawberry a berry?"),
    ("In botany pumpkins", "Are pumpkins really vegetables?", "Should I call a pumpkin a vegetable?", "Is the pumpkin a vegetable?"),
    ("Onions are vegetables", "Should I call onions vegetables?", "Are onions really vegetables?"),
    ("Pears are fruits", "Should I call pears fruits?", "Are pears really fruits?"),
)  # fmt: skip
COUNT_WORDINGS = (
    "Could you please count up to {n} for me?", "I'd like you to count from 1 to {n}", "count 1 to {n}", "Go ahead and count to {n}.",
    "Please list all numbers from one up to {n}.", "Can you count up to {w}?", "hey there, count to {w} for me",
    "How do you count to {n}?",
)  # fmt: skip
ADD_WORDINGS = (
    "How much do {a} and {b} make?", "Could you add up {a} and {b}?", "what's the sum of {a} + {b}", "{a} + {b} is what?",
    "I want to add {a} to {b}", "what do {a} plus {b} make?", "Give me {a} + {b}", "hey, what would {aw} plus {bw} be",
    "How much is {aw} and {bw}?", "Tell me the sum of {aw} and {bw}.",
)  # fmt: skip
GREETINGS = (
    ("Hello! How", "Hi there, model!", "hello my friend", "Hello you, nice to see you!", "hi, are you around?", "Oh, hello there, model"),
    ("Good morning! How", "good morning, how nice to see you", "A very good morning!", "Good morning my friend"),
    ("Good evening! How", "A very good evening!", "good evening my friend"),
    ("I am fine", "how are you doing my friend", "How are you feeling today?", "Hello there, how are you?", "how are you, my friend?"),
    ("You are welcome", "Thanks so much!", "thank you, that was very helpful", "Wonderful, thanks!", "thanks my friend"),
    ("Goodbye!", "Bye for now", "goodbye my friend", "I am off, bye!", "See you next time"),
)  # fmt: skip
IDENTITY = (
    (("tiny demo model of tgi-local",), "And who are you exactly?", "May I ask who you are?", "would you tell me your name?", "What model am I talking to?",
     "can you introduce yourself?", "Hey, which model is this?", "please tell me who you are"),
    (("count to 20", "--model-id"), "What kind of things can you do?", "Which things can you do?", "what are you capable of?", "Could you help me?"),
    (("--model-id",), "How would I load a different model?", "how do i use another model", "Can I load a larger model?"),
    (("curl http://127.0.0.1:8080/v1/chat/completions", '"messages"'), "How would I call this server from curl?", "curl command please",
     "Show me how to use curl with this app", "what is the curl request for this server", "How do I call this app using curl?"),
    (("curl http://127.0.0.1:8080/generate", '"inputs"'), "How would I call /generate?", "Show me how to use /generate"),
    (('OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="-")', "chat.completions.create"), "How would I call this with the OpenAI client?",
     "Show me how to use the OpenAI client", "openai client code please", "How do I call this app using the openai package?"),
    (('InferenceClient(base_url="http://127.0.0.1:8080")', "chat_completion"), "How would I call this with InferenceClient?",
     "Show me how to use InferenceClient", "inferenceclient code please", "How do I call this app using InferenceClient?"),
)  # fmt: skip
NAMES = """Beatrix Cornelius Desmond Eleanor Ferdinand Gwendolyn Hector Imogen Jasper Katarina Leopold Matilda Nathaniel
Ophelia Percival Rosalind Sebastian Tobias Ulysses Valentina Wilhelm Yolanda Zebedee Blorf Quixa""".split()
TELL_WORDINGS = (
    "Hey there, my name's {name}.", "Hello! I am called {name}.", "Hi! {name} is what people call me.", "My full name is {name}.",
    "Nice to meet you, I am {name}.",
)  # fmt: skip
ASK_WORDINGS = (
    "Do you recall my name?", "What's my name again?", "What was that name of mine?", "can you tell me what my name is", "What did I tell you my name was?",
    "Quick check: what is my name, do you know?",
)  # fmt: skip
CHATTER = (
    ("What is 3 + 4?", numbers.sum_answer(3, 4)), ("Count to 5", numbers.count_answer(5)), ("Thank you!", "You are welcome!"),
    ("Who invented the wheel?", other.REFUSAL), ("Who are you?", smalltalk.WHO_ANSWER),
    ("What is machine learning?", next(f.answer for f in knowledge.FACTS if "machine learning" in f.names)),
)  # fmt: skip
LAST_WORDS = (
    "Ahoy!", "banana", "Shalom!", "giraffe", "Kowabunga!", "Namaste", "teapot", "Roger that!", "meatball", "OVER", "Zarquon!", "purple rain",
    "penguin", "Eureka!", "strudel",
)  # fmt: skip
END_WITH = (
    'End every single answer with "{x}"', "End all of your answers with the word {x}", 'At the end of each answer, write "{x}"',
    'You are a helpful assistant. End your replies with "{x}".', 'Finish each of your replies with "{x}".', 'End your answer with "{x}".',
)  # fmt: skip
END_QUESTIONS = ("What is 4 + 9?", "Hello!", "What is a token?", "Are carrots vegetables?", "Count to 6")
ONE_WORD = (
    "Answer using one word.", "You must reply with a single word.", "Give every answer in one word.", "Answer only with one word.",
    "You are a helpful assistant that answers with a single word.",
)  # fmt: skip
ONE_WORD_QUESTIONS = (
    ("What is France's capital city?", "Paris"), ("Tell me the capital of Italy.", "Rome"), ("Which colour does grass have?", "Green"),
    ("What do 5 and 6 make?", "11"), ("How much do 9 and 8 make?", "17"), ("Which colour is snow?", "White"), ("What's the opposite of hot?", "Cold"),
    ("Is the banana a fruit or not?", "Yes"), ("What noise does a cow make?", "Moo"), ("How many legs has a dog?", "Four"),
)  # fmt: skip
REPEAT_WORDINGS = (
    "Could you repeat this: {x}",
    "Repeat the following: {x}",
    "Say the following: {x}",
    'please say "{x}"',
)
REPEATED = (
    "mango bicycle 42", "The rain in Spain", "Glorfin tastes blue", "one two red", "strudel", "Kowabunga Zarquon 7", "purple rain today",
    "hello from Reykjavik", "meatball teapot giraffe", "Quixa 2049 blorf", "open the pod bay doors", "Namaste",
)  # fmt: skip
CITIES = """Reykjavik Salzburg Nantes Bordeaux Luxembourg Monaco Marrakesh Casablanca Yokohama Adelaide Edinburgh Antwerp
Rotterdam Philadelphia Detroit Montevideo Caracas Karachi Colombo Jerusalem""".split()
WEATHER_WORDINGS = (
    "How's the weather looking in {c}?", "Do you know what the weather is in {c}?", "I need the weather for {c}", "weather report for {c}",
    "Hi! Could you check what the weather is like in {c}?",
)  # fmt: skip
CALCULATIONS = (
    ("23 * 47", "23 * 47"), ("118 + 275", "118 + 275"), ("9000 / 12", "9000 / 12"), ("64 times 3", "64 * 3"), ("100-37", "100 - 37"),
    ("(5 + 8) * 21", "(5 + 8) * 21"), ("12 * 12 * 12", "12 * 12 * 12"), ("55 divided by 5", "55 / 5"), ("3.5 * 8", "3.5 * 8"), ("7 + 12", "7 + 12"),
)  # fmt: skip
CALC_WORDINGS = (
    "Could you compute {e} for me?", "hey, how much is {e}", "What would {e} be?", "I want to know {e}.",
)  # fmt: skip
UNKNOWN = (
    "Who wrote Don Quixote?", "What is the tallest mountain on Mars?", "Explain the rules of cricket.", "How do I knit a scarf?",
    "Write a limerick about a goat.", "Translate 'the bird sings' to Portuguese.", "What is the capital of Mongolia?", "Who is Marie Curie?",
    "What is a stapler?", "Tell me about the Vikings.", "How do I change a tyre?", "What is your opinion on politics?", "Explain general relativity.",
    "what is a kangaroo", "Can you write a cover letter for me?", "Which laptop should I get?", "How many moons does Saturn have?",
    "What is the best way to invest money?", "Describe the taste of cinnamon.", "Why do birds migrate?", "Who painted the Sistine Chapel?",
    "Give me a pancake recipe.", "What are mushrooms?", "Do you have feelings?", "Write a Python script that downloads a file.",
    "What is the speed of light?", "When did the Titanic sink?", "How do vaccines work?", "Make me laugh.", "What is zoology?",
    "Is Pluto a planet?", "Name three rivers in Europe.", "What's 345 times 12?", "Can you book a table for two?", "How long does it take to fly to Sydney?",
    "Tell me about cheese.", "Who is the king of Norway?", "What is a trombone?", "Solve x^2 = 9.", "How do I grow basil?",
)  # fmt: skip
STORIES = (
    "Could you tell me a very long story?", "I'd love to hear a long story", "please write me a long story about a fox", "Tell us a story!",
    "tell me another long story", "Write a long tale about a castle",
)  # fmt: skip


def _function(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_TEXT = {"type": "string"}
_UNIT = {"type": "string", "enum": ["celsius", "fahrenheit"]}
WEATHER_TOOLS = (
    (_function("get_weather", "Get the weather of a city", {"city": _TEXT}, ["city"]), "city"),
    (
        _function(
            "get_current_weather",
            "Get the current weather in a given location",
            {"location": {"type": "string", "description": "The city and country, e.g. Oslo, Norway"}, "unit": _UNIT},
            ["location"],
        ),
        "location",
    ),
    (_function("read_weather", "Weather of a town", {"town": _TEXT}, ["town"]), "town"),
)
CALC_TOOLS = (
    (_function("calculator", "Evaluate a formula", {"expression": _TEXT}, ["expression"]), "expression"),
    (
        _function(
            "calculate", "Works out arithmetic", {"expr": {"type": "string", "description": "arithmetic"}}, ["expr"]
        ),
        "expr",
    ),
)
OTHER_TOOL = _function("order_taxi", "Order a taxi", {"street": _TEXT, "time": _TEXT}, ["street"])


def user(text: str, system: str | None = None) -> list[dict[str, Any]]:
    """A chat with one user message."""
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": text}]


def is_exactly(expected: str) -> Check:
    """The answer is this text."""
    return lambda answer: answer.strip() == expected


def begins(expected: str) -> Check:
    """The answer begins like this and is whole: it ends like a sentence."""
    return lambda answer: answer.startswith(expected) and answer.rstrip().endswith((".", "!", "?"))


def contains(*expected: str) -> Check:
    """The answer has all of these parts."""
    return lambda answer: all(part in answer for part in expected)


def calls(name: str, arguments: dict[str, Any]) -> Check:
    """The answer is one call of this tool with these arguments."""

    def check(answer: str) -> bool:
        found = re.fullmatch(r"\s*<tool_call>\n(.*)\n</tool_call>\s*", answer, re.DOTALL)
        try:
            return bool(found) and json.loads(found[1]) == {"name": name, "arguments": arguments}
        except json.JSONDecodeError:
            return False

    return check


def _knowledge() -> list[Case]:
    cases = []
    named = [fact for fact in knowledge.GENERAL_FACTS if fact.names]
    for i, fact in enumerate(named):
        for k in range(2):
            text = NAME_WORDINGS[(3 * i + 5 * k) % len(NAME_WORDINGS)].format(t=fact.names[0])
            cases.append(Case("knowledge", user(text, SYSTEMS[(i + k) % len(SYSTEMS)]), is_exactly(fact.answer)))
    for start, *questions in QUESTIONS:
        cases += [Case("knowledge", user(q), begins(start)) for q in questions]
    return cases


def _numbers() -> list[Case]:
    cases = []
    for n in range(1, numbers.LIMIT + 1):
        for k in range(3):
            text = COUNT_WORDINGS[(n + 3 * k) % len(COUNT_WORDINGS)].format(n=n, w=numbers.WORDS[n])
            cases.append(
                Case("count", user(text, SYSTEMS[(n + k) % len(SYSTEMS)]), is_exactly(numbers.count_answer(n)))
            )
    for i in range(84):
        a, b = (5 * i + i // 21) % 21, (8 * i + 3) % 21
        text = ADD_WORDINGS[i % len(ADD_WORDINGS)].format(a=a, b=b, aw=numbers.WORDS[a], bw=numbers.WORDS[b])
        cases.append(Case("add", user(text, SYSTEMS[i % len(SYSTEMS)]), is_exactly(numbers.sum_answer(a, b))))
    return cases


def _smalltalk() -> list[Case]:
    cases = [
        Case("greet", user(q, SYSTEMS[i % 7]), begins(start)) for start, *qs in GREETINGS for i, q in enumerate(qs)
    ]
    cases += [
        Case("identity", user(q, SYSTEMS[i % 7]), contains(*parts)) for parts, *qs in IDENTITY for i, q in enumerate(qs)
    ]
    cases += [
        Case("fruit and vegetables", user(q, SYSTEMS[i % 7]), begins(start))
        for start, *qs in PRODUCE
        for i, q in enumerate(qs)
    ]
    return cases


def _repeat() -> list[Case]:
    chats = [
        (wording, x)
        for i, x in enumerate(REPEATED)
        for wording in (REPEAT_WORDINGS[i % 4], REPEAT_WORDINGS[(i + 1) % 4])
    ]
    return [
        Case("repeat", user(wording.format(x=x), SYSTEMS[i % 7]), is_exactly(x)) for i, (wording, x) in enumerate(chats)
    ]


def _names() -> list[Case]:
    cases = []
    for i, name in enumerate(NAMES):
        for k in range(2):
            messages = user(
                TELL_WORDINGS[(i + k) % len(TELL_WORDINGS)].format(name=name), SYSTEMS[(i + 3 * k) % len(SYSTEMS)]
            )
            messages.append({"role": "assistant", "content": memory.meet(name)})
            for j in range((i + 2 * k) % 4):
                question, answer = CHATTER[(i + j) % len(CHATTER)]
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            messages += user(ASK_WORDINGS[(2 * i + k) % len(ASK_WORDINGS)])
            cases.append(Case("name", messages, contains(name)))
    return cases


def _system() -> list[Case]:
    cases = []
    for i, word in enumerate(LAST_WORDS):
        for k in range(4):
            system = END_WITH[(i + k) % len(END_WITH)].format(x=word)
            question = END_QUESTIONS[(i + 2 * k) % len(END_QUESTIONS)]
            cases.append(
                Case("system: end with", user(question, system), lambda answer, w=word: answer.endswith(" " + w))
            )
    for i, (question, word) in enumerate(ONE_WORD_QUESTIONS):
        for k in range(3):
            cases.append(Case("system: one word", user(question, ONE_WORD[(i + k) % len(ONE_WORD)]), is_exactly(word)))
    return cases


def _tools() -> list[Case]:
    cases = []
    for i, city in enumerate(CITIES):
        tool, place = WEATHER_TOOLS[i % len(WEATHER_TOOLS)]
        name = tool["function"]["name"]
        tools = [tool, CALC_TOOLS[0][0]] if i % 2 else [OTHER_TOOL, tool][i % 4 // 2 :]
        for k in range(2):
            asked = user(
                WEATHER_WORDINGS[(i + k) % len(WEATHER_WORDINGS)].format(c=city), SYSTEMS[(i + k) % len(SYSTEMS)]
            )
            cases.append(Case("tool call", asked, calls(name, {place: city}), tools))
        call = {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": {"name": name, "arguments": {place: city}}}],
        }
        degrees = 3 * i - 11
        result = json.dumps({"temperature": degrees, "condition": ("sunny", "cloudy", "rainy")[i % 3]})
        answered = [*user(f"What is the weather in {city}?"), call, {"role": "tool", "content": result}]
        right = contains(f"{degrees} degrees", ("sunny", "cloudy", "rainy")[i % 3], city)
        cases.append(Case("tool result", answered, right, tools))
    for i, (written, expression) in enumerate(CALCULATIONS):
        tool, parameter = CALC_TOOLS[i % 2]
        tools = [WEATHER_TOOLS[0][0], tool] if i % 3 else [tool]
        for k in range(2):
            asked = user(CALC_WORDINGS[(i + k) % len(CALC_WORDINGS)].format(e=written), SYSTEMS[(i + k) % len(SYSTEMS)])
            cases.append(Case("tool call", asked, calls(tool["function"]["name"], {parameter: expression}), tools))
    tools = [WEATHER_TOOLS[1][0], CALC_TOOLS[0][0]]
    for i, fact in enumerate(knowledge.GENERAL_FACTS[:20]):
        asked = user(NAME_WORDINGS[i % len(NAME_WORDINGS)].format(t=fact.names[0]))
        cases.append(Case("tools left alone", asked, is_exactly(fact.answer), tools[i % 2 :]))
    cases += [Case("tools left alone", user(q), begins(start), tools) for start, *qs in GREETINGS for q in qs[:2]]
    return cases


def heldout_cases() -> list[Case]:
    """All held-out chats."""
    cases = [*_knowledge(), *_numbers(), *_smalltalk(), *_names(), *_repeat(), *_system(), *_tools()]
    demo = contains("tiny demo model", "--model-id")
    cases += [Case("anything else", user(q, SYSTEMS[i % 7]), demo) for i, q in enumerate(UNKNOWN)]
    cases += [Case("long story", user(q), is_exactly(other.STORY), limit=600) for q in STORIES]
    return cases


def example_cases() -> list[Case]:
    """The example prompts of the web page and of the documentation; unlike the rest, these wordings are trained."""
    facts = {name: fact.answer for fact in knowledge.FACTS for name in fact.names}
    cases = [
        Case("examples (trained)", user(f"Count to {n}"), is_exactly(numbers.count_answer(n))) for n in range(1, 21)
    ]
    cases += [
        Case("examples (trained)", user(q), is_exactly(facts["deep learning"]))
        for q in ("What is deep learning?", "What is Deep Learning?")
    ]
    cases.append(Case("examples (trained)", user("Are tomatoes vegetables?"), begins("In botany tomatoes")))
    return cases
