"""Anthropic's request schemas and their translation: a message is a chat in other words."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from tgi_local.errors import UnsupportedError, ValidationError
from tgi_local.protocol.anthropic_blocks import Block, TextBlock, text_of
from tgi_local.protocol.openai import MAX_MESSAGES, NEUTRAL_MODEL_NAMES, ChatRequest
from tgi_local.protocol.wire import I32, U32, WireModel, parse

# Names under which templates look for the switch that makes a model think first.
THINKING_SWITCHES = ("enable_thinking", "thinking")


class InputMessage(WireModel):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class CustomTool(WireModel):
    name: str
    type: str | None = "custom"
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoiceParam(WireModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = False


class Thinking(WireModel):
    """`budget_tokens` is a wish to the model, not a bound; `max_tokens` bounds thought and answer together.

    Thoughts are shown whole unless `display` is omitted; Claude Code knows more values than the documentation.
    `between_tools` is off, but for notes of progress that no model here writes.
    """

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: U32 | None = None
    display: str | None = None


class OutputConfig(WireModel):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: dict[str, Any] | None = None


class ThinkingTurns(WireModel):
    type: Literal["thinking_turns", "all"]
    value: Annotated[int, Field(ge=1)] | None = None


class ContextEdit(WireModel):
    """`clear_thinking` keeps the thoughts of so many turns, the last."""

    type: str
    keep: Literal["all"] | ThinkingTurns | None = None

    @property
    def num_kept(self) -> int:
        if self.keep == "all" or (self.keep is not None and self.keep.type == "all"):
            return MAX_MESSAGES
        return (self.keep.value if self.keep is not None else None) or 1


class ContextManagement(WireModel):
    """What to leave out of a long conversation."""

    edits: list[ContextEdit] | None = None


class CountTokensRequest(WireModel):
    """Body of /v1/messages/count_tokens: what makes the prompt."""

    model: str | None = None
    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[TextBlock] | None = None
    tools: list[CustomTool] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None  # where `output_config.format` was before
    context_management: ContextManagement | None = None
    container: Any = None
    mcp_servers: Any = None
    compaction: Any = None
    thread: Any = None

    @property
    def wants_thinking(self) -> bool:
        return self.thinking is not None and self.thinking.type in ("enabled", "adaptive")

    @property
    def shows_thinking(self) -> bool:
        return self.wants_thinking and self.thinking is not None and self.thinking.display != "omitted"


class MessagesRequest(CountTokensRequest):
    """Body of /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1, le=2**32 - 1)]
    temperature: float | None = None
    top_p: float | None = None
    top_k: I32 | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = False

    def shown_model(self, served: str) -> str:
        return served if self.model is None or self.model in NEUTRAL_MODEL_NAMES else self.model[:256]


def to_chat(body: CountTokensRequest) -> ChatRequest:
    """The same request as a chat. Raises RequestError for what this server does not honour."""
    _check_supported(body)
    chat: dict[str, Any] = {"messages": list(_messages(body))}
    if body.tools:
        chat["tools"] = [_tool(tool) for tool in body.tools]
    if body.tool_choice is not None:
        chat["tool_choice"] = _tool_choice(body.tool_choice)
        chat["parallel_tool_calls"] = not body.tool_choice.disable_parallel_tool_use
    format = (body.output_config.format if body.output_config is not None else None) or body.output_format
    if format is not None:
        chat["response_format"] = _response_format(format)
    if isinstance(body, MessagesRequest):
        chat |= {
            "max_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stop": body.stop_sequences,
        }
    return parse(ChatRequest, chat)


def template_kwargs(body: CountTokensRequest, reads: Callable[[str], bool]) -> dict[str, Any]:
    """What the template reads of thinking and effort. As for Anthropic's models, nobody thinks unasked.

    A model that can not think answers at once: Claude Code asks for thought in every request.
    """
    kwargs: dict[str, Any] = dict.fromkeys(THINKING_SWITCHES, body.wants_thinking)
    if body.output_config is not None and body.output_config.effort is not None:
        kwargs["reasoning_effort"] = body.output_config.effort
    return {name: value for name, value in kwargs.items() if reads(name)}


