"""OpenAI's own library: chat, completions, responses; sync, async, streamed, parsed."""

import asyncio
import json
from typing import Any, Literal

import openai
from checks import (
    COUNT,
    FIVE,
    FRUIT_SCHEMA,
    MESSAGES,
    URL,
    WEATHER_MESSAGES,
    WEATHER_SCHEMA,
    WEATHER_TOOL,
    raises,
    run,
)
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="-", max_retries=0, timeout=30)
ADD_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "Add two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3, 4]}},
            "required": ["a", "b"],
        },
    },
}


class Fruit(BaseModel):
    name: Literal["apple", "pear"]
    is_ripe: bool


class GetWeather(BaseModel):
    """Get the current weather in a city"""

    city: Literal["Paris", "Rome"]


def chat() -> None:
    answer = client.chat.completions.create(model="tgi", messages=MESSAGES)
    (choice,) = answer.choices
    assert choice.message.content == FIVE and choice.message.role == "assistant", choice
    assert choice.finish_reason == "stop" and not choice.message.tool_calls, choice
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.created > 1_700_000_000
    usage = answer.usage
    assert usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    assert client.chat.completions.create(model="any", messages=MESSAGES).model == "any"
    parts = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": COUNT}]},
    ]
    assert client.chat.completions.create(model="tgi", messages=parts).choices[0].message.content  # type: ignore[arg-type]


def chat_stream() -> None:
    with client.chat.completions.create(
        model="tgi", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == FIVE, chunks
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert last.choices == [] and last.usage and last.usage.completion_tokens > 5, last
    assert len({chunk.id for chunk in [*chunks, last]}) == 1
    plain = client.chat.completions.create(model="tgi", messages=MESSAGES, stream=True)
    assert all(chunk.usage is None and chunk.choices for chunk in plain)


def stream_helper() -> None:
    with client.chat.completions.stream(model="tgi", messages=MESSAGES) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert events.count("content.done") == 1 and "content.delta" in events and "chunk" in events, events
    (choice,) = final.choices
    assert choice.message.content == FIVE and choice.finish_reason == "stop", final
    # The helper joins the role of every chunk; what it made is sent back as it is.
    again: list[Any] = [*MESSAGES, choice.message, {"role": "user", "content": COUNT}]
    answer = client.chat.completions.create(model="tgi", messages=again)
    written = [*MESSAGES, {"role": "assistant", "content": FIVE}, {"role": "user", "content": COUNT}]
    expected = client.chat.completions.create(model="tgi", messages=written)
    assert answer.usage and expected.usage and answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.choices[0].message.content == expected.choices[0].message.content


def stream_helper_with_tools() -> None:
    with client.chat.completions.stream(
        model="tgi", messages=WEATHER_MESSAGES, tools=[openai.pydantic_function_tool(GetWeather, name="get_weather")]
    ) as stream:
        events = list(stream)
        message = stream.get_final_completion().choices[0].message
    (done,) = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert done.name == "get_weather" and done.parsed_arguments == GetWeather(city="Paris"), done
    assert message.tool_calls and message.tool_calls[0].id.startswith("call_"), message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny, 21 degrees"}
    final = client.chat.completions.create(
        model="tgi",
        messages=[*WEATHER_MESSAGES, message, result],
        tools=[WEATHER_TOOL],  # type: ignore[list-item]
    )
    assert final.choices[0].finish_reason == "stop" and final.choices[0].message.content, final


def parse() -> None:
    answer = client.chat.completions.parse(model="tgi", messages=MESSAGES, response_format=Fruit, max_tokens=100)
    assert isinstance(answer.choices[0].message.parsed, Fruit), answer
    with client.chat.completions.stream(model="tgi", messages=MESSAGES, response_format=Fruit) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Fruit)
    tool = openai.pydantic_function_tool(GetWeather, name="get_weather")
    called = client.chat.completions.parse(model="tgi", messages=WEATHER_MESSAGES, tools=[tool])
    calls = called.choices[0].message.tool_calls
    assert calls and calls[0].function.parsed_arguments == GetWeather(city="Paris"), called
    with raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="tgi", messages=MESSAGES, response_format=Fruit, max_tokens=2)


