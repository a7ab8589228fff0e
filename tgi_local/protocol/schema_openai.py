"""What the /v1 routes answer, and what their requests hold where a schema can not say it: for the OpenAPI document."""

from typing import Literal

from pydantic import BaseModel, RootModel

from tgi_local.protocol.messages import AssistantToolCall
from tgi_local.protocol.openai import ChatRequest, CompletionRequest
from tgi_local.protocol.schema_tgi import CompatGenerateRequest, GenerateResponse, StreamResponse
from tgi_local.protocol.wire import U32, U64

# What requests hold.


class Url(BaseModel):
    url: str


class TextChunk(BaseModel):
    type: Literal["text"]
    text: str


class ImageChunk(BaseModel):
    """Refused by name on a text model."""

    type: Literal["image_url"]
    image_url: Url


class MessageChunk(RootModel[TextChunk | ImageChunk]):
    pass


class MessageContent(RootModel[str | list[MessageChunk]]):
    pass


class MessageBody(BaseModel):
    """What a message holds beside its role; TGI's name, which generated clients have."""

    content: MessageContent | None = None
    tool_calls: list[AssistantToolCall] | None = None


class FunctionName(BaseModel):
    name: str


class NamedTool(BaseModel):
    type: Literal["function"] = "function"
    function: FunctionName


class ToolChoice(RootModel[Literal["auto", "none", "required"] | str | NamedTool]):
    """auto, none, required, or the one function to call: an object, or its bare name."""


class TextFormat(BaseModel):
    type: Literal["text"]


class Prompt(RootModel[str | list[str] | list[U32] | list[list[U32]]]):
    """Text or token ids, one prompt or several."""


# What they answer.


class OpenAIErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    http_status_code: int | None = None


class OpenAIError(BaseModel):
    """OpenAI's form, with TGI's `error_type` beside it; in a stream, an event with `http_status_code`."""

    error: OpenAIErrorDetail
    error_type: str | None = None


class PromptTokensDetails(BaseModel):
    cached_tokens: U32


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: U32


class Usage(BaseModel):
    prompt_tokens: U32
    completion_tokens: U32
    total_tokens: U32
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class ChatCompletionTopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None


class ChatCompletionLogprob(ChatCompletionTopLogprob):
    top_logprobs: list[ChatCompletionTopLogprob]


class ChatCompletionLogprobs(BaseModel):
    content: list[ChatCompletionLogprob]
    refusal: None = None


class CalledFunction(BaseModel):
    """`arguments` is JSON text."""

    name: str
    arguments: str
    description: str | None = None


class ToolCall(BaseModel):
    id: str
    type: str
    function: CalledFunction


class Reasoning(BaseModel):
    """What the model thought, under both names that clients read."""

    reasoning: str | None = None
    reasoning_content: str | None = None


class TextMessage(Reasoning):
    role: str
    content: str
    refusal: None = None
    tool_call_id: str | None = None


class ToolCallMessage(Reasoning):
    role: str
    content: str | None = None
    refusal: None = None
    tool_calls: list[ToolCall]


class FunctionCallMessage(Reasoning):
    """The answer to a request with `functions`."""

    role: str
    content: str | None = None
    function_call: CalledFunction


class OutputMessage(RootModel[ToolCallMessage | FunctionCallMessage | TextMessage]):
    pass


class ChatCompletionComplete(BaseModel):
    index: U32
    message: OutputMessage
    logprobs: ChatCompletionLogprobs | None = None
    finish_reason: str


class ChatCompletion(BaseModel):
    object: Literal["chat.completion"]
    id: str
    created: U64
    model: str
    system_fingerprint: str
    choices: list[ChatCompletionComplete]
    usage: Usage


class Function(BaseModel):
    name: str | None = None
    arguments: str


class DeltaToolCall(BaseModel):
    """`id` and `type` come with the first delta of a call."""

    index: U32
    id: str | None = None
    type: str | None = None
    function: Function


class ToolCallDelta(Reasoning):
    role: str | None = None
    content: str | None = None
    tool_calls: list[DeltaToolCall]


class FunctionCallDelta(Reasoning):
    role: str | None = None
    content: str | None = None
    function_call: Function


class ChatCompletionDelta(RootModel[ToolCallDelta | FunctionCallDelta | TextMessage]):
    pass


class ChatCompletionChoice(BaseModel):
    index: U32
    delta: ChatCompletionDelta
    logprobs: ChatCompletionLogprobs | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(BaseModel):
    """One server-sent event; `data: [DONE]` ends the stream."""

    object: Literal["chat.completion.chunk"]
    id: str
    created: U64
    model: str
    system_fingerprint: str
    choices: list[ChatCompletionChoice]
    usage: Usage | None = None


class CompletionLogprobs(BaseModel):
    """Parallel lists; `text_offset` counts characters."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None] | None = None
    text_offset: list[int]


class CompletionComplete(BaseModel):
    index: U32
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None


class CompletionFinal(BaseModel):
    object: Literal["text_completion"]
    id: str
    created: U64
    model: str
    system_fingerprint: str
    choices: list[CompletionComplete]
    usage: Usage


class Chunk(BaseModel):
    """One server-sent event of a completion; `data: [DONE]` ends the stream."""

    object: Literal["text_completion"]
    id: str
    created: U64
    model: str
    system_fingerprint: str
    choices: list[CompletionComplete]
    usage: Usage | None = None


class Completion(RootModel[Chunk | CompletionFinal]):
    pass


class ModelInfo(BaseModel):
    id: str
    object: Literal["model"]
    created: U64
    owned_by: str
    max_model_len: U32


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelInfo]


# SageMaker's one route speaks all three dialects.


class SagemakerRequest(RootModel[CompatGenerateRequest | ChatRequest | CompletionRequest]):
    pass


class SagemakerResponse(RootModel[list[GenerateResponse] | ChatCompletion | CompletionFinal]):
    pass


class SagemakerStreamResponse(RootModel[StreamResponse | ChatCompletionChunk | Chunk]):
    pass
