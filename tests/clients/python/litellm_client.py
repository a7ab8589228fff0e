"""litellm: one call, many providers; each speaks to this server in its own dialect."""

import json
import os
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it asks GitHub for prices otherwise

import litellm
from checks import ASK_WEATHER, FIVE, FRUIT_SCHEMA, MESSAGES, URL, WEATHER_MESSAGES, WEATHER_TOOL, raises, run

litellm.suppress_debug_info = True
# A provider's name for its dialect, and the address under which it looks for the server.
CHAT = {"openai/tgi": f"{URL}/v1", "hosted_vllm/tgi": f"{URL}/v1", "huggingface/tgi": URL, "anthropic/tgi": URL}


def ask(model: str, messages: Any = MESSAGES, **options: Any) -> Any:
    base = CHAT.get(model, f"{URL}/v1")
    return litellm.completion(
        model=model, api_base=base, api_key="-", messages=messages, num_retries=0, max_tokens=100, **options
    )


def chat() -> None:
    for model in CHAT:
        answer = ask(model)
        assert answer.choices[0].message.content == FIVE, (model, answer)
        assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 5, (model, answer)
        again = ask(model, [*MESSAGES, answer.choices[0].message.model_dump(), *MESSAGES])
        assert again.choices[0].message.content, (model, again)


def stream() -> None:
    for model in CHAT:
        chunks = list(ask(model, stream=True, stream_options={"include_usage": True}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == FIVE, (model, chunks)
        built = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
        assert built.choices[0].message.content == FIVE and built.choices[0].finish_reason == "stop", (model, built)  # type: ignore


def tools() -> None:
    for model in CHAT:
        answer = ask(model, WEATHER_MESSAGES, tools=[WEATHER_TOOL], tool_choice="auto")
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls", (model, answer)
        assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Paris"}, model
        chunks = list(ask(model, WEATHER_MESSAGES, tools=[WEATHER_TOOL], stream=True))
        built: Any = litellm.stream_chunk_builder(chunks, messages=WEATHER_MESSAGES)
        (streamed,) = built.choices[0].message.tool_calls
        assert streamed.id and json.loads(streamed.function.arguments) == {"city": "Paris"}, (model, built)
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"}
        messages = [*WEATHER_MESSAGES, answer.choices[0].message.model_dump(), result]
        assert ask(model, messages, tools=[WEATHER_TOOL]).choices[0].message.content, model


def response_formats() -> None:
    schema = {"name": "fruit", "schema": FRUIT_SCHEMA, "strict": True}
    for model in ("openai/tgi", "hosted_vllm/tgi", "huggingface/tgi"):
        answer = ask(model, response_format={"type": "json_schema", "json_schema": schema})
        assert set(json.loads(answer.choices[0].message.content)) == {"name", "is_ripe"}, (model, answer)


def completions() -> None:
    answer = litellm.text_completion(
        model="text-completion-openai/tgi", api_base=f"{URL}/v1", api_key="-", prompt=ASK_WEATHER, max_tokens=5
    )
    assert answer.choices[0].text, answer
    with raises(litellm.BadRequestError):
        ask("openai/tgi", temperature=-1)
    with raises(litellm.ContextWindowExceededError):
        ask("openai/tgi", [{"role": "user", "content": "x " * 9000}])


async def asynchronous() -> None:
    answer = await litellm.acompletion(model="openai/tgi", api_base=f"{URL}/v1", api_key="-", messages=MESSAGES)
    assert answer.choices[0].message.content == FIVE
    chunks = await litellm.acompletion(
        model="openai/tgi", api_base=f"{URL}/v1", api_key="-", messages=MESSAGES, stream=True
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in chunks]) == FIVE


run(chat, stream, tools, response_formats, completions, asynchronous)
