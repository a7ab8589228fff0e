"""Calling a weather or calculator tool, using its result, and leaving tools alone that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from .base import Dialogue, Turn, chat, vary
from .words import city as random_city

Tool = dict[str, Any]
Message = dict[str, Any]

WEATHER_NAMES = (
    "get_weather", "get_weather", "get_current_weather", "weather", "fetch_weather", "current_weather", "weather_lookup",
    "lookup_weather", "getWeather", "get_forecast", "weather_now", "city_weather", "find_weather", "get_temperature",
)  # fmt: skip
PLACE_NAMES = ("city", "city", "location", "location", "place", "town", "city_name")
PLACE_HELP = (
    "The city", "Name of the city", "The city and state, e.g. San Francisco, CA", "City name", "Where", "The location",
    "city to look up", "The city, for example Paris",
)  # fmt: skip
UNIT_NAMES = ("unit", "unit", "format", "units")
WEATHER_HELP = (
    "Get the weather", "Get the current weather", "Get the current weather in a city", "Current weather for a location",
    "Returns the weather of a place", "Look up the weather", "Weather for a given city", "Tells the weather",
)  # fmt: skip
CALC_NAMES = (
    "calculator", "calculator", "calculate", "calc", "evaluate", "math", "compute", "evaluate_expression", "do_math",
    "run_calculator", "eval_math",
)  # fmt: skip
EXPRESSION_NAMES = ("expression", "expression", "expression", "expr", "formula", "input", "query", "calculation")
CALC_HELP = (
    "Evaluate an arithmetic expression", "A calculator", "Compute the value of an expression", "Do math", "Calculate",
    "Evaluates a math expression", "Calculator for + - * /", "Work out a calculation",
)  # fmt: skip
EXPRESSION_HELP = ("The expression", "Expression to evaluate", "e.g. 2 + 3", "Arithmetic expression", "What to compute")

# Tools that never fit: name, description, parameters.
OTHER_TOOLS = (
    ("send_email", "Send an email", "to subject body"), ("search_web", "Search the web", "query"),
    ("get_time", "Get the current time", "timezone"), ("translate", "Translate a text", "text language"),
    ("create_event", "Add an event to the calendar", "title date"), ("play_music", "Play a song", "song artist"),
    ("set_alarm", "Set an alarm", "time"), ("get_stock_price", "Get the price of a stock", "symbol"),
    ("book_flight", "Book a flight", "origin destination date"), ("read_file", "Read a file", "path"),
    ("write_file", "Write a file", "path content"), ("list_files", "List the files of a folder", "folder"),
    ("turn_on_light", "Switch on a light", "room"), ("get_news", "Get the latest news", "topic"),
    ("find_restaurant", "Find a restaurant", "cuisine area"), ("add_todo", "Add a task to the list", "task"),
    ("get_user", "Look up a user", "user_id"), ("run_sql", "Run a database query", "sql"),
    ("resize_image", "Change the size of an image", "path width height"), ("send_sms", "Send a text message", "number text"),
)  # fmt: skip

WEATHER_WORDINGS = (
    "What is the weather in {city}?", "What's the weather in {city}?", "What is the weather like in {city}?",
    "How is the weather in {city}?", "Weather in {city}", "What's the weather like in {city} today?", "Weather {city}",
    "Tell me the weather in {city}.", "Can you check the weather in {city}?", "Is it raining in {city}?",
    "Is it cold in {city}?", "Is it sunny in {city} right now?", "How warm is it in {city}?", "How hot is it in {city}?",
    "What is the temperature in {city}?", "Give me the weather for {city}.", "Get the weather in {city}.",
    "Do I need an umbrella in {city}?", "What is the current weather in {city}?", "Show me the weather in {city}",
    "Please look up the weather in {city}.", "I want to know the weather in {city}.", "I am in {city}. How is the weather?",
    "What weather do they have in {city}?", "How's the weather in {city} now?", "Will it rain in {city} today?",
    "I am going to {city}. What is the weather there?", "I live in {city}, what's the weather?", "{city} weather",
    "Could you tell me the weather in {city}?", "Is it windy in {city}?", "weather for {city} today",
)  # fmt: skip
UNIT_WORDINGS = (
    " in {unit}", " Use {unit}.", " Answer in {unit}.", " ({unit})", " In {unit} please.", " Give it in {unit}.",
)  # fmt: skip
CALC_WORDINGS = (
    "What is {e}?", "What is {e}?", "What's {e}?", "Calculate {e}", "Compute {e}.", "{e}", "{e} = ?", "{e} =", "How much is {e}?",
    "Evaluate {e}.", "Solve {e}", "Can you calculate {e}?", "Tell me {e}.", "Please compute {e}.", "What does {e} equal?",
    "Use the calculator: {e}", "I need to know {e}.", "Work out {e}.", "What is the result of {e}?", "Do the math: {e}",
    "Can you work out {e} for me?", "Please calculate {e}", "{e}?", "What do I get for {e}?", "Give me {e}.",
)  # fmt: skip
SPOKEN = {"+": ("plus",), "-": ("minus",), "*": ("times", "multiplied by", "x"), "/": ("divided by", "over")}
CONDITIONS = (
    "sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "stormy", "clear", "overcast", "humid", "partly cloudy",
    "light rain", "heavy rain", "hot", "cold", "hazy", "freezing", "mild", "showers", "thunderstorm",
)  # fmt: skip
TOOL_ERROR_ANSWER = "Sorry, the tool reported an error."


def make_tool(name: str, help_text: str, properties: dict[str, Any], required: list[str], rng: Random) -> Tool:
    """A tool in the OpenAI form; descriptions are sometimes left out."""
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.85:
        function["description"] = help_text
    function["parameters"] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        function["parameters"]["required"] = required
    return {"type": "function", "function": function}


def _string(help_text: str, rng: Random) -> dict[str, Any]:
    return {"type": "string", "description": help_text} if rng.random() < 0.6 else {"type": "string"}


def weather_tool(rng: Random) -> tuple[Tool, str, str | None]:
    """A weather tool, the name of its place parameter and the name of its unit parameter, if any."""
    place, unit = rng.choice(PLACE_NAMES), rng.choice(UNIT_NAMES) if rng.random() < 0.4 else None
    properties: dict[str, Any] = {place: _string(rng.choice(PLACE_HELP), rng)}
    if unit:
        properties[unit] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        if rng.random() < 0.3:
            properties[unit]["description"] = "The temperature unit to use"
    required = [place, unit] if unit and rng.random() < 0.4 else [place]
    return make_tool(rng.choice(WEATHER_NAMES), rng.choice(WEATHER_HELP), properties, required, rng), place, unit


def calculator_tool(rng: Random) -> tuple[Tool, str]:
    """A calculator tool and the name of its expression parameter."""
    name = rng.choice(EXPRESSION_NAMES)
    properties = {name: _string(rng.choice(EXPRESSION_HELP), rng)}
    return make_tool(rng.choice(CALC_NAMES), rng.choice(CALC_HELP), properties, [name], rng), name


def other_tool(rng: Random) -> Tool:
    """A tool the model was not taught to call."""
    name, help_text, parameters = rng.choice(OTHER_TOOLS)
    properties = {key: _string(f"The {key}", rng) for key in parameters.split()}
    return make_tool(name, help_text, properties, list(properties), rng)


def tool_name(tool: Tool) -> str:
    """The name of the function of a tool."""
    return tool["function"]["name"]


def _number(rng: Random) -> str:
    if rng.random() < 0.1:
        return f"{rng.randint(0, 99)}.{rng.randint(1, 9)}"
    return str(rng.randint(0, 10 ** rng.choice((1, 1, 2, 2, 2, 3, 3, 4)) - 1))


def expression(rng: Random) -> tuple[str, str]:
    """How the user writes a calculation, and the same in the form the tool gets."""
    count = rng.choice((2, 2, 2, 2, 3, 3, 4))
    numbers = [_number(rng) for _ in range(count)]
    operators = [rng.choice("+-**/") for _ in range(count - 1)]
    parts: list[str] = [numbers[0]]
    for operator, number in zip(operators, numbers[1:], strict=True):
        parts += [operator, number]
    if count > 2 and rng.random() < 0.35:
        start = rng.choice(range(0, 2 * count - 3, 2))
        parts[start], parts[start + 2] = "(" + parts[start], parts[start + 2] + ")"
    canonical = " ".join(parts)
    roll = rng.random()
    if roll < 0.25:
        return canonical.replace(" ", ""), canonical
    if roll < 0.5 and "(" not in canonical:
        return " ".join(rng.choice(SPOKEN[p]) if p in SPOKEN else p for p in parts), canonical
    return canonical, canonical


def call_message(name: str, arguments: dict[str, Any]) -> Message:
    """An assistant message that calls one tool."""
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


def weather_result(rng: Random, city: str) -> tuple[str, str]:
    """What a weather tool returns, and the sentence that reports it."""
    degrees, sky = rng.randint(-15, 42), rng.choice(CONDITIONS)
    if rng.random() < 0.1:
        degrees = rng.choice((round(rng.uniform(0, 30), 1), rng.randint(43, 99)))
    both = f"It is {degrees} degrees and {sky} in {city}."
    temperature = rng.choice(("temperature", "temperature", "temp", "temp_c", "degrees", "temperature_c"))
    condition = rng.choice(("condition", "condition", "conditions", "description", "weather", "sky", "summary"))
    data: dict[str, Any] = {temperature: degrees, condition: sky}
    if rng.random() < 0.3:
        data = {condition: sky, temperature: degrees}
    if rng.random() < 0.3:
        data = {rng.choice(PLACE_NAMES): city, **data}
    if rng.random() < 0.3:
        data["unit"] = "celsius"
    if rng.random() < 0.15:
        data["humidity"] = rng.randint(20, 99)
    roll = rng.random()
    if roll < 0.55:
        return json.dumps(data), both
    if roll < 0.75:
        text = rng.choice(
            ("{d} C, {s}", "{s}, {d} degrees", "{d} degrees, {s}", "{s} and {d} degrees", "{d}°C and {s}")
        )
        return text.format(d=degrees, s=sky), both
    if roll < 0.85:
        return rng.choice((str(degrees), json.dumps({temperature: degrees}))), f"It is {degrees} degrees in {city}."
    if roll < 0.95:
        return rng.choice((sky, json.dumps({condition: sky}))), f"The weather in {city} is {sky}."
    return _error(rng), TOOL_ERROR_ANSWER


def _error(rng: Random) -> str:
    return rng.choice(
        ('{"error": "not found"}', "error: timeout", '{"error": "no data"}', "Error", '{"error": "failed"}')
    )


def calculator_result(rng: Random, canonical: str) -> tuple[str, str]:
    """What a calculator returns, and the answer that reports it."""
    if rng.random() < 0.04:
        return _error(rng), TOOL_ERROR_ANSWER
    value = rng.choice(
        (str(rng.randint(-99, 9999)), str(rng.randint(0, 999)), f"{rng.randint(0, 999)}.{rng.randint(1, 99)}")
    )
    key = rng.choice(("result", "result", "value", "answer"))
    return rng.choice((value, f'{{"{key}": {value}}}', f'{{"{key}": {value}}}')), f"{canonical} = {value}"


def weather_exchange(rng: Random, name: str, place: str, unit: str | None, always_unit: bool) -> list[Message]:
    """Ask for the weather, call the tool and perhaps report the result."""
    city = random_city(rng)
    question = rng.choice(WEATHER_WORDINGS)
    arguments = {place: city}
    asked = rng.choice(("celsius", "fahrenheit")) if unit and rng.random() < 0.6 else None
    if asked:
        plain = question.rstrip("?.") if rng.random() < 0.3 else question
        extra = rng.choice(UNIT_WORDINGS)
        question = (
            (question.rstrip("?.") + extra + question[-1] * (question[-1] in "?."))
            if extra == " in {unit}"
            else plain + extra
        )
    if unit and (asked or always_unit):
        arguments[unit] = asked or "celsius"
    shown = asked.capitalize() if asked and rng.random() < 0.4 else asked
    messages = [{"role": "user", "content": vary(question, rng, city=city, unit=shown)}, call_message(name, arguments)]
    if rng.random() < 0.5:
        result, answer = weather_result(rng, city)
        messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": answer}]
    return messages


def calculator_exchange(rng: Random, name: str, parameter: str) -> list[Message]:
    """Ask for a calculation, call the tool and perhaps report the result."""
    written, canonical = expression(rng)
    question = vary(rng.choice(CALC_WORDINGS), rng, e=written)
    messages = [{"role": "user", "content": question}, call_message(name, {parameter: canonical})]
    if rng.random() < 0.5:
        result, answer = calculator_result(rng, canonical)
        messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": answer}]
    return messages


def tool_dialogue(
    rng: Random, system: str | None, filler: Callable[[Random], Turn], unknown: Callable[[Random], Turn]
) -> Dialogue:
    """A chat with one to three tools, of which none, one or two are of use.

    ``unknown`` makes questions outside of the taught skills, ``filler`` makes the others; neither may be arithmetic.
    """
    weather, place, unit = weather_tool(rng)
    calculator, parameter = calculator_tool(rng)
    present = rng.choice(("weather", "weather", "calculator", "calculator", "both", "none"))
    tools = [weather] * (present in ("weather", "both")) + [calculator] * (present in ("calculator", "both"))
    others = {tool_name(tool): tool for tool in (other_tool(rng) for _ in range(rng.choice((0, 0, 1, 2))))}
    tools += list(others.values()) or ([] if tools else [other_tool(rng)])
    rng.shuffle(tools)
    always_unit = bool(unit and unit in weather["function"]["parameters"].get("required", []))
    messages = chat([], system)
    for _ in range(rng.choice((1, 1, 2))):
        kinds = {"weather": "w", "calculator": "c", "both": "wc", "none": ""}[present] * 3
        kind = rng.choice(kinds + "fu")
        if kind == "w":
            messages += weather_exchange(rng, tool_name(weather), place, unit, always_unit)
        elif kind == "c":
            messages += calculator_exchange(rng, tool_name(calculator), parameter)
        elif kind == "u" and present == "none" and rng.random() < 0.5:
            question = vary(rng.choice(WEATHER_WORDINGS), rng, city=random_city(rng))
            messages += chat([(question, unknown(rng)[1])])
        else:
            messages += chat([filler(rng) if kind == "f" else unknown(rng)])
    return Dialogue("tools", messages, tools)
