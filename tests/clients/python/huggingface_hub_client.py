"""InferenceClient and AsyncInferenceClient, of the versions before and after 1.0."""

import json
from typing import Any

from checks import FIVE, FRUIT_SCHEMA, MESSAGES, URL, WEATHER_MESSAGES, WEATHER_TOOL, raises, run
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError, ValidationError

client = InferenceClient(base_url=URL, api_key="-")
PROMPT = "What is Deep Learning?"


def text_generation() -> None:
    text = client.text_generation(PROMPT, max_new_tokens=12, return_full_text=False)
    assert client.text_generation(PROMPT, max_new_tokens=12, return_full_text=True) == PROMPT + text
    assert client.text_generation(PROMPT, max_new_tokens=12) == PROMPT + text, "what TGI does when it is not told"
    assert "".join(client.text_generation(PROMPT, max_new_tokens=12, stream=True)) == text
    output = client.text_generation(PROMPT, max_new_tokens=12, details=True, decoder_input_details=True)
    assert output.generated_text == PROMPT + text and output.details.finish_reason == "length"
    assert len(output.details.tokens) == output.details.generated_tokens == 12
    assert [token.text for token in output.details.prefill][:2] == ["What", " is"], output.details.prefill
    assert output.details.prefill[0].logprob is None and output.details.seed is None
    *tokens, last = client.text_generation(PROMPT, max_new_tokens=12, details=True, stream=True)
    assert last.generated_text == PROMPT + text and last.details.generated_tokens == 12
    assert "".join(event.token.text for event in [*tokens, last]) == text
    assert all(event.generated_text is None for event in tokens)


def text_generation_options() -> None:
    sampled: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "temperature": 3.0, "top_k": 50}
    once = client.text_generation(PROMPT, seed=1, **sampled)
    assert (
        once == client.text_generation(PROMPT, seed=1, **sampled) != client.text_generation(PROMPT, seed=2, **sampled)
    )
    detailed = client.text_generation(PROMPT, seed=1, details=True, **sampled)
    assert detailed.details.seed == 1
    stopped = client.text_generation(PROMPT, max_new_tokens=40, stop=[" learning"])
    assert stopped.endswith(" learning"), stopped
    several = client.text_generation(PROMPT, details=True, best_of=2, **sampled)
    assert len(several.details.best_of_sequences) == 1, several
    top = client.text_generation(PROMPT, max_new_tokens=3, details=True, top_n_tokens=2)
    assert [len(alternatives) for alternatives in top.details.top_tokens] == [2, 2, 2], top
    everything = client.text_generation(
        PROMPT, max_new_tokens=5, repetition_penalty=1.1, top_p=0.9, typical_p=0.9, truncate=3, watermark=True
    )
    assert isinstance(everything, str)


def grammars() -> None:
    json_grammar, regex = {"type": "json", "value": FRUIT_SCHEMA}, {"type": "regex", "value": "[0-9]{3}"}
    fruit = client.text_generation("a fruit", max_new_tokens=100, return_full_text=False, grammar=json_grammar)
    assert set(json.loads(fruit)) == {"name", "is_ripe"}, fruit
    number = client.text_generation("a number", max_new_tokens=20, return_full_text=False, grammar=regex)
    assert len(number) == 3 and number.isdecimal(), number


def errors() -> None:
    for stream in (False, True):
        for options in ({"top_p": 1.0}, {"temperature": 0.0}, {"max_new_tokens": 0}, {"best_of": 9}):
            with raises(ValidationError):
                list(client.text_generation(PROMPT, stream=stream, **options))  # type: ignore[call-overload]
    with raises(HfHubHTTPError):
        client.chat_completion(MESSAGES, temperature=-1)


