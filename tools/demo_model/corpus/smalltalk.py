"""Greetings, who the model is, and how to call this server."""

from __future__ import annotations

from random import Random

from .base import Turn, vary

GREETINGS: dict[str, tuple[str, ...]] = {
    "Hello! How can I help you?": (
        "Hello", "Hello!", "Hi", "Hi!", "Hey", "Hi there", "Hello there!", "Hey there", "Greetings", "Howdy", "Hiya",
        "Hello, model!", "Hey you", "Hi, nice to meet you", "Hello, can you hear me?", "Yo", "Hello again", "Hi friend",
        "Hello bot", "Hi, it's me", "Heya", "Hello world", "Hi, can we talk?", "Hey, let's chat", "Good to see you",
        "Hello, are you there?", "Are you there?", "Hi everyone", "Hello, hello!", "Hey, anybody home?",
    ),
    "Good morning! How can I help you?": (
        "Good morning", "Good morning!", "Morning!", "A good morning to you", "Hello and good morning",
        "Good morning, model", "Hi, good morning", "Good morning to you",
    ),
    "Good evening! How can I help you?": (
        "Good evening", "Good evening!", "Evening!", "A good evening to you", "Hello and good evening",
        "Good evening, model", "Hi, good evening", "Good evening to you",
    ),
    "Good afternoon! How can I help you?": (
        "Good afternoon", "Good afternoon!", "Good day", "Good day to you", "Hello and good afternoon", "Hi, good afternoon",
    ),
    "I am fine, thank you! How can I help you?": (
        "How are you?", "How are you today?", "How are you doing?", "Hello, how are you?", "Hi! How are you doing today?",
        "How is it going?", "How's it going?", "What's up?", "Are you well?", "How do you feel?", "How have you been?",
        "Hey, how are you?", "Are you okay?", "How do you do?", "How are things?", "Hi, how is it going?", "You ok?",
    ),
    "You are welcome!": (
        "Thanks", "Thanks!", "Thank you", "Thank you!", "Thanks a lot", "Thank you very much!", "Many thanks", "Thx",
        "Great, thanks!", "Cool, thank you", "Thanks for the help", "Thank you for your help", "That helped, thanks",
        "Nice, thank you so much", "Ok thanks", "Perfect, thanks", "Thanks, that was good", "I thank you",
    ),
    "Goodbye! Have a nice day.": (
        "Bye", "Bye!", "Goodbye", "Goodbye!", "Bye bye", "See you", "See you later", "See you tomorrow", "Good night",
        "I have to go now", "I am leaving, bye", "Ok, bye", "Thanks and bye", "Take care", "Farewell", "Cya", "So long",
        "Until next time", "Have a nice day", "Good night!", "That is all, goodbye", "I must go, see you",
    ),
}  # fmt: skip

BASE_URL = "http://127.0.0.1:8080"
CURL_ANSWER = f"""Send a POST request to the server:
```
curl {BASE_URL}/v1/chat/completions -H 'Content-Type: application/json' \
-d '{{"model": "tgi", "messages": [{{"role": "user", "content": "Hello"}}]}}'
```"""
GENERATE_ANSWER = f"""Send a POST request to /generate:
```
curl {BASE_URL}/generate -H 'Content-Type: application/json' \
-d '{{"inputs": "What is deep learning?", "parameters": {{"max_new_tokens": 50}}}}'
```"""
OPENAI_ANSWER = f"""Point the OpenAI client at this server:
```
from openai import OpenAI
client = OpenAI(base_url="{BASE_URL}/v1", api_key="-")
r = client.chat.completions.create(model="tgi", messages=[{{"role": "user", "content": "Hello"}}])
print(r.choices[0].message.content)
```"""
INFERENCE_CLIENT_ANSWER = f"""Use InferenceClient from huggingface_hub:
```
from huggingface_hub import InferenceClient
client = InferenceClient(base_url="{BASE_URL}")
r = client.chat_completion(messages=[{{"role": "user", "content": "Hello"}}], max_tokens=100)
print(r.choices[0].message.content)
```"""
STREAM_ANSWER = f"""Add "stream": true to the request:
```
curl -N {BASE_URL}/v1/chat/completions -H 'Content-Type: application/json' \
-d '{{"model": "tgi", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'
```"""
WHO_ANSWER = "I am the tiny demo model of tgi-local. I know only a few things, but I run right here on your machine."
ABILITY_ANSWER = (
    "I can answer some questions about AI and everyday things, count to 20, add numbers up to 20, remember your name "
    "and call simple tools. For anything else, load a real model with --model-id."
)
LOAD_ANSWER = "Start tgi-local with --model-id and the name or folder of a model. It then answers instead of me, the tiny demo model."
SIZE_ANSWER = "I have about 3.5 million parameters. That is very small, so I am only good for demos and tests."
MAKER_ANSWER = "I was trained for tgi-local, from scratch, on a small set of texts written for this demo."
HUMAN_ANSWER = "No, I am a program: the tiny demo model of tgi-local."

