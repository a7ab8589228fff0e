"""Custom tools, whose input is free text: to the model they are functions of one string."""

from typing import Any

from pydantic import Field
from pydantic_core import from_json

from tgi_local.errors import UnsupportedError, ValidationError
from tgi_local.protocol.wire import WireModel

MAX_NAME_LEN = 128  # Anthropic's bound; OpenAI's is 64
_PARAMETER = "input"


class GrammarDefinition(WireModel):
    syntax: str | None = None
    definition: str | None = None


class CustomFormat(GrammarDefinition):
    """`text`, or `grammar` with a definition, which chats keep one level deeper."""

    type: str
    grammar: GrammarDefinition | None = None


class CustomDefinition(WireModel):
    name: str = Field(min_length=1, max_length=MAX_NAME_LEN)
    description: str | None = None
    format: CustomFormat | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """The schema of the function that it is. Raises UnsupportedError for a grammar that JSON can not hold."""
        value: dict[str, Any] = {"type": "string"}
        if self.format is not None and self.format.type == "grammar":
            grammar = self.format.grammar or self.format
            if grammar.syntax == "lark":
                detail = "grammars in Lark are not supported for custom tools; use the syntax regex, or the format text"
                raise UnsupportedError(detail, param="tools")
            if grammar.syntax != "regex" or grammar.definition is None:
                raise ValidationError("a custom tool's grammar needs a `syntax` and a `definition`", param="tools")
            value["pattern"] = f"^(?:{grammar.definition})$"
        elif self.format is not None and self.format.type != "text":
            raise ValidationError("a custom tool's `format` must be of type text or grammar", param="tools")
        return {
            "type": "object",
            "properties": {_PARAMETER: value},
            "required": [_PARAMETER],
            "additionalProperties": False,
        }


class InputReader:
    """Owns the input of one call of a custom tool, which comes as JSON arguments."""

    def __init__(self) -> None:
        self._arguments = ""
        self._num_read = 0

    def read(self, piece: str) -> str:
        """What this piece of the arguments adds to the input."""
        self._arguments += piece
        text = input_of(self._arguments)
        added, self._num_read = text[self._num_read :], max(self._num_read, len(text))
        return added


def input_of(arguments: str) -> str:
    """The input of a custom tool's call, as far as its arguments go."""
    try:
        found = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:  # they are empty yet, or of a model that no grammar held
        return ""
    text = found.get(_PARAMETER) if isinstance(found, dict) else None
    return text if isinstance(text, str) else ""


def arguments_of(text: str) -> dict[str, str]:
    """The arguments that a call with this input has."""
    return {_PARAMETER: text}
