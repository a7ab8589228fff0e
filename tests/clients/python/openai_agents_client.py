"""OpenAI's Agents SDK: an agent with a tool and one with an output type, by chat and by Responses."""

from typing import Any, Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from checks import ASK_WEATHER, COUNT, FIVE, URL, run
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
called: list[str] = []


class Fruit(BaseModel):
    name: Literal["apple", "pear"]
    is_ripe: bool


@function_tool
def get_weather(city: str) -> str:
    """Get the current weather in a city"""
    called.append(city)
    return "sunny, 21 degrees"


def models() -> dict[str, Any]:
    client = AsyncOpenAI(base_url=f"{URL}/v1", api_key="-", max_retries=0)
    return {
        "chat": OpenAIChatCompletionsModel(model="tgi", openai_client=client),
        "responses": OpenAIResponsesModel(model="tgi", openai_client=client),
    }


async def text() -> None:
    for name, model in models().items():
        agent = Agent(name="counter", model=model)
        result = await Runner.run(agent, COUNT)
        assert result.final_output == FIVE, (name, result)
        streamed = Runner.run_streamed(agent, COUNT)
        kinds = {event.type async for event in streamed.stream_events()}
        assert streamed.final_output == FIVE and "raw_response_event" in kinds, (name, streamed)
        follow_up = await Runner.run(agent, [*result.to_input_list(), {"role": "user", "content": COUNT}])
        assert follow_up.final_output, (name, follow_up)


async def tools() -> None:
    for name, model in models().items():
        agent = Agent(name="weather", model=model, tools=[get_weather], model_settings=ModelSettings(temperature=0))
        called.clear()
        result = await Runner.run(agent, ASK_WEATHER)
        assert called == ["Paris"] and result.final_output, (name, called, result)
        called.clear()
        streamed = Runner.run_streamed(agent, ASK_WEATHER)
        async for _ in streamed.stream_events():
            pass
        assert called == ["Paris"] and streamed.final_output == result.final_output, (name, called, streamed)


async def structured_output() -> None:
    for name, model in models().items():
        result = await Runner.run(Agent(name="fruit", model=model, output_type=Fruit), COUNT)
        assert isinstance(result.final_output, Fruit), (name, result)


run(text, tools, structured_output)
