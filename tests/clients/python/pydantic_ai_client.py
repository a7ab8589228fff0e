"""Pydantic AI: agents with text, tools and structured output, streamed and not, by chat and by Responses."""

from typing import Any, Literal

from checks import ASK_WEATHER, COUNT, FIVE, URL, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=f"{URL}/v1", api_key="-")
MODELS = {
    "chat": OpenAIChatModel("tgi", provider=provider),
    "responses": OpenAIResponsesModel("tgi", provider=provider),
}


class Fruit(BaseModel):
    """A fruit, and whether it is ripe"""

    name: Literal["apple", "pear"]
    is_ripe: bool


def weather_agent(model: Any, called: list[str]) -> Agent[None, str]:
    agent = Agent(model, model_settings={"temperature": 0})

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Get the current weather in a city"""
        called.append(city)
        return "sunny, 21 degrees"

    return agent


async def text() -> None:
    for name, model in MODELS.items():
        agent = Agent(model)
        result = await agent.run(COUNT)
        assert result.output == FIVE and result.usage.output_tokens > 5, (name, result)
        follow_up = await agent.run(COUNT, message_history=result.all_messages())
        assert follow_up.output, (name, follow_up)
        async with agent.run_stream(COUNT) as stream:
            assert "".join([delta async for delta in stream.stream_text(delta=True)]) == FIVE, name


async def tools() -> None:
    for name, model in MODELS.items():
        called: list[str] = []
        result = await weather_agent(model, called).run(ASK_WEATHER)
        assert called == ["Paris"] and result.output, (name, called, result)
        called.clear()
        async with weather_agent(model, called).run_stream(ASK_WEATHER) as stream:
            final = await stream.get_output()
        assert called == ["Paris"] and final == result.output, (name, called, final)


async def structured_output() -> None:
    for name, model in MODELS.items():
        for kind in (Fruit, NativeOutput(Fruit)):
            result = await Agent(model, output_type=kind).run(COUNT)  # type: ignore[call-overload]
            assert isinstance(result.output, Fruit), (name, kind, result)
            async with Agent(model, output_type=kind).run_stream(COUNT) as stream:  # type: ignore[call-overload]
                assert isinstance(await stream.get_output(), Fruit), (name, kind)


run(text, tools, structured_output)
