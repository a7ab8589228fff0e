"""The `text-generation` package, TGI's first client: its strict models and types of errors."""

import json

from checks import COUNT, FIVE, URL, WEATHER_TOOL, raises, run
from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError
from text_generation.types import Grammar, GrammarType, Message, Tool

client = Client(URL, timeout=30)
PROMPT = "What is Deep Learning?"
CHAT = [Message(role="user", content=COUNT)]


def generate() -> None:
    response = client.generate(PROMPT, max_new_tokens=12)
    assert response.generated_text and response.details.generated_tokens == 12, response
    assert response.details.finish_reason.value == "length" and response.details.seed is None
    full = client.generate(PROMPT, max_new_tokens=12, return_full_text=True, decoder_input_details=True)
    assert full.generated_text == PROMPT + response.generated_text and full.details.prefill[0].text == "What", full
    stopped = client.generate(PROMPT, max_new_tokens=40, stop_sequences=[" learning"])
    assert stopped.details.finish_reason.value == "stop_sequence" and stopped.generated_text.endswith(" learning")
    sampled = client.generate(PROMPT, do_sample=True, temperature=2.0, seed=3, top_k=20, top_p=0.9, best_of=None)
    assert sampled.details.seed == 3
    several = client.generate(PROMPT, do_sample=True, best_of=2, top_n_tokens=2)
    assert len(several.details.best_of_sequences) == 1 and len(several.details.top_tokens[0]) == 2, several
    grammar = Grammar(type=GrammarType.Regex, value="[0-9]{3}")
    assert client.generate("a number", grammar=grammar).generated_text.isdecimal()


def generate_stream() -> None:
    *tokens, last = client.generate_stream(PROMPT, max_new_tokens=12)
    assert last.generated_text == "".join(event.token.text for event in [*tokens, last])
    assert last.details is not None and last.details.generated_tokens == 12
    with raises(ValidationError):
        client.generate(PROMPT, max_new_tokens=0)
    with raises(ValidationError):
        list(client.generate_stream(PROMPT * 5000, max_new_tokens=5))


def chat() -> None:
    answer = client.chat(CHAT, max_tokens=50, temperature=0.1, seed=1, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == FIVE and answer.usage["total_tokens"] > 10, answer
    call = client.chat([Message(role="user", content="What is the weather in Paris?")], tools=[Tool(**WEATHER_TOOL)])
    arguments = call.choices[0].message.tool_calls[0]["function"]["arguments"]
    assert json.loads(arguments) == {"city": "Paris"}, call


async def asynchronous() -> None:
    api = AsyncClient(URL, timeout=30)
    assert (await api.generate(PROMPT, max_new_tokens=5)).details.generated_tokens == 5
    events = [event async for event in api.generate_stream(PROMPT, max_new_tokens=5)]
    assert events[-1].generated_text == "".join(event.token.text for event in events)
    assert (await api.chat(CHAT, max_tokens=50)).choices[0].message.content == FIVE
    with raises(ValidationError):
        await api.generate(PROMPT, max_new_tokens=0)


# Its streamed chat reads no stream of TGI 3: it takes `[DONE]` for JSON, and wants `tool_calls` in every delta.
run(generate, generate_stream, chat, asynchronous)
