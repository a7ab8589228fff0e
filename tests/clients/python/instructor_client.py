"""instructor: pydantic models out of chats, by tools and by response formats."""

from typing import Literal

import instructor
import openai
from checks import MESSAGES, URL, run
from pydantic import BaseModel


class Fruit(BaseModel):
    """A fruit, and whether it is ripe"""

    name: Literal["apple", "pear"]
    is_ripe: bool


def modes() -> None:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key="-", max_retries=0), mode=mode)
        fruit, raw = client.chat.completions.create_with_completion(
            model="tgi", messages=MESSAGES, response_model=Fruit, max_retries=0, max_tokens=200
        )
        assert isinstance(fruit, Fruit) and raw.usage is not None, (mode, fruit)


def partial() -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key="-"), mode=instructor.Mode.JSON_SCHEMA)
    *_, last = client.chat.completions.create_partial(model="tgi", messages=MESSAGES, response_model=Fruit)
    assert Fruit.model_validate(last.model_dump()), last


async def asynchronous() -> None:
    client = instructor.from_openai(openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="-"))
    fruit = await client.chat.completions.create(model="tgi", messages=MESSAGES, response_model=Fruit, max_retries=0)
    assert isinstance(fruit, Fruit), fruit


run(modes, partial, asynchronous)