def chat() -> None:
    answer = client.chat_completion(MESSAGES)
    assert answer.choices[0].message.content == FIVE and answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    detailed = client.chat_completion(MESSAGES, logprobs=True, top_logprobs=2, seed=1, temperature=0.1, stop=[", 4"])
    (choice,) = detailed.choices
    assert choice.message.content == "1, 2, 3" and len(choice.logprobs.content[0].top_logprobs) == 2, detailed
    compatible = client.chat.completions.create(model="tgi", messages=MESSAGES, max_tokens=50)
    assert compatible.choices[0].message.content == FIVE
    chunks = list(client.chat_completion(MESSAGES, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == FIVE
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 5, chunks[-1]
    again = [*MESSAGES, answer.choices[0].message, *MESSAGES]
    assert client.chat_completion(again).choices[0].message.content


def tools() -> None:
    for choice in ("auto", "required", {"function": {"name": "get_weather"}}, None):
        answer = client.chat_completion(WEATHER_MESSAGES, tools=[WEATHER_TOOL], tool_choice=choice)
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Paris"}, call
    name = arguments = ""
    for chunk in client.chat_completion(WEATHER_MESSAGES, tools=[WEATHER_TOOL], stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
    assert name == "get_weather" and json.loads(arguments) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"}
    messages = [*WEATHER_MESSAGES, answer.choices[0].message, result]
    final = client.chat_completion(messages, tools=[WEATHER_TOOL])
    assert final.choices[0].message.content, final
    told = client.chat_completion(MESSAGES, tools=[WEATHER_TOOL], tool_prompt="Be brief.")
    assert told.choices[0].message.content or told.choices[0].message.tool_calls, told


def response_formats() -> None:
    forms: list[dict[str, Any]] = [
        {"type": "json_schema", "json_schema": {"name": "fruit", "schema": FRUIT_SCHEMA, "strict": True}},
        {"type": "json", "value": FRUIT_SCHEMA},
        {"type": "json_object", "value": FRUIT_SCHEMA},
    ]
    for form in forms:
        answer = client.chat_completion(MESSAGES, response_format=form, max_tokens=100)
        assert set(json.loads(answer.choices[0].message.content)) == {"name", "is_ripe"}, (form, answer)
    regex = client.chat_completion(MESSAGES, response_format={"type": "regex", "value": "[0-9]{3}"}, max_tokens=20)
    assert regex.choices[0].message.content.isdecimal(), regex


def addresses() -> None:
    for suffix in ("", "/", "/v1", "/v1/"):
        for make in (
            lambda url: InferenceClient(base_url=url, api_key="-"),
            lambda url: InferenceClient(url, token="-"),
        ):
            one = make(URL + suffix)
            assert one.chat_completion(MESSAGES).choices[0].message.content == FIVE, suffix
            assert one.text_generation(PROMPT, max_new_tokens=3), suffix
    endpoint = InferenceClient(URL, provider="hf-inference", token="-")
    assert endpoint.health_check() and endpoint.get_endpoint_info()["model_id"]
    named = InferenceClient(base_url=URL, api_key="-").chat_completion(MESSAGES, model=None)
    assert named.choices[0].message.content == FIVE


async def asynchronous() -> None:
    async with AsyncInferenceClient(base_url=URL, api_key="-") as api:
        assert (await api.chat_completion(MESSAGES)).choices[0].message.content == FIVE
        chunks = [chunk async for chunk in await api.chat_completion(MESSAGES, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == FIVE
        text = await api.text_generation(PROMPT, max_new_tokens=8)
        streamed = [token async for token in await api.text_generation(PROMPT, max_new_tokens=8, stream=True)]
        assert text == PROMPT + "".join(streamed)
        output = await api.text_generation(PROMPT, max_new_tokens=8, details=True)
        assert output.details.generated_tokens == 8
        with raises(ValidationError):
            await api.text_generation(PROMPT, top_p=1.0)
        story = await api.chat_completion([{"role": "user", "content": "Tell me a long story"}], stream=True)
        async for _ in story:
            break  # and away
        answer = await api.chat_completion(WEATHER_MESSAGES, tools=[WEATHER_TOOL])
        assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"


run(text_generation, text_generation_options, grammars, errors, chat, tools, response_formats, addresses, asynchronous)
