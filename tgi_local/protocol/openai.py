"""OpenAI's request schemas, with what TGI's clients send on the same routes, and their translation."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from tgi_local.constraints import GrammarSource, ToolGrammar
from tgi_local.conversation import Conversation
from tgi_local.errors import SuffixError, ToolError, UnsupportedError, ValidationError
from tgi_local.model_info import GenerationDefaults
from tgi_local.protocol.extensions import REFUSED_IN_CHAT, REFUSED_IN_COMPLETIONS, ExtensionFields, Refused
from tgi_local.protocol.grammars import GuidedFields, parse_response_format
from tgi_local.protocol.messages import Message, to_message
from tgi_local.protocol.tgi import stop_strings
from tgi_local.protocol.tools import ToolFields, to_tools
from tgi_local.protocol.wire import I32, U32, TokenLimit, WireModel
from tgi_local.types import RequestParameters, TextOptions

MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 1024
MAX_PROMPTS = 1024
MAX_DOCUMENTS = 1024
MAX_SWITCHES = 64
MAX_BIASES = 16_384  # what may be looked at on the event loop; far fewer are honoured
# Model names that mean "whatever is loaded" and are answered with the served id.
NEUTRAL_MODEL_NAMES = ("", "tgi")


class StreamOptions(WireModel):
    include_usage: bool | None = False


class CommonFields(GuidedFields, ExtensionFields):
    """Fields of chat and completions alike."""

    model: str | None = None
    max_tokens: TokenLimit = None
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
    logit_bias: Annotated[dict[str, float], Field(max_length=MAX_BIASES)] | list[float] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    min_tokens: U32 | None = None
    ignore_eos: bool | None = False
    # TGI's native parameters, which hub clients send here too.
    truncate: U32 | None = None
    stop_sequences: list[str] | None = None
    do_sample: bool | None = None
    typical_p: float | None = None
    watermark: bool | None = False
    adapter_id: str | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def switches_sampling_off(self) -> bool:
        """TGI's `do_sample: false`, which anything that shapes the distribution overrules."""
        shapes = (self.temperature, self.top_p, self.typical_p, self.top_k)
        return self.do_sample is False and all(shape in (None, 1.0) for shape in shapes)

    def shown_model(self, served: str) -> str:
        return served if self.model is None or self.model in NEUTRAL_MODEL_NAMES else self.model[:256]


