"""Tools of OpenAI's Responses, in the words of a chat."""

from collections.abc import Sequence
from typing import Any

from tgi_local.errors import UnsupportedError, ValidationError
from tgi_local.protocol.custom_tools import CustomFormat
from tgi_local.protocol.wire import WireModel

SERVED = ("function", "custom")
# Tools that agents offer beside their own in every request, whoever serves it. They are left out there: an offer asks for nothing.
_OFFERED_ANYWAY = ("web_search", "web_search_preview", "local_shell", "image_generation", "tool_search", "namespace")


class ResponsesTool(WireModel):
    """A function, or a custom tool; others have names of their own fields that nobody here reads."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: CustomFormat | None = None

    @property
    def echoed(self) -> dict[str, Any]:
        """As the response shows it."""
        if self.type == "function":
            return self.model_dump(exclude={"format"})
        shown = self.model_dump(include={"type", "name", "description"})
        format = {"type": "text"} if self.format is None else self.format.model_dump(exclude_none=True)
        return shown | {"format": format}


def served_tools(tools: Sequence[ResponsesTool]) -> Sequence[ResponsesTool]:
    """Raises UnsupportedError for tools that the provider would run, unless agents offer them beside their own."""
    has_own = any(tool.type in SERVED for tool in tools)
    served = [tool for tool in tools if tool.type in SERVED]
    if any(tool.type not in SERVED and not (has_own and tool.type in _OFFERED_ANYWAY) for tool in tools):
        raise UnsupportedError(
            "only tools of type function and custom are supported: this server runs none itself", param="tools"
        )
    return served


def chat_tool(tool: ResponsesTool) -> dict[str, Any]:
    own = (
        {"name", "description", "parameters", "strict"}
        if tool.type == "function"
        else {"name", "description", "format"}
    )
    return {"type": tool.type, tool.type: tool.model_dump(include=own)}


def chat_tool_choice(choice: str | dict[str, Any], tools: Sequence[ResponsesTool]) -> str | dict[str, Any]:
    """Raises ValidationError, UnsupportedError."""
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise ValidationError("`tool_choice` must be auto, none, required or a function", param="tool_choice")
    elif choice.get("type") == "allowed_tools":
        chosen = choice.get("tools")
        if isinstance(chosen, list) and any(isinstance(t, dict) and t.get("type") not in SERVED for t in chosen):
            raise UnsupportedError(
                "`tool_choice` may allow tools of type function and custom only", param="tool_choice"
            )
        choice = choice | {"tools": [_named(tool) for tool in chosen]} if isinstance(chosen, list) else choice
    elif choice.get("type") in SERVED:
        choice = _named(choice)
    else:
        raise UnsupportedError("`tool_choice` of this type is not supported", param="tool_choice")
    if choice not in ("auto", "none") and not tools:
        raise ValidationError("`tool_choice` needs `tools`", param="tool_choice")
    return choice


def _named(choice: Any) -> Any:
    """A chat keeps the name one level deeper."""
    if not isinstance(choice, dict):
        return choice
    kind = choice.get("type", "function")
    return {"type": kind, kind: {"name": choice.get("name")}}
