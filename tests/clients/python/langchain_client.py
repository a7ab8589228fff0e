"""LangChain: chat and completion models of langchain-openai, and langchain-huggingface's endpoint."""

from typing import Any, Literal

import openai
from checks import ASK_WEATHER, COUNT, FIVE, FRUIT_SCHEMA, URL, raises, run
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

model = ChatOpenAI(base_url=f"{URL}/v1", api_key="-", model="tgi", temperature=0, stream_usage=True, max_retries=0)  # type: ignore[arg-type]


class Fruit(BaseModel):
    """A fruit, and whether it is ripe"""

    name: Literal["apple", "pear"]
    is_ripe: bool


@tool
def get_weather(city: str) -> str:
    """Get the current weather in a city"""
    return f"sunny, 21 degrees in {city}"


def chat() -> None:
    answer = model.invoke(COUNT)
    assert answer.content == FIVE and answer.response_metadata["finish_reason"] == "stop", answer
    assert answer.usage_metadata and answer.usage_metadata["output_tokens"] > 5, answer
    chunks = list(model.stream(COUNT))
    assert "".join(str(chunk.content) for chunk in chunks) == FIVE
    whole = sum(chunks[1:], start=chunks[0])
    assert whole.usage_metadata and whole.response_metadata["finish_reason"] == "stop", whole
    assert [answer.content for answer in model.batch([COUNT, COUNT])] == [FIVE, FIVE]
    again = model.invoke([HumanMessage(COUNT), whole, HumanMessage(COUNT)])
    assert again.content == model.invoke([HumanMessage(COUNT), AIMessage(FIVE), HumanMessage(COUNT)]).content
    scored = model.bind(logprobs=True, top_logprobs=2, stop=[", 3"]).invoke(COUNT)
    assert scored.content == "1, 2" and scored.response_metadata["logprobs"]["content"], scored


def tools() -> None:
    with_tools = model.bind_tools([get_weather])
    for choice in ("auto", "any", "get_weather"):
        called = model.bind_tools([get_weather], tool_choice=choice).invoke(ASK_WEATHER)
        assert [call["args"] for call in called.tool_calls] == [{"city": "Paris"}], called  # type: ignore[attr-defined]
    chunks = list(with_tools.stream(ASK_WEATHER))
    whole: Any = sum(chunks[1:], start=chunks[0])
    (call,) = whole.tool_calls
    assert call["name"] == "get_weather" and call["args"] == {"city": "Paris"} and call["id"].startswith("call_"), whole
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    final = with_tools.invoke([HumanMessage(ASK_WEATHER), whole, result])
    assert final.content and not final.tool_calls, final  # type: ignore[attr-defined]


def structured_output() -> None:
    for method in ("json_schema", "function_calling"):
        fruit = model.with_structured_output(Fruit, method=method).invoke(COUNT)  # type: ignore[arg-type]
        assert isinstance(fruit, Fruit), (method, fruit)
    fruit = model.with_structured_output(FRUIT_SCHEMA | {"title": "fruit"}, strict=True).invoke(COUNT)
    assert set(fruit) == {"name", "is_ripe"}, fruit
    # The model knows no JSON, and comes to no end in an object of no form; what counts is that it begins one.
    brief = ChatOpenAI(base_url=f"{URL}/v1", api_key="-", model="tgi", max_tokens=20, max_retries=0)  # type: ignore
    with raises(openai.LengthFinishReasonError) as caught:
        brief.with_structured_output(Fruit, method="json_mode").invoke(COUNT)
    assert caught[0].completion.choices[0].message.content.startswith("{"), caught


def responses() -> None:
    api = ChatOpenAI(base_url=f"{URL}/v1", api_key="-", model="tgi", use_responses_api=True, max_retries=0)  # type: ignore[arg-type]
    assert api.invoke(COUNT).text == FIVE
    chunks = list(api.stream(COUNT))
    assert sum(chunks[1:], start=chunks[0]).text == FIVE
    called = api.bind_tools([get_weather]).invoke(ASK_WEATHER)
    assert [call["args"] for call in called.tool_calls] == [{"city": "Paris"}], called  # type: ignore[attr-defined]


def completions() -> None:
    llm = OpenAI(base_url=f"{URL}/v1", api_key="-", model="tgi", temperature=0, max_tokens=8, max_retries=0)  # type: ignore[arg-type]
    text = llm.invoke("What is Deep Learning?")
    assert text and "".join(llm.stream("What is Deep Learning?")) == text
    assert llm.batch(["What is Deep Learning?"] * 4) == [text] * 4


async def asynchronous() -> None:
    assert (await model.ainvoke(COUNT)).content == FIVE
    assert "".join([str(chunk.content) async for chunk in model.astream(COUNT)]) == FIVE


def hugging_face() -> None:
    llm = HuggingFaceEndpoint(
        endpoint_url=URL, huggingfacehub_api_token="-", max_new_tokens=8, do_sample=False, return_full_text=False
    )
    text = llm.invoke("What is Deep Learning?")
    assert text and "".join(llm.stream("What is Deep Learning?")) == text, text
    chat_model = ChatHuggingFace(llm=llm, model_id="tgi")
    assert chat_model.bind(max_tokens=50).invoke(COUNT).content == FIVE
    chunks = list(chat_model.bind(max_tokens=50).stream(COUNT))
    assert "".join(str(chunk.content) for chunk in chunks) == FIVE, chunks
    called = chat_model.bind_tools([get_weather]).bind(max_tokens=80).invoke(ASK_WEATHER)
    assert [call["args"] for call in called.tool_calls] == [{"city": "Paris"}], called  # type: ignore[attr-defined]


run(chat, tools, structured_output, responses, completions, asynchronous, hugging_face)