def tools() -> None:
    def ask(messages: list[Any], **options: Any) -> Any:
        return client.chat.completions.create(
            model="tgi", messages=messages, tools=[WEATHER_TOOL, ADD_TOOL], temperature=0, **options
        ).choices[0]  # type: ignore[list-item]

    for choice in ("auto", "required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = ask(WEATHER_MESSAGES, tool_choice=choice)
        (call,) = answer.message.tool_calls
        assert answer.finish_reason == "tool_calls" and answer.message.content is None, answer
        assert call.type == "function" and call.function.name == "get_weather", call
        assert json.loads(call.function.arguments) == {"city": "Paris"}, call
    named = ask(MESSAGES, tool_choice={"type": "function", "function": {"name": "calculate"}}, max_tokens=200)
    (call,) = named.message.tool_calls
    assert call.function.name == "calculate" and set(json.loads(call.function.arguments)) == {"a", "b"}, call
    assert ask(MESSAGES, tool_choice="auto").message.content == FIVE
    assert not ask(WEATHER_MESSAGES, tool_choice="none").message.tool_calls
    assert len(ask(WEATHER_MESSAGES, parallel_tool_calls=False).message.tool_calls) == 1
    answer = ask(WEATHER_MESSAGES, tool_choice="auto")
    result = {"role": "tool", "tool_call_id": answer.message.tool_calls[0].id, "content": "sunny, 21 degrees"}
    sent_back = answer.message.model_dump()  # with `refusal`, `annotations`, `audio` and `function_call`, all null
    assert sent_back["audio"] is None and sent_back["function_call"] is None
    assert ask([*WEATHER_MESSAGES, sent_back, result]).finish_reason == "stop"


def tools_stream() -> None:
    for choice in ("auto", "required"):
        chunks = list(
            client.chat.completions.create(
                model="tgi",
                messages=WEATHER_MESSAGES,
                tools=[WEATHER_TOOL],
                tool_choice=choice,
                stream=True,  # type: ignore[call-overload]
            )
        )
        name, arguments, call_id = "", "", ""
        for chunk in chunks:
            for call in chunk.choices[0].delta.tool_calls or []:
                name += call.function.name or ""
                arguments += call.function.arguments or ""
                call_id += call.id or ""
        assert name == "get_weather" and json.loads(arguments) == {"city": "Paris"} and call_id.count("call_") == 1, (
            chunks
        )
        assert chunks[-1].choices[0].finish_reason == "tool_calls", chunks[-1]


def logprobs() -> None:
    answer = client.chat.completions.create(model="tgi", messages=MESSAGES, logprobs=True, top_logprobs=3)
    found = answer.choices[0].logprobs
    assert found and found.content and found.refusal is None
    assert "".join(token.token for token in found.content).startswith(FIVE)
    for token in found.content:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0 and token.bytes == list(token.token.encode())
    streamed = client.chat.completions.create(
        model="tgi", messages=MESSAGES, logprobs=True, top_logprobs=3, stream=True
    )
    parts = [token for chunk in streamed for token in chunk.choices[0].logprobs.content]  # type: ignore[union-attr]
    assert [token.token for token in parts] == [token.token for token in found.content]


def sampling_options() -> None:
    def text(**options: Any) -> str:
        return (
            client.chat.completions.create(model="tgi", messages=MESSAGES, **options).choices[0].message.content or ""
        )

    assert len(client.chat.completions.create(model="tgi", messages=MESSAGES, n=3).choices) == 3
    hot = {"temperature": 3.0, "seed": 7, "max_tokens": 12}
    assert text(**hot) == text(**hot) != text(**hot | {"seed": 8})
    assert text(stop=", 3") == "1, 2" == text(stop=[", 3", "9"])
    assert text(max_tokens=3) == FIVE[: len(text(max_tokens=3))] and text(max_completion_tokens=3) == text(max_tokens=3)
    assert text(frequency_penalty=0.5, presence_penalty=0.5, temperature=0) == FIVE
    assert text(top_p=0.9, temperature=0) == FIVE
    scored = client.completions.create(
        model="tgi", prompt="3", max_tokens=1, logprobs=1, temperature=0, logit_bias={"40": 100}
    )
    free = client.completions.create(model="tgi", prompt="3", max_tokens=1, logprobs=1, temperature=0)
    assert scored.choices[0].text != free.choices[0].text
    assert text(user="u", metadata={"a": "b"}, store=False, service_tier="auto", extra_body={"unknown": 1}) == FIVE


def response_formats() -> None:
    def parsed(response_format: dict[str, Any], **options: Any) -> Any:
        answer = client.chat.completions.create(
            model="tgi",
            messages=MESSAGES,
            response_format=response_format,
            max_tokens=300,
            **options,  # type: ignore[call-overload]
        )
        return json.loads(answer.choices[0].message.content)

    for strict in (True, False, None):
        schema = {"name": "fruit", "schema": FRUIT_SCHEMA, "strict": strict}
        fruit = parsed({"type": "json_schema", "json_schema": schema})
        assert fruit["name"] in ("apple", "pear") and isinstance(fruit["is_ripe"], bool), fruit
    # A model that knows no JSON may not come to its end.
    anything = client.chat.completions.create(
        model="tgi", messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=20
    )
    assert (anything.choices[0].message.content or "").startswith("{"), anything
    text = client.chat.completions.create(model="tgi", messages=MESSAGES, response_format={"type": "text"})
    assert text.choices[0].message.content == FIVE


def raw_response_and_errors() -> None:
    raw = client.chat.completions.with_raw_response.create(model="tgi", messages=MESSAGES)
    assert raw.headers["content-type"] == "application/json" and int(raw.headers["x-generated-tokens"]) > 5
    assert raw.parse().choices[0].message.content == FIVE
    with client.chat.completions.with_streaming_response.create(model="tgi", messages=MESSAGES) as streaming:
        assert FIVE in "".join(streaming.iter_text())
    with raises(openai.NotFoundError):
        client.models.retrieve("nothing")
    with raises(openai.NotFoundError):
        client.embeddings.create(model="tgi", input="x")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"top_logprobs": 30, "logprobs": True}, "top_logprobs"),
        ({"n": 0}, "n"),
        ({"response_format": {"type": "nothing"}}, "response_format"),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, "messages"),
    ]
    for options, param in wrong:
        for stream in (False, True):
            with raises(openai.BadRequestError) as caught:
                client.chat.completions.create(**{"model": "tgi", "messages": MESSAGES, "stream": stream, **options})
            error = caught[0]
            assert error.param == param and error.type == "invalid_request_error", (options, error.param, error)
    with raises(openai.BadRequestError) as caught:
        client.completions.create(model="tgi", prompt="x", max_tokens=10**6, temperature=-3)
    assert caught[0].param == "temperature"


