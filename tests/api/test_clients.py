"""Real client libraries, unmodified, against a real server."""

import json
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError

from tests.serving import Server

HI: list[Any] = [{"role": "user", "content": "Count to 5"}]
FIVE = "1, 2, 3, 4, 5"
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@pytest.fixture
def client(demo_server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo_server.url}/v1/", api_key="-", max_retries=0)


def test_openai_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tgi", messages=HI)
    assert answer.choices[0].message.content == FIVE
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens > 5


def test_openai_chat_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="tgi", messages=HI, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == FIVE


def test_openai_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tgi", prompt="What is Deep Learning?", max_tokens=20)
    assert answer.choices[0].text and answer.choices[0].finish_reason in ("length", "stop")


def test_openai_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id == "tgi-local/demo"


def test_openai_errors_are_typed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tgi", messages=HI, temperature=-1)
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


async def test_openai_async_client_and_early_exit(demo_server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{demo_server.url}/v1/", api_key="-") as client:
        stream = await client.chat.completions.create(model="tgi", messages=HI, stream=True)
        async for _ in stream:
            break
        await stream.close()
        answer = await client.chat.completions.create(model="tgi", messages=HI)
    assert answer.choices[0].message.content == FIVE


def test_openai_tool_call_round_trip(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = client.chat.completions.create(model="tgi", messages=messages, tools=TOOLS)
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function" and call.function.name == "get_weather" and call.id.startswith("call_")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"}]
    final = client.chat.completions.create(model="tgi", messages=messages, tools=TOOLS)
    assert final.choices[0].message.content and final.choices[0].finish_reason == "stop"


def test_openai_streamed_tool_call(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    chunks = list(client.chat.completions.create(model="tgi", messages=messages, tools=TOOLS, stream=True))
    names, arguments = "", ""
    for chunk in chunks:
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.function is not None and call.index == 0
            names += call.function.name or ""
            arguments += call.function.arguments or ""
    assert names == "get_weather" and json.loads(arguments) == {"city": "Paris"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_inference_client_with_and_without_v1(demo_server: Server, suffix: str) -> None:
    client = InferenceClient(base_url=demo_server.url + suffix, api_key="-")
    assert client.chat_completion(HI).choices[0].message.content == FIVE
    chunks = client.chat_completion(HI, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == FIVE
    text = client.text_generation("What is Deep Learning?", max_new_tokens=20, return_full_text=False)
    streamed = client.text_generation("What is Deep Learning?", max_new_tokens=20, stream=True)
    assert "".join(streamed).startswith(text[:20])


def test_inference_client_details_and_errors(demo_server: Server) -> None:
    client = InferenceClient(demo_server.url, token="-")
    output = client.text_generation("Hello", max_new_tokens=5, details=True)
    assert output.details is not None and len(output.details.tokens) == output.details.generated_tokens
    *_, last = client.text_generation("Hello", max_new_tokens=5, details=True, stream=True)
    assert last.generated_text is not None and last.details is not None
    with pytest.raises(ValidationError):
        client.text_generation("Hello", top_p=1.0)
    with pytest.raises(ValidationError):
        list(client.text_generation("Hello", top_p=1.0, stream=True))
    endpoint = InferenceClient(demo_server.url, provider="hf-inference", token="-")
    assert endpoint.health_check()
    assert endpoint.get_endpoint_info()["model_id"] == "tgi-local/demo"


async def test_async_inference_client(demo_server: Server) -> None:
    async with AsyncInferenceClient(base_url=demo_server.url, api_key="-") as client:
        answer = await client.chat_completion(HI)
        assert answer.choices[0].message.content == FIVE
        chunks = [chunk async for chunk in await client.chat_completion(HI, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == FIVE


def test_gradio_client_reaches_the_page(demo_server: Server) -> None:
    from gradio_client import Client

    client = Client(demo_server.url, verbose=False)
    answer = client.predict("Count to 5", api_name="/chat")
    assert FIVE in json.dumps(answer)
    client.close()


def test_browser_like_keep_alive_connection(demo_server: Server) -> None:
    with httpx.Client(base_url=demo_server.url) as client:
        for path in ("/health", "/info", "/v1/models", "/metrics", "/"):
            assert client.get(path).status_code == 200
