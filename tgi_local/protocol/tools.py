"""Tools as chats offer them: OpenAI's, its older `functions`, and what TGI's clients write; and which may be called."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from tgi_local.constraints import JsonGrammar, RegexGrammar, ToolGrammar, ToolSignature
from tgi_local.errors import BodyShapeError, ToolError, UnsupportedError, ValidationError
from tgi_local.protocol.wire import WireModel

MAX_NAME_LEN = 128  # Anthropic's bound; OpenAI's is 64
MAX_TOOL_CALLS = 8


class FunctionDefinition(WireModel):
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_LEN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    arguments: dict[str, Any] | None = None  # TGI accepts this in place of `parameters`
    strict: bool | None = False

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        return self.parameters or self.arguments or {"type": "object", "properties": {}}

    @property
    def signature(self) -> ToolSignature:
        return ToolSignature(self.name, self.schema_of_arguments, bool(self.strict))


class Tool(WireModel):
    """Every tool has a type; those of type function have a `function`, and no others are supported."""

    type: str = "function"
    function: FunctionDefinition | None = None


class ToolFields(WireModel):
    """What a chat says of tools. `functions` and `function_call` are OpenAI's older names for one call at most.

    `tool_prompt` is TGI's: what it writes after the last message.
    """

    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    functions: list[FunctionDefinition] | None = None
    function_call: str | dict[str, Any] | None = None
    tool_prompt: str | None = None

    @property
    def offered_tools(self) -> Sequence[FunctionDefinition]:
        """The functions that the model is told of. Raises RequestError for tools that are none."""
        if self._choice == "none":
            return ()
        return (*map(_function, self.tools or ()), *(self.functions or ()))

    @property
    def calls_functions(self) -> bool:
        """Whether calls are answered in the older form."""
        return bool(self.functions) and not self.tools

    @property
    def _choice(self) -> str | dict[str, Any] | None:
        return self.function_call if self.calls_functions and self.tool_choice is None else self.tool_choice

    def tool_grammar(self, answer: JsonGrammar | RegexGrammar | None) -> ToolGrammar | None:
        """What constrains an answer that may hold calls, else `answer`; None when there are no tools."""
        offered = self.offered_tools
        if not offered:
            return None
        chosen, is_forced, is_named = _chosen(self._choice, offered)
        # TGI makes one call; a function that is asked for by name is called once.
        is_single = self.parallel_tool_calls is False or is_named or self.calls_functions
        signatures = tuple(function.signature for function in chosen)
        max_calls = 1 if is_single else MAX_TOOL_CALLS
        return ToolGrammar(signatures, is_forced, max_calls, None if is_forced else answer)


def to_tools(functions: Sequence[FunctionDefinition]) -> list[dict[str, Any]] | None:
    """As chat templates expect them."""
    if not functions:
        return None
    return [
        {
            "type": "function",
            "function": {
                "name": function.name,
                "description": function.description or "",
                "parameters": function.schema_of_arguments,
            },
        }
        for function in functions
    ]


def _function(tool: Tool) -> FunctionDefinition:
    if tool.function is not None:
        return tool.function
    if tool.type == "function":
        raise BodyShapeError("tools: missing field `function` at line 1 column 1", param="tools")
    kind = "custom" if tool.type == "custom" else "unknown"
    raise UnsupportedError(f"tools of type {kind} are not supported; use type function", param="tools")


def _chosen(
    choice: str | dict[str, Any] | None, offered: Sequence[FunctionDefinition]
) -> tuple[Sequence[FunctionDefinition], bool, bool]:
    """The functions that may be called, whether one must be, and whether it was asked for by name."""
    if choice in (None, "auto"):
        return offered, False, False
    if choice in ("required", "any"):
        return offered, True, False
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        return _allowed(choice, offered)
    if isinstance(choice, Mapping) and choice.get("type") == "custom":
        raise UnsupportedError("`tool_choice` of type custom is not supported", param="tool_choice")
    return [_named(choice, offered)], True, True


def _allowed(
    choice: Mapping[str, Any], offered: Sequence[FunctionDefinition]
) -> tuple[Sequence[FunctionDefinition], bool, bool]:
    """OpenAI's list of the tools that may be called this time; the Responses write it without the inner object."""
    allowed = choice.get("allowed_tools", choice)
    mode, tools = (allowed.get("mode"), allowed.get("tools")) if isinstance(allowed, Mapping) else (None, None)
    if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
        raise ValidationError(
            "`tool_choice` of type allowed_tools needs a `mode`, auto or required, and a list of `tools`",
            param="tool_choice",
        )
    chosen = {function.name: function for function in (_named(tool, offered) for tool in tools)}
    return list(chosen.values()), mode == "required", False


def _named(choice: object, offered: Sequence[FunctionDefinition]) -> FunctionDefinition:
    if isinstance(choice, Mapping):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    for function in offered:
        if function.name == choice:
            return function
    name = choice[:MAX_NAME_LEN] if isinstance(choice, str) else "of this form"
    raise ToolError(f"Tool with name {name} not found", param="tool_choice")