def completions() -> None:
    answer = client.completions.create(model="tgi", prompt="What is Deep Learning?", max_tokens=8, temperature=0)
    (choice,) = answer.choices
    assert choice.text and choice.finish_reason == "length" and choice.logprobs is None, choice
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    streamed = client.completions.create(
        model="tgi", prompt="What is Deep Learning?", max_tokens=8, temperature=0, stream=True
    )
    chunks = list(streamed)
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert chunks[-1].choices[0].finish_reason == "length"
    ids = [[10, 20, 30], [40, 50]]
    batch = client.completions.create(model="tgi", prompt=ids, max_tokens=2, temperature=0, n=2)
    assert [c.index for c in batch.choices] == [0, 1, 2, 3] and batch.usage and batch.usage.prompt_tokens == 5
    assert batch.choices[0].text == batch.choices[1].text


def completions_echo() -> None:
    options: dict[str, Any] = {"model": "tgi", "prompt": "Hello there", "temperature": 0, "echo": True, "logprobs": 3}
    answer = client.completions.create(max_tokens=4, **options)
    (choice,) = answer.choices
    found = choice.logprobs
    assert choice.text.startswith("Hello there") and found and found.tokens and found.token_logprobs
    lists = (found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset)
    assert len({len(values or []) for values in lists}) == 1, found
    assert "".join(found.tokens) == choice.text
    assert [choice.text[i : i + len(t)] for i, t in zip(found.text_offset, found.tokens, strict=True)] == found.tokens  # type: ignore[arg-type]
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None  # type: ignore[index]
    for token, value, top in zip(found.tokens[1:], found.token_logprobs[1:], found.top_logprobs[1:], strict=True):  # type: ignore[index]
        assert top[token] == value and 3 <= len(top) <= 4, (token, value, top)
    scored = client.completions.create(max_tokens=0, **options)
    (only,) = scored.choices
    assert only.text == "Hello there" and only.finish_reason == "length" and only.logprobs, only
    assert only.logprobs.token_logprobs == found.token_logprobs[:2] and scored.usage, only
    assert scored.usage.completion_tokens == 0 and scored.usage.total_tokens == scored.usage.prompt_tokens