def _messages(body: CountTokensRequest) -> Iterator[dict[str, Any]]:
    if body.system:
        yield {"role": "system", "content": text_of(body.system, "system")}
    tool_names: dict[str, str] = {}
    edits = (body.context_management.edits if body.context_management is not None else None) or ()
    num_forgotten = _num_turns(body.messages) - min((edit.num_kept for edit in edits), default=MAX_MESSAGES)
    turn = 0
    for message in body.messages:
        turn += _begins_turn(message)
        if isinstance(message.content, str):
            yield {"role": message.role, "content": message.content}
        elif message.role == "assistant":
            said = _assistant_message(message.content, tool_names)
            if turn <= num_forgotten:
                said.pop("reasoning_content", None)
            yield said
        else:
            yield from _user_messages(message.role, message.content, tool_names)


def _num_turns(messages: Sequence[InputMessage]) -> int:
    return sum(map(_begins_turn, messages))


def _begins_turn(message: InputMessage) -> bool:
    """Whether somebody speaks, and not a tool alone."""
    if message.role != "user":
        return False
    return isinstance(message.content, str) or any(block.type != "tool_result" for block in message.content)


def _assistant_message(blocks: Sequence[Block], tool_names: dict[str, str]) -> dict[str, Any]:
    """What the assistant thought goes to templates that read it."""
    calls = []
    texts = []
    thoughts = []
    for block in blocks:
        if block.type == "tool_use":
            function = {"name": block.name, "arguments": block.input or {}}
            calls.append({"id": block.id, "type": "function", "function": function})
            tool_names[block.id or ""] = block.name or ""
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type != "redacted_thinking":
            texts.append(block)
    message: dict[str, Any] = {"role": "assistant", "content": text_of(texts, "messages")}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    return message | {"tool_calls": calls} if calls else message


def _user_messages(role: str, blocks: Sequence[Block], tool_names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Tool results are messages of their own, before the text that came with them."""
    texts = [block for block in blocks if block.type != "tool_result"]
    for block in blocks:
        if block.type == "tool_result":
            if block.tool_use_id is None:
                raise ValidationError("tool_result blocks need a `tool_use_id`", param="messages")
            # Templates have no place for the flag.
            prefix = "Error: " if block.is_error else ""
            message = {"role": "tool", "content": prefix + text_of(block.content, "messages")}
            message["tool_call_id"] = block.tool_use_id
            if block.tool_use_id in tool_names:
                message["name"] = tool_names[block.tool_use_id]
            yield message
    if texts or not blocks:
        yield {"role": role, "content": text_of(texts, "messages")}


def _tool(tool: CustomTool) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        # Those that Anthropic runs, and those whose schemas only its models know.
        raise UnsupportedError("only tools of type custom are supported: this server runs none itself", param="tools")
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": function}


def _check_supported(body: CountTokensRequest) -> None:
    for name in ("container", "mcp_servers", "compaction"):
        if getattr(body, name):
            raise UnsupportedError(f"`{name}` is not supported", param=name)
    if body.thread:
        # The code that Anthropic's SDKs read: their tool runners begin with a thread, and go on without.
        raise UnsupportedError(
            "`thread` is not supported; send the whole conversation", param="thread", code="thread_unsupported_request"
        )
    edits = (body.context_management.edits if body.context_management is not None else None) or ()
    if not all(edit.type.startswith("clear_thinking") for edit in edits):
        raise UnsupportedError("`context_management` can clear thoughts only", param="context_management")
    if body.tool_choice is not None and body.tool_choice.type in ("any", "tool") and not body.tools:
        raise ValidationError("`tool_choice` needs `tools`", param="tool_choice")


def _tool_choice(choice: ToolChoiceParam) -> str | dict[str, Any]:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type


def _response_format(format: dict[str, Any]) -> dict[str, Any]:
    if format.get("type") != "json_schema" or not isinstance(format.get("schema"), dict):
        raise ValidationError(
            "`output_config.format` must be of type json_schema and have a `schema`", param="output_config"
        )
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": format["schema"], "strict": True}}


class ErrorDetail(WireModel):
    type: str
    message: str


class ErrorAnswer(WireModel):
    """Anthropic's error body."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str | None = None
