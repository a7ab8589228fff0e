"""smolagents: its models for OpenAI's and Hugging Face's clients, and a tool-calling step."""

from typing import Any

from checks import ASK_WEATHER, COUNT, FIVE, FRUIT_SCHEMA, URL, run
from smolagents import InferenceClientModel, OpenAIServerModel, tool

MODELS: list[Any] = [
    OpenAIServerModel(model_id="tgi", api_base=f"{URL}/v1", api_key="-"),
    InferenceClientModel(model_id=URL, api_key="-"),
]


@tool
def get_weather(city: str) -> str:
    """Get the current weather in a city

    Args:
        city: the city
    """
    return f"sunny, 21 degrees in {city}"


def asked(text: str) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def text() -> None:
    for model in MODELS:
        answer = model.generate(asked(COUNT))
        assert answer.content == FIVE and answer.token_usage.output_tokens > 5, (model, answer)
        deltas = list(model.generate_stream(asked(COUNT)))
        assert "".join(delta.content or "" for delta in deltas) == FIVE, (model, deltas)
        assert model.generate(asked(COUNT), stop_sequences=[", 3"]).content == "1, 2", model


def tools() -> None:
    for model in MODELS:
        answer = model.generate(asked(ASK_WEATHER), tools_to_call_from=[get_weather])
        (call,) = answer.tool_calls
        assert call.function.name == "get_weather", (model, answer)


def response_format() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "fruit", "schema": FRUIT_SCHEMA, "strict": True}}
    # The other model takes a format for two providers only, and says so itself.
    assert "is_ripe" in MODELS[0].generate(asked(COUNT), response_format=form).content


run(text, tools, response_format)
