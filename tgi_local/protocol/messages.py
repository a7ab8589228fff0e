"""Messages of a chat as OpenAI's and TGI's clients send them, and as chat templates are given them."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from tgi_local.errors import UnsupportedError
from tgi_local.protocol.custom_tools import arguments_of
from tgi_local.protocol.wire import WireModel

MAX_PARTS = 1024
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
_KNOWN_PARTS = ("image_url", "input_audio", "file", "video_url")


class TextPart(WireModel):
    type: str
    text: str | None = None
    thinking: Any = None  # a text, or as Mistral's clients write it a list of text parts
    refusal: str | None = None  # of the assistant, who said it in place of an answer

    @property
    def said(self) -> str | None:
        if self.type in _THOUGHTS:
            return ""
        return {"text": self.text, "refusal": self.refusal}.get(self.type)

    @property
    def thought(self) -> str:
        if self.type not in _THOUGHTS:
            return ""
        parts = self.thinking if isinstance(self.thinking, list) else [{"text": self.thinking or self.text}]
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        return "".join(text for text in texts if isinstance(text, str))


class FunctionCall(WireModel):
    name: str
    arguments: str | dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None  # TGI's older spelling


class AssistantToolCall(WireModel):
    id: str | None = None
    type: str = "function"
    function: FunctionCall

    @model_validator(mode="before")
    @classmethod
    def _of_custom_tool(cls, call: Any) -> Any:
        """The call of a custom tool as what it is to the model."""
        custom = call.get("custom") if isinstance(call, Mapping) else None
        if not isinstance(custom, Mapping) or not isinstance(custom.get("input"), str):
            return call
        return {
            "id": call.get("id"),
            "function": {"name": custom.get("name"), "arguments": arguments_of(custom["input"])},
        }


def _once(role: Any) -> Any:
    """`assistant` for what a client makes of a stream by joining the role of every chunk."""
    return "assistant" if isinstance(role, str) and role.replace("assistant", "") == "" != role else role


# Some clients send objects under the same names, which no template reads.
Thought = Annotated[str | None, BeforeValidator(lambda value: value if isinstance(value, str) else None)]


class Message(WireModel):
    role: Annotated[str, BeforeValidator(_once), Field(pattern=r"^[A-Za-z_]{1,32}$")]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS)] | None = None
    refusal: str | None = None
    # What the assistant thought, by this server's name for it and by others'.
    reasoning: Thought = None
    reasoning_content: Thought = None
    thinking: Thought = None
    name: str | None = None
    tool_calls: list[AssistantToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None  # OpenAI's older form of one call


def to_message(message: Message) -> dict[str, Any]:
    """As chat templates expect it. Raises UnsupportedError for content that is not text."""
    converted: dict[str, Any] = {"role": message.role, "content": _text(message.content) or message.refusal or ""}
    if message.role == "assistant" and (thought := _thought(message)):
        converted["reasoning_content"] = thought
    if message.name is not None:
        converted["name"] = message.name
    if message.tool_call_id is not None:
        converted["tool_call_id"] = message.tool_call_id
    calls = [(call.id, call.function) for call in message.tool_calls or ()]
    if message.function_call is not None:
        calls.append((None, message.function_call))
    if calls:
        converted["tool_calls"] = [
            {
                "id": id,
                "type": "function",
                "function": {"name": call.name, "arguments": _first_object(call.arguments, call.parameters)},
            }
            for id, call in calls
        ]
    return converted


def _thought(message: Message) -> str:
    parts = message.content if isinstance(message.content, list) else ()
    given = message.reasoning_content or message.reasoning or message.thinking
    return given or "".join(part.thought for part in parts)


def _first_object(arguments: str | dict[str, Any] | None, parameters: dict[str, Any] | None) -> str | dict[str, Any]:
    return arguments if arguments is not None else parameters or {}


def _text(content: str | list[TextPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.said is None:
            kind = part.type if part.type in _KNOWN_PARTS else "unknown"
            raise UnsupportedError(f"content parts of type {kind} are not supported by a text model", param="messages")
    return "".join(part.said or "" for part in content)
