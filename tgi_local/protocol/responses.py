"""The request schemas of OpenAI's Responses and their translation: a response is a chat in other words."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from tgi_local.errors import UnsupportedError
from tgi_local.protocol.openai import MAX_MESSAGES, MAX_TOP_LOGPROBS, NEUTRAL_MODEL_NAMES, ChatRequest, effort_switches
from tgi_local.protocol.responses_items import InputItem, Turn
from tgi_local.protocol.responses_tools import ResponsesTool, chat_tool, chat_tool_choice, served_tools
from tgi_local.protocol.wire import WireModel, parse

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Summary = Literal["auto", "concise", "detailed"]

# Fields of a chat, and native ones, by the names they have here.
OWN_NAMES = {
    "max_new_tokens": "max_output_tokens",
    "inputs": "input",
    "messages": "input",
    "grammar": "text.format",
    "response_format": "text.format",
    "top_n_tokens": "top_logprobs",
}
# What changes the answer or where it goes, and is not served.
_REFUSED = ("background", "conversation", "context_management", "prompt", "moderation")
_LOGPROBS = "message.output_text.logprobs"


class Reasoning(WireModel):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None  # its older name

    @property
    def wants_summary(self) -> bool:
        return self.summary is not None or self.generate_summary is not None


class TextConfig(WireModel):
    """`verbosity` is a hint that no template here reads."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponseStreamOptions(WireModel):
    include_obfuscation: bool | None = False


class PromptFields(WireModel):
    """What makes the prompt: body of /v1/responses/input_tokens, and of /v1/responses with what follows."""

    model: str | None = None
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    previous_response_id: str | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    truncation: Literal["auto", "disabled"] | None = None
    conversation: Any = None

    @property
    def items(self) -> list[InputItem]:
        return [InputItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input


class ResponsesRequest(PromptFields):
    """Body of /v1/responses."""

    max_output_tokens: Annotated[int, Field(ge=1, le=2**32 - 1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None  # of tools that the provider runs: none here
    stream: bool | None = False
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = True
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    include: list[str] | None = None
    background: bool | None = None
    context_management: Any = None
    prompt: Any = None
    moderation: Any = None

    @property
    def with_logprobs(self) -> bool:
        return self.top_logprobs is not None or _LOGPROBS in (self.include or ())

    def shown_model(self, served: str) -> str:
        return served if self.model is None or self.model in NEUTRAL_MODEL_NAMES else self.model[:256]


def to_chat(body: PromptFields, turns: Sequence[Turn]) -> ChatRequest:
    """The same request as a chat over `turns`. Raises RequestError for what this server does not honour."""
    _check_supported(body)
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    chat: dict[str, Any] = {"messages": [*instructions, *turns], "parallel_tool_calls": body.parallel_tool_calls}
    tools = served_tools(body.tools or ())
    if tools:
        chat["tools"] = [chat_tool(tool) for tool in tools]
    if body.tool_choice is not None:
        chat["tool_choice"] = chat_tool_choice(body.tool_choice, tools)
    format = body.text.format if body.text is not None else None
    if format is not None and format.get("type", "text") != "text":
        chat["response_format"] = _response_format(format)
    if isinstance(body, ResponsesRequest):
        chat |= {
            "max_completion_tokens": body.max_output_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "logprobs": body.with_logprobs,
            "top_logprobs": body.top_logprobs,
        }
    return parse(ChatRequest, chat)


def template_kwargs(body: PromptFields, reads: Callable[[str], bool]) -> dict[str, Any]:
    """`reasoning.effort` as the template understands it."""
    return effort_switches(body.reasoning.effort if body.reasoning is not None else None, reads)


def _check_supported(body: PromptFields) -> None:
    for name in _REFUSED:
        if getattr(body, name, None):
            raise UnsupportedError(f"`{name}` is not supported", param=name)


def _response_format(format: dict[str, Any]) -> dict[str, Any]:
    """A chat keeps the schema one level deeper."""
    kind, schema = format.get("type"), {name: value for name, value in format.items() if name != "type"}
    return {"type": kind, "json_schema": schema} if schema else {"type": kind}