class ChatRequest(CommonFields, ToolFields):
    """Body of /v1/chat/completions."""

    refused: ClassVar[Refused] = REFUSED_IN_CHAT

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: TokenLimit = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    reasoning_effort: Annotated[str, Field(max_length=16)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=MAX_SWITCHES)] | None = None
    enable_thinking: bool | None = None
    documents: Annotated[list[dict[str, Any] | str], Field(max_length=MAX_DOCUMENTS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @property
    def own_names(self) -> dict[str, str]:
        """Native fields by the names they have here."""
        spelling = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        names = {"max_new_tokens": spelling, "min_new_tokens": "min_tokens", "inputs": "messages"}
        return names | {"top_n_tokens": "top_logprobs"}


class CompletionRequest(CommonFields):
    """Body of /v1/completions."""

    refused: ClassVar[Refused] = REFUSED_IN_COMPLETIONS

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[U32], Field(min_length=1)]
        | Annotated[list[Annotated[list[U32], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    suffix: str | None = None
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    return_full_text: bool | None = None  # TGI's name of `echo`

    @property
    def with_prompt(self) -> bool:
        return bool(self.echo or self.return_full_text)

    @property
    def num_samples(self) -> int:
        """Per prompt; the likeliest `num_choices` of them are the answer."""
        return self.best_of or self.num_choices

    @field_validator("prompt", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("Empty array detected. Do not use an empty array for the prompt.")
        return value

    @property
    def own_names(self) -> dict[str, str]:
        """Native fields by the names they have here."""
        names = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "inputs": "prompt"}
        return names | {"top_n_tokens": "logprobs"}

    @property
    def scores_only(self) -> bool:
        return self.with_prompt and self.max_tokens == 0

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
            keep_stop_string=bool(body.include_stop_str_in_output),
            parse_chat=True,
            parse_tool_calls=isinstance(grammar, ToolGrammar),
            tools=grammar.tools if isinstance(grammar, ToolGrammar) else (),
        ),
        grammar=grammar,
    )


def template_kwargs(body: ChatRequest, reads: Callable[[str], bool]) -> dict[str, Any]:
    """What the chat template is told: how much to think in whichever form it reads, and what the client names itself.

    Raises UnsupportedError for documents that the template does not look at.
    """
    given = {name: value for name, value in (body.chat_template_kwargs or {}).items() if name != "documents"}
    if body.enable_thinking is not None:
        given = thinking_switches(body.enable_thinking, reads) | given
    if documents := body.documents or (body.chat_template_kwargs or {}).get("documents"):
        given["documents"] = _documents(documents, reads)
    return effort_switches(body.reasoning_effort, reads) | given


def _documents(given: Any, reads: Callable[[str], bool]) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not all(isinstance(document, Mapping | str) for document in given):
        raise ValidationError("`documents` must be a list of objects or texts", param="documents")
    if not reads("documents"):
        detail = "`documents` are not supported by this model's chat template; put them in a message"
        raise UnsupportedError(detail, param="documents")
    return [{"text": document} if isinstance(document, str) else dict(document) for document in given]


def thinking_switches(thinks: bool, reads: Callable[[str], bool]) -> dict[str, Any]:
    """Whether to think, by the names that templates have for it."""
    switches: dict[str, Any] = {"enable_thinking": thinks, "thinking": thinks}
    if not thinks:
        switches["thinking_budget"] = 0
    return {name: value for name, value in switches.items() if reads(name)}


def effort_switches(effort: str | None, reads: Callable[[str], bool]) -> dict[str, Any]:
    """An effort as the template understands it; a template that reads neither form thinks as it always does."""
    if effort is None:
        return {}
    if reads("reasoning_effort"):
        # gpt-oss knows three; other templates that read it know the same or pass it on.
        known = {"minimal": "low", "none": "low", "xhigh": "high", "max": "high"} if reads("channel") else {}
        return {"reasoning_effort": known.get(effort, effort)} | _thinking(effort, reads)
    return _thinking(effort, reads)


def _thinking(effort: str, reads: Callable[[str], bool]) -> dict[str, Any]:
    return {name: effort != "none" for name in ("enable_thinking", "thinking") if reads(name)}


def completion_parameters(body: CompletionRequest, defaults: GenerationDefaults) -> RequestParameters:
    """Raises RequestError for what this server does not honour."""
    if body.suffix:
        raise SuffixError()
    if body.num_samples < body.num_choices:
        raise ValidationError("`best_of` must be at least `n`", param="best_of")
    if body.stream and body.num_samples > body.num_choices:
        raise ValidationError("`best_of` greater than `n` is not supported when streaming", param="best_of")
    return _parameters(
        body,
        defaults,
        1 if body.scores_only else body.max_tokens,
        top_n_tokens=body.logprobs or 0,
        prompt_logprobs=body.with_prompt and body.logprobs is not None,
        text=TextOptions(keep_stop_string=bool(body.include_stop_str_in_output), scores_only=body.scores_only),
        grammar=parse_response_format(body),
    )


def to_conversation(body: ChatRequest, template_kwargs: Mapping[str, Any]) -> Conversation:
    """Raises RequestError, UnsupportedError for content that is not text."""
    continues = _continues(body)
    return Conversation(
        to_messages(body),
        to_tools(body.offered_tools),
        template_kwargs,
        add_generation_prompt=not continues and body.add_generation_prompt is not False,
        continue_final_message=continues,
    )


def _continues(body: ChatRequest) -> bool:
    """Whether the answer goes on with the last message: as asked for, else when it is the assistant's, as in TGI."""
    last = body.messages[-1]
    can = last.role == "assistant" and not last.tool_calls and last.function_call is None
    if body.continue_final_message is None:
        return can and body.add_generation_prompt is not True
    if body.continue_final_message and body.add_generation_prompt:
        detail = "`continue_final_message` and `add_generation_prompt` can not both be true"
        raise ValidationError(detail, param="continue_final_message")
    if body.continue_final_message and not can:
        detail = "`continue_final_message` needs a last message with text of the assistant"
        raise ValidationError(detail, param="continue_final_message")
    return body.continue_final_message


def to_messages(body: ChatRequest) -> list[dict[str, Any]]:
    """Messages as chat templates expect them. Raises UnsupportedError for content that is not text."""
    messages = [to_message(message) for message in body.messages]
    if body.tool_prompt and body.offered_tools:
        messages[-1]["content"] += f"\n---\n{body.tool_prompt}"  # as TGI does
    return messages


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
    is_greedy = temperature == 0.0 or top_p == 0.0 or body.switches_sampling_off
    return RequestParameters(
        temperature=None if is_greedy else temperature,
        do_sample=not is_greedy,
        top_p=None if is_greedy or top_p == 1.0 else top_p,
        top_k=None if is_greedy or top_k in (0, -1) else top_k,
        typical_p=None if is_greedy or body.typical_p == 1.0 else body.typical_p,
        min_p=0.0 if is_greedy else body.min_p or 0.0,
        repetition_penalty=_first(body.repetition_penalty, body.repeat_penalty, defaults.repetition_penalty, 1.0),
        additive_frequency_penalty=body.frequency_penalty or 0.0,
        additive_presence_penalty=body.presence_penalty or 0.0,
        max_new_tokens=max_tokens,
        min_new_tokens=body.min_tokens or 0,
        stop=stop_strings([body.stop] if isinstance(body.stop, str) else body.stop, body.stop_sequences),
        seed=None if body.seed is None else body.seed % 2**64,
        top_n_tokens=top_n_tokens,
        max_top_n_tokens=MAX_TOP_LOGPROBS,
        prompt_logprobs=prompt_logprobs,
        logit_bias=_logit_bias(body.logit_bias),
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        truncate=body.truncate if body.truncate is not None else body.truncate_prompt_tokens,
        watermark=bool(body.watermark),
        adapter_id=body.adapter_id,
        grammar=grammar,
        text=text,
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


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
    """What constrains the answer: the response format, the tools, or both."""
    if body.tools is not None and body.response_format is not None and "value" in body.response_format:
        raise ToolError("Grammar and tools are mutually exclusive", param="response_format")  # in TGI's form, as in TGI
    answer = parse_response_format(body)
    return body.tool_grammar(answer) or answer