def models() -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id and model.object == "model"


def responses() -> None:
    answer = client.responses.create(model="tgi", input=COUNT)
    assert answer.output_text == FIVE and answer.status == "completed" and answer.usage, answer
    following = client.responses.create(model="tgi", input=COUNT, previous_response_id=answer.id)
    assert following.usage and following.usage.input_tokens > answer.usage.input_tokens
    events = list(client.responses.create(model="tgi", input=COUNT, stream=True))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == FIVE
    with client.responses.stream(model="tgi", input=COUNT) as stream:
        assert stream.get_final_response().output_text == FIVE
    parsed = client.responses.parse(model="tgi", input=COUNT, text_format=Fruit)
    assert isinstance(parsed.output_parsed, Fruit), parsed
    tool: Any = {"type": "function", "name": "get_weather", "parameters": WEATHER_SCHEMA, "strict": False}
    called = client.responses.create(model="tgi", input=WEATHER_MESSAGES, tools=[tool])
    (call,) = [item for item in called.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"city": "Paris"}, call
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 21 degrees"}
    final = client.responses.create(model="tgi", input=[*WEATHER_MESSAGES, *called.output, output], tools=[tool])
    assert final.output_text, final
    with raises(openai.BadRequestError) as caught:
        client.responses.create(model="tgi", input=COUNT, max_output_tokens=0)
    assert caught[0].param == "max_output_tokens", caught[0].param


async def asynchronous() -> None:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1/", api_key="-", max_retries=0) as api:
        answers = await asyncio.gather(*(api.chat.completions.create(model="tgi", messages=MESSAGES) for _ in range(4)))
        assert {answer.choices[0].message.content for answer in answers} == {FIVE}
        stream = await api.chat.completions.create(model="tgi", messages=MESSAGES, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == FIVE
        async with api.chat.completions.stream(model="tgi", messages=MESSAGES) as helper:
            assert (await helper.get_final_completion()).choices[0].message.content == FIVE
        parsed = await api.chat.completions.parse(model="tgi", messages=MESSAGES, response_format=Fruit)
        assert isinstance(parsed.choices[0].message.parsed, Fruit)


async def cancelled_and_timed_out() -> None:
    story: list[Any] = [{"role": "user", "content": "Tell me a long story"}]
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1/", api_key="-", max_retries=0) as api:
        stream = await api.chat.completions.create(model="tgi", messages=story, stream=True)
        async for _ in stream:
            break
        await stream.close()
        with raises(asyncio.TimeoutError):
            await asyncio.wait_for(
                api.chat.completions.create(model="tgi", messages=story, extra_body={"ignore_eos": True}), 0.2
            )
        with raises(openai.APITimeoutError):
            await api.chat.completions.create(model="tgi", messages=story, timeout=0.2, extra_body={"ignore_eos": True})
        answer = await api.chat.completions.create(model="tgi", messages=MESSAGES)
        assert answer.choices[0].message.content == FIVE


run(
    chat,
    chat_stream,
    stream_helper,
    stream_helper_with_tools,
    parse,
    tools,
    tools_stream,
    logprobs,
    sampling_options,
    response_formats,
    raw_response_and_errors,
    completions,
    completions_echo,
    models,
    responses,
    asynchronous,
    cancelled_and_timed_out,
)
