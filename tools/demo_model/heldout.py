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
    None, None, None, "You are a helpful assistant.", "You are the help desk of a public library.",
    "Be kind and patient with everyone.", "You support people who are learning to code.",
)  # fmt: skip

NAME_WORDINGS = (
    "I came across {t} today, what is it?", "Could somebody explain to me what {t} is?", "i keep hearing about {t}, what is it", "What do people mean by {t}?",
    "please explain to a beginner what {t} is", "Do you happen to know what {t} is?", "I'm new to this. What is {t}?", "I want to understand {t} better.",
    "In a few words, what is {t}?", "I have no idea what {t} is, can you explain?",
)  # fmt: skip
# The same for facts whose name is "the capital of ...".
CAPITAL_WORDINGS = (
    "What was {t} again? I forgot.", "I can never remember {t}.", "Do you happen to know {t}?", "can u tell me {t}", "Help me out, what is {t}?",
)  # fmt: skip
# Whole questions: how the taught answer begins, and other ways to ask for it.
QUESTIONS = (
    ("The sky is blue", "What makes our sky blue?", "why does the sky look blue during the day", "What gives the sky its blue colour?"),
    ("A week has seven", "How many days long is a week?", "can you list the days of the week", "Could you name all seven days of the week?"),
    ("We have seasons", "What makes the seasons change?", "why do we get summer and winter", "Where do the seasons come from?"),
    ("The capital of France", "What city is France's capital?", "france capital?"),
    ("Photosynthesis is", "How does photosynthesis work in plants?", "whats photosynthesis good for"),
    ("A rainbow appears", "How is a rainbow made?", "what causes a rainbow to appear"),
    ("The solar system", "Which planets belong to the solar system?", "What's in our solar system?"),
    ("Quantization stores", "Why would anyone use quantization?", "what does quantization do to a model"),
    ("Gravity is", "What does gravity do?", "why do things fall down, is that gravity"),
    ("Docker packs", "What do people use Docker for?", "how does docker work"),
)  # fmt: skip
PRODUCE = (
    ("In botany tomatoes", "Would you say tomatoes are vegetables?", "do you consider tomatoes vegetables", "Tomatoes: vegetables or not?",
     "Is it right to call a tomato a vegetable?", "is a tomato actually a vegetable", "My friend says tomatoes are vegetables. Is that true?"),
    ("In botany cucumbers", "Do cucumbers belong to the vegetables?", "is a cucumber actually a vegetable", "Would you say a cucumber is a vegetable?"),
    ("Yes, carrots", "Does a carrot qualify as a vegetable?", "is a carrot actually a vegetable", "Would you say carrots are vegetables?"),
    ("Yes, potatoes", "Are potatoes considered vegetables?", "is a potato actually a vegetable", "Would you call the potato a vegetable?"),
    ("Bananas are fruits", "Would you count bananas among the fruits?", "is a banana actually a fruit", "Would you say bananas are fruits?"),
    ("Apples are fruits", "Do apples count as fruits?", "is an apple actually a fruit", "Would you call an apple a fruit?"),
    ("Strawberries are", "Are strawberries considered berries?", "is a strawberry actually a berry"),
    ("In botany pumpkins", "I think pumpkins are vegetables, right?", "is a pumpkin actually a vegetable", "Would you call pumpkins vegetables?"),
    ("Onions are vegetables", "Is it true that onions are vegetables?", "Can I say that onions are vegetables?"),
    ("Grapes are fruits", "Are grapes considered fruits?", "Can I say that grapes are fruits?"),
)  # fmt: skip
COUNT_WORDINGS = (
    "Count for me, starting at 1 and stopping at {n}.", "can u count to {n} for me", "Let me hear you count to {n}", "Would you count all the way to {n}?",
    "Show me the numbers 1 through {n}.", "I want to see you count up to {w}", "Write down every number from 1 to {n}, please.",
    "Begin with one and count to {w}.",
)  # fmt: skip
ADD_WORDINGS = (
    "What is the total of {a} and {b}?", "can u add {a} and {b} for me", "If I add {a} and {b}, what do I get?", "Find the sum: {a} + {b}",
    "what does {a}+{b} come to", "Do you know what {a} plus {b} is?", "my homework asks for {a} + {b}, what is it", "{aw} plus {bw} equals what?",
    "Add {aw} and {bw} together, please.", "ok and what is {aw} plus {bw} then",
)  # fmt: skip
GREETINGS = (
    ("Hello! How", "Hello, is anyone there?", "hi there, nice to meet you", "Hey, good to see you!", "hello there little model", "Hi, I'm back!"),
    ("Good morning! How", "Good morning to you too!", "morning! good morning", "Oh, good morning, dear model"),
    ("Good evening! How", "I wish you a good evening!", "good evening, it's me again"),
    ("I am fine", "Are you doing well?", "hi, how are you this morning", "How's it going with you?", "so how are you feeling"),
    ("You are welcome", "Thank you, that helped me a lot!", "great, thx", "Thanks for your answer.", "Perfect, thank you!"),
    ("Goodbye!", "I have to go now, goodbye!", "bye, talk to you later", "Okay, goodbye then.", "ok see you tomorrow"),
)  # fmt: skip
IDENTITY = (
    (("tiny demo model of tgi-local",), "Tell me who I'm chatting with.", "So who or what are you?", "what are you called",
     "Which AI is this?", "Say a few words about yourself.", "Sorry, who are you again?", "What is the name of this model?"),
    (("count to 20", "--model-id"), "I would like to know your skills.", "which questions can i ask you", "Tell me what you are able to do.", "In what ways can you help me?"),
    (("--model-id",), "How can I run a bigger model here?", "how to switch to another model", "I'd like to load a real model. How?"),
    (("curl http://127.0.0.1:8080/v1/chat/completions", '"messages"'), "Could I get a curl example for this server?",
     "how to send a chat request with curl", "I want to talk to this server with curl, how do I do that?", "example curl command pls",
     "Can you write me a curl command for the chat endpoint?"),
    (("curl http://127.0.0.1:8080/generate", '"inputs"'), "What does a request to /generate look like?", "I need an example for the /generate route"),
    (('OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="-")', "chat.completions.create"), "Which lines connect the OpenAI Python client to this server?",
     "Write a code example with the OpenAI client.", "openai python example pls", "Can I use the openai library with this server, and how?"),
    (('InferenceClient(base_url="http://127.0.0.1:8080")', "chat_completion"), "How would I connect to this server with InferenceClient?",
     "Write a code example with InferenceClient.", "InferenceClient python example pls", "Can I use InferenceClient with this server, and how?"),
)  # fmt: skip
NAMES = """Marcus Anjali Stefan Harriet Callum Bridget Rashid Simone Gareth Yvonne Malcolm Lorenzo Agnes Keisha Duncan
Margot Winston Tamara Alistair Odette Bernard Saoirse Vincent Philippa Thaddeus""".split()
TELL_WORDINGS = (
    "Just so you know, my name is {name}.", "oh by the way, my name is {name}", "Good afternoon! You can call me {name}.", "Hello, this is {name} speaking.",
    "My parents named me {name}.", "hi i'm {name}, nice to meet you",
)  # fmt: skip
ASK_WORDINGS = (
    "So, what am I called?", "can you still tell me my name", "Which name did I give you earlier?", "I forgot, what's my name?",
    "Can you remind me what my name is?", "What is my name? I mentioned it before.",
)  # fmt: skip
CHATTER = (
    ("What is 6 + 2?", numbers.sum_answer(6, 2)), ("Count to 4", numbers.count_answer(4)), ("Thanks!", "You are welcome!"),
    ("Who built the pyramids?", other.REFUSAL), ("Who are you?", smalltalk.WHO_ANSWER),
    ("What is a tokenizer?", next(f.answer for f in knowledge.FACTS if "a tokenizer" in f.names)),
)  # fmt: skip
LAST_WORDS = (
    "Cheerio!", "hammock", "Sayonara!", "marmalade", "See you around", "Godspeed!", "badger", "Sincerely", "sunflower", "Tally-ho!", "blue moon", "puzzle",
    "dragonfly", "so long", "waffle",
)  # fmt: skip
END_WITH = (
    'Make sure that every reply ends with "{x}".', "Whatever you say, end it with {x}", 'The last thing in each of your messages must be "{x}".',
    'You are a friendly assistant. Close every message with "{x}".', "All your answers have to end with {x}",
    'Please put "{x}" at the end of everything you write.',
)  # fmt: skip
END_QUESTIONS = ("What is 6 + 7?", "Hi!", "What is a prompt?", "Are bananas fruits?", "Count to 8")
ONE_WORD = (
    "One-word replies only, please.", "Your replies must be exactly one word long.", "Whatever you are asked, respond with just one word.",
    "You are a terse assistant. Use only one word per reply.", "keep your answers to one word",
)  # fmt: skip
ONE_WORD_QUESTIONS = (
    ("What city is Germany's capital?", "Berlin"), ("tell me japan's capital", "Tokyo"), ("what's 7 and 6 added together", "13"),
    ("How much do 4 and 8 make together?", "12"), ("Tell me the opposite of open.", "Closed"), ("Which animal sound does a dog make?", "Woof"),
    ("How many days does one week have?", "Seven"), ("What's the colour of the grass?", "Green"), ("Would you call the carrot a vegetable?", "Yes"),
    ("And which city is the capital of Spain?", "Madrid"),
)  # fmt: skip
REPEAT_WORDINGS = (
    "Say this back to me: {x}",
    "Can you repeat this text? {x}",
    "I want you to write exactly this: {x}",
    'just repeat "{x}" please',
)
REPEATED = (
    "silver spoon 18", "The train leaves at noon", "Marcus likes cold soup", "four green doors", "marmalade", "Hooray for Tuesday", "blue moon rising",
    "greetings from Swansea", "hammock badger waffle", "order 7731 is ready", "never trust a sleepy cat", "Cheerio",
)  # fmt: skip
CITIES = """Swansea Utrecht Lille Malaga Bologna Tampere Gothenburg Ghent Nottingham Baltimore Sacramento Winnipeg
Hobart Nagoya Tampa Lahore Kampala Verona Tbilisi Belfast""".split()
WEATHER_WORDINGS = (
    "What's it like outside in {c} right now?", "can u tell me the weather in {c}", "I'm travelling to {c}, how is the weather there?",
    "Please look up the current weather for {c}.", "Hello, what's the weather like today in {c}?", "weather forecast for {c} please",
    "whats the weather in {c} at the moment",
)  # fmt: skip
CALCULATIONS = (
    ("31 * 18", "31 * 18"), ("460 - 85", "460 - 85"), ("144 / 16", "144 / 16"), ("27 times 6", "27 * 6"), ("512+89", "512 + 89"),
    ("(7 + 9) * 34", "(7 + 9) * 34"), ("96 divided by 8", "96 / 8"), ("4.5 * 22", "4.5 * 22"),
)  # fmt: skip
CALC_WORDINGS = (
    "I'd be glad if you could work out {e}.", "whats {e}", "Can you tell me the result of {e}?", "I need the answer to {e}", "Use the tool to compute {e}, please.",
)  # fmt: skip
ADDITIONS = (("Please add {a} and {b}.", 128, 367), ("what do i get for {a} plus {b}", 45, 212))
UNKNOWN = (
    "Who wrote The Great Gatsby?", "What is the longest river in Africa?", "Explain how chess is played.", "How do I bake sourdough bread?",
    "Write a haiku about the ocean.", "Translate 'good luck' into Swedish.", "How many people live in Kenya?", "Who was Nikola Tesla?",
    "What is a screwdriver?", "Tell me about ancient Egypt.", "how do i fix a flat bike tire", "Who should I vote for?", "Explain quantum mechanics.",
    "what is a hedgehog", "Can you proofread my essay?", "Which phone is the best?", "How tall is the Eiffel Tower?",
    "Should I buy stocks or bonds?", "What does saffron taste like?", "Why do dogs bark at strangers?", "Who composed The Magic Flute?",
    "I need a recipe for lasagna.", "What are volcanoes?", "Are you ever sad?", "Write a JavaScript function that sorts a list.",
    "How far away is Mars?", "When did World War II end?", "How do airplanes fly?", "Do you know any good riddles?", "What is astrology?",
    "Is a whale a fish?", "Name five countries in Asia.", "What's 48 times 37?", "Can you call me a cab?", "how long does it take to boil an egg",
    "Tell me about coffee.", "Who is the mayor of London?", "What is a saxophone?", "Solve 3x + 5 = 20 for x.", "any tips for growing roses",
)  # fmt: skip
STORIES = (
    "Do you know a long story? Please tell it.", "could i hear a really long story", "I want a long story about a dragon", "Make up a long story for my kids.",
    "Please tell us a nice long bedtime story.", "write a very long story for me",
)  # fmt: skip


