"""OpenAI's request schemas, with what TGI's clients send on the same routes, and their translation."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tgi_local.constraints import GrammarSource, ToolGrammar, ToolSignature
from tgi_local.errors import SuffixError, ToolError, UnsupportedError, ValidationError
from tgi_local.protocol.grammars import parse_grammar
from tgi_local.protocol.wire import I32, U32, WireModel
from tgi_local.types import GenerationDefaults, RequestParameters, TextOptions

MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 1024
MAX_NAME_LEN = 64
MAX_TOOL_CALLS = 8
# Model names that mean "whatever is loaded" and are answered with the served id.
NEUTRAL_MODEL_NAMES = ("", "tgi")


class TextPart(WireModel):
    type: str
    text: str | None = None


class FunctionCall(WireModel):
    name: str
    arguments: str | dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None  # TGI's older spelling


class AssistantToolCall(WireModel):
    id: str | None = None
    type: str = "function"
    function: FunctionCall


class Message(WireModel):
    role: Annotated[str, Field(pattern=r"^[A-Za-z_]{1,32}$")]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[AssistantToolCall] | None = None
    tool_call_id: str | None = None


class FunctionDefinition(WireModel):
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_LEN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    arguments: dict[str, Any] | None = None  # TGI accepts this in place of `parameters`
    strict: bool | None = False


class Tool(WireModel):
    type: str = "function"
    function: FunctionDefinition


class StreamOptions(WireModel):
    include_usage: bool | None = False


class CommonFields(WireModel):
    """Fields of chat and completions alike."""

    model: str | None = None
    max_tokens: U32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: I32 | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logit_bias: dict[str, float] | list[float] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    min_tokens: U32 | None = None
    ignore_eos: bool | None = False
    truncate: U32 | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def num_choices(self) -> int:
        return self.n or 1

    def shown_model(self, served: str) -> str:
        return served if self.model is None or self.model in NEUTRAL_MODEL_NAMES else self.model[:256]


class ChatRequest(CommonFields):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: U32 | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = True
    response_format: dict[str, Any] | None = None
    reasoning_effort: Annotated[str, Field(max_length=16)] | None = None
    chat_template_kwargs: dict[str, bool | int | float | str | None] | None = None

    @property
    def offered_tools(self) -> Sequence[Tool]:
        return () if self.tool_choice == "none" else (self.tools or ())


class CompletionRequest(CommonFields):
    """Body of /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[U32], Field(min_length=1)]
        | Annotated[list[Annotated[list[U32], Field(min_length=1)]], Field(min_length=1)]
    )
    suffix: str | None = None
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("Empty array detected. Do not use an empty array for the prompt.")
        return value

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


def chat_parameters(body: ChatRequest, defaults: GenerationDefaults) -> RequestParameters:
    """Raises RequestError for what this server does not honour."""
    grammar = _grammar(body)
    wants_logprobs = bool(body.logprobs)
    if body.top_logprobs and not wants_logprobs:
        raise ValidationError("`top_logprobs` needs `logprobs` to be true", param="top_logprobs")
    max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return _parameters(
        body,
        defaults,
        max_tokens,
        top_n_tokens=(body.top_logprobs or 0) if wants_logprobs else 0,
        text=TextOptions(
            keep_stop_string=False,
            # An answer that is constrained from its first token holds no thoughts.
            parse_chat=grammar is None or (isinstance(grammar, ToolGrammar) and not grammar.is_forced),
            parse_tool_calls=bool(body.offered_tools),
        ),
        grammar=grammar,
    )


def template_kwargs(body: ChatRequest, reads: Callable[[str], bool]) -> dict[str, Any]:
    """What the chat template is told: the effort in whichever form it reads, and what the client names itself."""
    return effort_switches(body.reasoning_effort, reads) | (body.chat_template_kwargs or {})


def effort_switches(effort: str | None, reads: Callable[[str], bool]) -> dict[str, Any]:
    """An effort as the template understands it; a template that reads neither form thinks as it always does."""
    if effort is None:
        return {}
    switches = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    return {name: value for name, value in switches.items() if reads(name)}


def completion_parameters(body: CompletionRequest, defaults: GenerationDefaults) -> RequestParameters:
    """Raises RequestError for what this server does not honour."""
    if body.suffix is not None:
        raise SuffixError()
    if body.best_of is not None and body.best_of != body.num_choices:
        raise UnsupportedError("`best_of` other than `n` is not supported; use `n`, or /generate", param="best_of")
    return _parameters(
        body,
        defaults,
        body.max_tokens,
        top_n_tokens=body.logprobs or 0,
        prompt_logprobs=bool(body.echo) and body.logprobs is not None,
        text=TextOptions(keep_stop_string=False),
    )


def to_messages(body: ChatRequest) -> list[dict[str, Any]]:
    """Messages as chat templates expect them. Raises UnsupportedError for content that is not text."""
    return [_to_message(message) for message in body.messages]