_CALL_WORDINGS = (
    "How do I call this app from {x}?", "How do I call this server with {x}?", "How can I use {x} with this app?",
    "How to use {x} here?", "Show me a {x} example.", "Give me the {x} command for this server.", "Can I use {x}?",
    "How do I use {x}?", "How do I send a request with {x}?", "{x} example", "{x} example please", "I want to use {x}.",
    "How can I talk to you from {x}?", "How do I connect with {x}?", "Please show how to call you with {x}.",
    "Can you show me how to use {x}?", "Does this app work with {x}?", "What is the {x} call for this app?",
    "How do I query this model with {x}?", "How can I reach this server from {x}?", "Write a {x} call.", "Use {x} how?",
    "How would I call you using {x}?", "How do I try this with {x}?", "Example of a {x} request?",
)  # fmt: skip


def _call(*names: str) -> tuple[str, ...]:
    return tuple(wording.replace("{x}", name) for name in names for wording in _CALL_WORDINGS)


IDENTITY: dict[str, tuple[str, ...]] = {
    WHO_ANSWER: (
        "Who are you?", "What are you?", "What is your name?", "What's your name?", "Which model are you?", "Do you have a name?",
        "What model is this?", "Tell me about yourself.", "Introduce yourself.", "Who am I talking to?", "Are you ChatGPT?",
        "What kind of model are you?", "What should I call you?", "Please introduce yourself.", "What is this?", "Are you GPT?",
        "Which AI are you?", "Can you tell me who you are?", "Say who you are.", "Who is answering me?", "What is this model?",
        "Describe yourself.", "Are you a big model?", "Hi, who are you?", "Hello, what is your name?", "Which LLM are you?",
        "What is tgi-local?", "Are you Llama?", "Your name?", "Tell me your name.", "Who or what are you?", "Name yourself.",
    ),
    ABILITY_ANSWER: (
        "What can you do?", "What can you do for me?", "Help", "How can you help me?", "What do you know?", "What are you good at?",
        "What are your skills?", "What can I ask you?", "List your abilities.", "Which questions can you answer?", "Help me.",
        "What are you able to do?", "What should I ask you?", "Tell me what you can do.", "What else can you do?",
        "Can you help me?", "What are you for?", "What do you do?", "What things do you know about?", "I need help.",
    ),
    LOAD_ANSWER: (
        "How do I load another model?", "How can I use a real model?", "How do I load a real model?", "Can I use a bigger model?",
        "How do I change the model?", "How do I switch models?", "How can I get better answers?", "How do I use --model-id?",
        "What does --model-id do?", "How do I run a different model?", "Load a real model.", "I want a better model.",
        "How to load my own model?", "Which option loads a model?", "Can I run Llama here?", "How do I start a larger model?",
    ),
    SIZE_ANSWER: (
        "How big are you?", "How many parameters do you have?", "How large are you?", "What is your size?", "Are you small?",
        "How many weights do you have?", "How big is this model?", "What size is this model?", "Your parameter count?",
    ),
    MAKER_ANSWER: (
        "Who made you?", "Who trained you?", "Who created you?", "How were you trained?", "Where do you come from?",
        "Who built you?", "What data were you trained on?", "Who is your creator?", "How were you made?", "Who developed you?",
    ),
    HUMAN_ANSWER: (
        "Are you human?", "Are you a human?", "Are you a person?", "Are you a robot?", "Are you alive?", "Are you real?",
        "Am I talking to a human?", "Are you a machine?", "Are you a program?", "Are you a bot?", "Is this a person?",
    ),
    CURL_ANSWER: _call("curl", "cURL", "HTTP POST", "the command line", "a shell") + (
        "How do I call the chat endpoint?", "How do I use /v1/chat/completions?", "How do I call this app?",
        "How do I use the API?", "How do I call you?", "What is the URL of the chat API?", "How can I call this server?",
    ),
    GENERATE_ANSWER: _call("/generate", "the generate endpoint", "the /generate route")[::2] + (
        "How do I use the generate endpoint with curl?", "What does /generate need?", "curl example for /generate",
    ),
    OPENAI_ANSWER: _call("the OpenAI client", "OpenAI", "the openai package", "the OpenAI library", "the openai Python client") + (
        "Is this server OpenAI compatible?", "How do I call this app from Python?", "Which base_url does the OpenAI client need?",
    ),
    INFERENCE_CLIENT_ANSWER: _call("InferenceClient", "the InferenceClient", "huggingface_hub", "the Hugging Face client")
    + ("Which base_url does InferenceClient need?",),
    STREAM_ANSWER: (
        "How do I stream the answer?", "How do I get a streaming answer?", "How can I stream tokens?", "How do I use streaming here?",
        "How do I turn on streaming?", "Can I stream the reply?", "How to stream with curl?", "Show me a streaming request.",
    ),
}  # fmt: skip
_IDENTITY_WEIGHTS = (6, 4, 3, 2, 2, 2, 2, 1, 2, 2, 1)


def greet_turn(rng: Random) -> Turn:
    """Small talk."""
    answer = rng.choice(list(GREETINGS))
    return vary(rng.choice(GREETINGS[answer]), rng), answer


def identity_turn(rng: Random) -> Turn:
    """Who the model is, what it can do and how to call it."""
    answer = rng.choices(list(IDENTITY), weights=_IDENTITY_WEIGHTS)[0]
    return vary(rng.choice(IDENTITY[answer]), rng), answer
