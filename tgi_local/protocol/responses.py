"""The request schemas of OpenAI's Responses and their translation: a response is a chat in other words."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from tgi_local.errors import UnsupportedError, ValidationError
from tgi_local.protocol.openai import MAX_MESSAGES, NEUTRAL_MODEL_NAMES, ChatRequest, effort_switches
from tgi_local.protocol.wire import WireModel, parse

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
# A message as the chat schema takes it.
Turn = dict[str, Any]

# Fields of a chat, and native ones, by the names they have here.
OWN_NAMES = {
    "max_new_tokens": "max_output_tokens",
    "inputs": "input",
    "messages": "input",
    "grammar": "text.format",
    "response_format": "text.format",
}
# Tools that agents offer beside their own in every request, whoever serves it. They are left out there: an offer asks for nothing.
_OFFERED_ANYWAY = ("web_search", "web_search_preview", "local_shell", "image_generation", "tool_search", "namespace")
# What changes the answer or where it goes, and is not served.
_REFUSED = ("background", "conversation", "context_management", "prompt", "top_logprobs")
_TEXT_PARTS = ("input_text", "output_text", "text")
_KNOWN_PARTS = ("input_image", "input_file", "input_audio")
_KNOWN_ITEMS = (
    "web_search_call",
    "file_search_call",
    "computer_call",
    "mcp_call",
    "custom_tool_call",
)


class Part(WireModel):
    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(WireModel):
    """One item of the input; which fields count depends on its type."""

    type: str | None = "message"
    id: str | None = None
    role: str | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None

    @property
    def referred_id(self) -> str | None:
        """The id of the stored item that this one stands for; the SDKs may leave its type out."""
        is_bare = self.type in (None, "message") and self.role is None and self.content is None
        return self.id if is_bare or self.type == "item_reference" else None


class FunctionTool(WireModel):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Reasoning(WireModel):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: str | None = None


class TextConfig(WireModel):
    """`verbosity` is a hint that no template here reads."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class PromptFields(WireModel):
    """What makes the prompt: body of /v1/responses/input_tokens, and of /v1/responses with what follows."""

    model: str | None = None
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    previous_response_id: str | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    conversation: Any = None


class ResponsesRequest(PromptFields):
    """Body of /v1/responses."""

    max_output_tokens: Annotated[int, Field(ge=1, le=2**32 - 1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = False
    store: bool | None = True
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    user: str | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    background: bool | None = None
    context_management: Any = None
    prompt: Any = None
    top_logprobs: int | None = None

    def shown_model(self, served: str) -> str:
        return served if self.model is None or self.model in NEUTRAL_MODEL_NAMES else self.model[:256]


def to_chat(body: PromptFields, turns: Sequence[Turn]) -> ChatRequest:
    """The same request as a chat over `turns`. Raises RequestError for what this server does not honour."""
    _check_supported(body)
    instructions = [{"role": "system", "content": body.instructions}] if body.instructions else []
    chat: dict[str, Any] = {"messages": [*instructions, *turns], "parallel_tool_calls": body.parallel_tool_calls}
    if body.tools:
        chat["tools"] = _tools(body.tools)
    if body.tool_choice is not None:
        chat["tool_choice"] = _tool_choice(body.tool_choice)
    format = body.text.format if body.text is not None else None
    if format is not None and format.get("type", "text") != "text":
        chat["response_format"] = _response_format(format)
    if isinstance(body, ResponsesRequest):
        chat |= {
            "max_completion_tokens": body.max_output_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
        }
    return parse(ChatRequest, chat)


def to_turns(given: str | Iterable[InputItem], earlier: Sequence[Turn] = ()) -> list[Turn]:
    """`earlier` and what is new as chat messages. Raises RequestError for items that a text model can not read."""
    if isinstance(given, str):
        return [*earlier, {"role": "user", "content": given}]
    turns = list(earlier)
    for item in given:
        if item.type == "function_call":
            _append_call(turns, item)
        elif item.type == "function_call_output":
            turns.append({"role": "tool", "content": _text(item.output), "tool_call_id": item.call_id})
        elif item.type in (None, "message"):
            turns.append({"role": item.role, "content": _text(item.content)})
        elif item.type != "reasoning":  # earlier thoughts are left out, as chat templates do
            kind = item.type if item.type in _KNOWN_ITEMS else "unknown"
            raise UnsupportedError(f"input items of type {kind} are not supported", param="input")
    return turns


def template_kwargs(body: PromptFields, reads: Callable[[str], bool]) -> dict[str, Any]:
    """`reasoning.effort` as the template understands it."""
    return effort_switches(body.reasoning.effort if body.reasoning is not None else None, reads)


def _append_call(turns: list[Turn], item: InputItem) -> None:
    """Calls belong to the assistant's message before them, if there is one."""
    function = {"name": item.name, "arguments": item.arguments}
    call = {"id": item.call_id, "type": "function", "function": function}
    if turns and turns[-1]["role"] == "assistant":
        # Replaced, not changed: turns of a stored response are shared.
        turns[-1] = turns[-1] | {"tool_calls": [*turns[-1].get("tool_calls", ()), call]}
    else:
        turns.append({"role": "assistant", "content": "", "tool_calls": [call]})


def _text(content: str | Sequence[Part] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        text = part.refusal if part.type == "refusal" else part.text if part.type in _TEXT_PARTS else None
        if text is None:
            kind = part.type if part.type in _KNOWN_PARTS else "unknown"
            raise UnsupportedError(f"content parts of type {kind} are not supported by a text model", param="input")
        texts.append(text)
    return "".join(texts)


def _check_supported(body: PromptFields) -> None:
    for name in _REFUSED:
        if getattr(body, name, None):
            raise UnsupportedError(f"`{name}` is not supported", param=name)
    if isinstance(body, ResponsesRequest):
        if body.truncation == "auto":
            raise UnsupportedError("`truncation` other than disabled is not supported", param="truncation")
        if "message.output_text.logprobs" in (body.include or ()):
            raise UnsupportedError("`include` of log-probabilities is not supported", param="include")


def _tools(tools: Sequence[FunctionTool]) -> list[dict[str, Any]]:
    has_functions = any(tool.type == "function" for tool in tools)
    return [_tool(tool) for tool in tools if not (has_functions and tool.type in _OFFERED_ANYWAY)]


def _tool(tool: FunctionTool) -> dict[str, Any]:
    if tool.type != "function":
        raise UnsupportedError("only tools of type function are supported: this server runs none itself", param="tools")
    return {"type": "function", "function": tool.model_dump(exclude={"type"})}


def _response_format(format: dict[str, Any]) -> dict[str, Any]:
    """A chat keeps the schema one level deeper."""
    kind, schema = format.get("type"), {name: value for name, value in format.items() if name != "type"}
    return {"type": kind, "json_schema": schema} if schema else {"type": kind}


def _tool_choice(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise ValidationError("`tool_choice` must be auto, none, required or a function", param="tool_choice")
        return choice
    if choice.get("type") == "allowed_tools":
        return choice
    if choice.get("type") != "function":
        raise UnsupportedError("`tool_choice` of this type is not supported", param="tool_choice")
    return {"type": "function", "function": {"name": choice.get("name")}}