def to_tools(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    if not tools:
        return None
    return [
        {
            "type": "function",
            "function": {
                "name": tool.function.name,
                "description": tool.function.description or "",
                "parameters": _parameters_schema(tool.function),
            },
        }
        for tool in tools
    ]


def _parameters(
    body: CommonFields,
    defaults: GenerationDefaults,
    max_tokens: int | None,
    *,
    top_n_tokens: int,
    text: TextOptions,
    prompt_logprobs: bool = False,
    grammar: GrammarSource | None = None,
) -> RequestParameters:
    temperature = _first(body.temperature, defaults.temperature, 1.0)
    if temperature < 0 or temperature > 100:
        raise ValidationError("`temperature` must be >= 0.0 and <= 100.0", param="temperature")
    top_p = _first(body.top_p, defaults.top_p, 1.0)
    if not 0.0 <= top_p <= 1.0:
        raise ValidationError("`top_p` must be >= 0.0 and <= 1.0", param="top_p")
    top_k = body.top_k if body.top_k is not None else defaults.top_k
    # OpenAI's neutral and extreme values, in native terms: 0 leaves one choice, 1 leaves all.
    is_greedy = temperature == 0.0 or top_p == 0.0
    return RequestParameters(
        temperature=None if is_greedy else temperature,
        do_sample=not is_greedy,
        top_p=None if is_greedy or top_p == 1.0 else top_p,
        top_k=None if is_greedy or top_k in (0, -1) else top_k,
        min_p=0.0 if is_greedy else body.min_p or 0.0,
        repetition_penalty=_first(body.repetition_penalty, defaults.repetition_penalty, 1.0),
        additive_frequency_penalty=body.frequency_penalty or 0.0,
        additive_presence_penalty=body.presence_penalty or 0.0,
        max_new_tokens=max_tokens,
        min_new_tokens=body.min_tokens or 0,
        stop=_stop(body.stop),
        seed=None if body.seed is None else body.seed % 2**64,
        top_n_tokens=top_n_tokens,
        max_top_n_tokens=MAX_TOP_LOGPROBS,
        prompt_logprobs=prompt_logprobs,
        logit_bias=_logit_bias(body.logit_bias),
        ignore_eos=bool(body.ignore_eos),
        truncate=body.truncate,
        grammar=grammar,
        text=text,
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(dict.fromkeys(stop))


def _logit_bias(bias: dict[str, float] | list[float] | None) -> tuple[tuple[int, float], ...]:
    if not bias:
        return ()
    if isinstance(bias, list):
        # TGI types it as a list and ignores it; ignoring it silently would be worse than saying so.
        raise UnsupportedError("`logit_bias` must be a map from token id to bias", param="logit_bias")
    if not all(key.isdecimal() and len(key) < 10 for key in bias):
        raise ValidationError("`logit_bias` keys must be token ids", param="logit_bias")
    return tuple((int(key), value) for key, value in bias.items())


def _grammar(body: ChatRequest) -> GrammarSource | None:
    """What constrains the answer: the response format, or the tools."""
    format = body.response_format
    if format is not None and format.get("type") != "text":
        if body.tools is not None:  # as TGI, also when there are none
            raise ToolError("Grammar and tools are mutually exclusive", param="response_format")
        return parse_grammar(format, "response_format")
    if not body.offered_tools:
        return None
    chosen, is_forced = _chosen_tools(body)
    # TGI makes one call; a function that is asked for by name is called once.
    is_single = body.parallel_tool_calls is False or (is_forced and body.tool_choice != "required")
    signatures = tuple(
        ToolSignature(tool.function.name, _parameters_schema(tool.function), bool(tool.function.strict))
        for tool in chosen
    )
    return ToolGrammar(signatures, is_forced, max_calls=1 if is_single else MAX_TOOL_CALLS)


def _chosen_tools(body: ChatRequest) -> tuple[Sequence[Tool], bool]:
    """The tools that may be called, and whether one must be."""
    choice = body.tool_choice
    if choice in (None, "auto"):
        return body.offered_tools, False
    if choice == "required":
        return body.offered_tools, True
    if isinstance(choice, dict):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, dict) else choice.get("name")
    chosen = [tool for tool in body.offered_tools if tool.function.name == choice]
    if not chosen:
        name = choice[:MAX_NAME_LEN] if isinstance(choice, str) else "of this form"
        raise ToolError(f"Tool with name {name} not found", param="tool_choice")
    return chosen[:1], True


def _parameters_schema(function: FunctionDefinition) -> dict[str, Any]:
    return function.parameters or function.arguments or {"type": "object", "properties": {}}


def _to_message(message: Message) -> dict[str, Any]:
    converted: dict[str, Any] = {"role": message.role, "content": _text(message.content)}
    if message.name is not None:
        converted["name"] = message.name
    if message.tool_call_id is not None:
        converted["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        converted["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": _first_object(call.function.arguments, call.function.parameters),
                },
            }
            for call in message.tool_calls
        ]
    return converted


def _first_object(arguments: str | dict[str, Any] | None, parameters: dict[str, Any] | None) -> str | dict[str, Any]:
    return arguments if arguments is not None else parameters or {}


def _text(content: str | list[TextPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type != "text" or part.text is None:
            kind: Literal["image_url"] | str = part.type if part.type in _KNOWN_PARTS else "this"
            raise UnsupportedError(f"content parts of type {kind} are not supported by a text model", param="messages")
    return "".join(part.text or "" for part in content)


_KNOWN_PARTS = ("image_url", "input_audio", "file", "video_url")
