"""Haystack: its chat generator for OpenAI's API, streamed and not, with tools."""

import os
from typing import Any

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

from checks import ASK_WEATHER, COUNT, FIVE, FRUIT_SCHEMA, URL, run
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret

generator = OpenAIChatGenerator(
    api_key=Secret.from_token("-"), api_base_url=f"{URL}/v1", model="tgi", generation_kwargs={"temperature": 0}
)


def get_weather(city: str) -> str:
    """Get the current weather in a city"""
    return f"sunny, 21 degrees in {city}"


def asked(*messages: ChatMessage, **options: Any) -> ChatMessage:
    (reply,) = generator.run(list(messages), **options)["replies"]
    return reply


def chat() -> None:
    reply = asked(ChatMessage.from_user(COUNT))
    assert reply.text == FIVE and reply.meta["finish_reason"] == "stop" and reply.meta["usage"], reply
    parts: list[str] = []
    streamed = asked(ChatMessage.from_user(COUNT), streaming_callback=lambda chunk: parts.append(chunk.content))
    assert streamed.text == "".join(parts) == FIVE and streamed.meta["finish_reason"] == "stop", streamed


def tools() -> None:
    tool = create_tool_from_function(get_weather)
    question = ChatMessage.from_user(ASK_WEATHER)
    for callback in (None, lambda chunk: None):
        reply = asked(question, tools=[tool], streaming_callback=callback)
        (call,) = reply.tool_calls
        assert call.tool_name == "get_weather" and call.arguments == {"city": "Paris"}, reply
        assert call.id and call.id.startswith("call_"), reply
        result = ChatMessage.from_tool(get_weather(**call.arguments), origin=call)
        assert asked(question, reply, result, tools=[tool]).text, reply


def response_format() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "fruit", "schema": FRUIT_SCHEMA, "strict": True}}
    assert "is_ripe" in (asked(ChatMessage.from_user(COUNT), generation_kwargs={"response_format": form}).text or "")


run(chat, tools, response_format)