def _function(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
WEATHER_TOOLS = (
    (
        _function(
            "get_weather",
            "Get current weather for a city.",
            {"city": {"type": "string", "description": "Name of the city"}},
            ["city"],
        ),
        "city",
    ),
    (
        _function(
            "get_current_weather",
            "Returns the current weather for a location.",
            {
                "location": {"type": "string", "description": "The city, e.g. San Francisco"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "description": "Temperature unit"},
            },
            ["location"],
        ),
        "location",
    ),
    (_function("weather", "Look up the weather", {"city": _TEXT}, ["city"]), "city"),
    (_function("get_weather", "Fetch the weather at a place", {"location": _TEXT}, ["location"]), "location"),
)
CALC_TOOLS = (
    (
        _function(
            "calculator",
            "Evaluates a mathematical expression and returns the result",
            {"expression": {"type": "string", "description": "The expression to evaluate, e.g. 2 + 2"}},
            ["expression"],
        ),
        "expression",
    ),
    (_function("calculate", "Do a calculation.", {"expression": _TEXT}, ["expression"]), "expression"),
)
ADD_TOOL = _function("add_numbers", "Add two numbers", {"a": _NUMBER, "b": _NUMBER}, ["a", "b"])
OTHER_TOOL = _function(
    "send_email", "Send an email to somebody", {"to": _TEXT, "subject": _TEXT, "body": _TEXT}, ["to", "body"]
)
# What a weather service may say: the keys of the temperature and of the sky, and what else it reports.
REPORTS = (
    ("temperature", "condition", {}),
    ("temperature", "description", {"unit": "celsius", "humidity": 64}),
    ("temp", "weather", {}),
    ("temperature", "conditions", {"wind": "light"}),
)
SKIES = ("sunny", "snowy", "foggy", "windy", "overcast")
RESULTS = (("31 * 18", "558"), ("460 - 85", "375"), ("27 * 6", "162"), ("512 + 89", "601"))


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
        wordings = CAPITAL_WORDINGS if fact.names[0].startswith("the capital of") else NAME_WORDINGS
        for k in range(2):
            text = wordings[(7 * i + 3 * k) % len(wordings)].format(t=fact.names[0])
            cases.append(Case("knowledge", user(text, SYSTEMS[(i + 2 * k) % len(SYSTEMS)]), is_exactly(fact.answer)))
    for start, *questions in QUESTIONS:
        cases += [Case("knowledge", user(q), begins(start)) for q in questions]
    return cases


def _numbers() -> list[Case]:
    cases = []
    for n in range(1, numbers.LIMIT + 1):
        for k in range(3):
            text = COUNT_WORDINGS[(3 * n + k) % len(COUNT_WORDINGS)].format(n=n, w=numbers.WORDS[n])
            cases.append(
                Case("count", user(text, SYSTEMS[(n + k) % len(SYSTEMS)]), is_exactly(numbers.count_answer(n)))
            )
    for i in range(84):
        a, b = (8 * i + i // 21 + 2) % 21, (5 * i + 7) % 21
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
            messages += user(ASK_WORDINGS[(2 * i + i // 3 + k) % len(ASK_WORDINGS)])
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


def _tool_answer(question: str, name: str, arguments: dict[str, Any], result: Any) -> list[dict[str, Any]]:
    """A chat in which the tool was called and has answered."""
    call = {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }
    return [*user(question), call, {"role": "tool", "content": json.dumps(result)}]


def _weather() -> list[Case]:
    cases = []
    for i, city in enumerate(CITIES):
        tool, place = WEATHER_TOOLS[i % len(WEATHER_TOOLS)]
        name = tool["function"]["name"]
        tools = [[tool], [tool, CALC_TOOLS[0][0]], [OTHER_TOOL, tool]][i % 3]
        for k in range(2):
            asked = user(WEATHER_WORDINGS[(2 * i + k) % len(WEATHER_WORDINGS)].format(c=city), SYSTEMS[(i + k) % 7])
            cases.append(Case("tool call", asked, calls(name, {place: city}), tools))
        if i >= 16:
            continue
        degrees, sky = 3 * i - 8, SKIES[i % len(SKIES)]
        degrees_key, sky_key, more = REPORTS[(i + i // 4) % len(REPORTS)]
        question = WEATHER_WORDINGS[(3 * i) % len(WEATHER_WORDINGS)].format(c=city)
        answered = _tool_answer(question, name, {place: city}, {degrees_key: degrees, sky_key: sky, **more})
        cases.append(Case("tool result", answered, contains(f"{degrees} degrees", sky, city), tools))
    return cases


def _calculations() -> list[Case]:
    cases = []
    for i, (written, expression) in enumerate(CALCULATIONS):
        tool, parameter = CALC_TOOLS[i % 2]
        tools = [WEATHER_TOOLS[0][0], tool] if i % 3 else [tool]
        for k in range(2):
            asked = user(CALC_WORDINGS[(i + 2 * k) % len(CALC_WORDINGS)].format(e=written), SYSTEMS[(i + k) % 7])
            cases.append(Case("tool call", asked, calls(tool["function"]["name"], {parameter: expression}), tools))
    for question, a, b in ADDITIONS:
        right = calls("add_numbers", {"a": a, "b": b})
        for tools in ([ADD_TOOL], [ADD_TOOL, WEATHER_TOOLS[1][0]]):
            cases.append(Case("tool call", user(question.format(a=a, b=b)), right, tools))
    for i, (expression, result) in enumerate(RESULTS):
        tool, parameter = CALC_TOOLS[i % 2]
        question = CALC_WORDINGS[i % len(CALC_WORDINGS)].format(e=expression)
        answered = _tool_answer(
            question,
            tool["function"]["name"],
            {parameter: expression},
            {"result": int(result)} if i % 2 else int(result),
        )
        cases.append(Case("tool result", answered, contains(result), [tool]))
    return cases


def _tools() -> list[Case]:
    cases = [*_weather(), *_calculations()]
    tools = [WEATHER_TOOLS[1][0], CALC_TOOLS[0][0]]
    for i, fact in enumerate(knowledge.GENERAL_FACTS[20:40]):
        asked = user(NAME_WORDINGS[(i + 4) % len(NAME_WORDINGS)].format(t=fact.names[0]))
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
