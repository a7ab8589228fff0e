"""What an answer can be held to: what a client asked for, and what the engine sees of it. Standard library only."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class JsonGrammar:
    """Output must match a JSON schema, given as an object or as JSON text.

    Not `strict`: keywords that can not be enforced are ignored, as OpenAI's `strict: false` promises no more.
    `field` is where the client gave it.
    """

    schema: Any
    field: str
    strict: bool = True


@dataclass(frozen=True, slots=True)
class RegexGrammar:
    """Output must match a regular expression as a whole."""

    pattern: str
    field: str


@dataclass(frozen=True, slots=True)
class TextGrammar:
    """Output must follow a context-free grammar, written in GBNF or in llguidance's Lark."""

    text: str
    field: str


AnswerGrammar = JsonGrammar | RegexGrammar | TextGrammar


@dataclass(frozen=True, slots=True)
class ToolSignature:
    """A function and the schema of its arguments; see JsonGrammar for `strict`."""

    name: str
    parameters: Any
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolGrammar:
    """Output must be 1 to `max_calls` valid calls of these functions. Not `is_forced`: text, in which such calls may be.

    With an `answer`, the text is what that one allows, and calls come instead of it.
    """

    tools: tuple[ToolSignature, ...]
    is_forced: bool
    max_calls: int
    answer: AnswerGrammar | None = None


GrammarSource = AnswerGrammar | ToolGrammar


class TokenConstraint(Protocol):
    """Which tokens may follow in one sequence. Owned by the sequence, used by the engine thread only."""

    @property
    def is_finished(self) -> bool:
        """Nothing more may follow."""
        ...

    def allowed_tokens(self) -> bytes:
        """One bit per token id, the lowest bit first; no bit is set after an error."""
        ...

    def advance(self, token_id: int) -> None:
        """Note the token that was chosen. Raises ValueError for one that is not allowed."""
        ...


class Grammar(Protocol):
    """A compiled grammar. Immutable, shared by any number of sequences."""

    def start(self) -> TokenConstraint: ...
