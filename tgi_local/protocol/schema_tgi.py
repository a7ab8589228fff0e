"""What the native routes answer, for the OpenAPI document: TGI's names. Tests hold the real answers to these."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, Field, RootModel

from tgi_local.protocol.tgi import GenerateRequest
from tgi_local.protocol.wire import U32, U64


class ErrorResponse(BaseModel):
    """An error of the native routes; parse errors are plain text."""

    error: str
    error_type: str


class HealthError(ErrorResponse):
    """Not ready; `state` is loading, draining, stalled or dead."""

    state: str | None = None
    detail: str | None = None


class FinishReason(StrEnum):
    length = "length"
    eos_token = "eos_token"
    stop_sequence = "stop_sequence"


class PrefillToken(BaseModel):
    id: U32
    text: str
    logprob: float | None


class Token(BaseModel):
    id: U32
    text: str
    logprob: float | None
    special: bool


class BestOfSequence(BaseModel):
    generated_text: str
    finish_reason: FinishReason
    generated_tokens: U32
    seed: U64 | None = None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] = []


class Details(BaseModel):
    finish_reason: FinishReason
    generated_tokens: U32
    seed: U64 | None = None
    prefill: list[PrefillToken]
    tokens: list[Token]
    best_of_sequences: list[BestOfSequence] | None = None
    top_tokens: list[list[Token]] = []


class GenerateResponse(BaseModel):
    generated_text: str
    details: Details | None = None


class CompatGenerateResponse(RootModel[list[GenerateResponse]]):
    """The one answer of /, in a list as a text-generation pipeline gives it."""


class StreamDetails(BaseModel):
    finish_reason: FinishReason
    generated_tokens: U32
    seed: U64 | None = None
    input_length: U32


class StreamResponse(BaseModel):
    """One server-sent event; `generated_text` comes with the last."""

    index: U32
    token: Token
    top_tokens: list[Token] = []
    generated_text: str | None = None
    details: StreamDetails | None = None


class SimpleToken(BaseModel):
    """`start` and `stop` count UTF-8 bytes."""

    id: U32
    text: str
    start: U64
    stop: U64


class TokenizeResponse(RootModel[list[SimpleToken]]):
    pass


class ChatTokenizeResponse(BaseModel):
    tokenize_response: TokenizeResponse
    templated_text: str


class SamplingDefaults(BaseModel):
    """What the checkpoint's generation_config.json says of sampling."""

    temperature: float | None
    top_p: float | None
    top_k: int | None
    repetition_penalty: float | None


class Info(BaseModel):
    """TGI's keys, the older ones that clients still read, and what a page wants to show."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    model_dtype: str
    model_device_type: str
    max_concurrent_requests: U32
    max_best_of: U32
    max_stop_sequences: U32
    max_input_tokens: U32
    max_input_length: U32
    max_total_tokens: U32
    max_batch_total_tokens: U32
    max_batch_size: U32
    waiting_served_ratio: float
    max_waiting_tokens: U32
    validation_workers: U32
    max_client_batch_size: U32
    router: str
    version: str
    tgi_local_version: str
    sha: str | None
    docker_label: str | None
    quantize: str | None
    architecture: str
    is_demo: bool
    generation_defaults: SamplingDefaults


class JsonSchemaConfig(BaseModel):
    name: str | None = None
    json_schema: Any = Field(alias="schema")  # pydantic has a `schema` of its own


class JsonGrammar(BaseModel):
    """Output that matches a JSON schema, given as an object or as its text."""

    type: Literal["json"]
    value: Any


class JsonObjectGrammar(BaseModel):
    """With `value` the same as `json`, without it any JSON object."""

    type: Literal["json_object"]
    value: Any = None


class RegexGrammar(BaseModel):
    """Output that matches a regular expression as a whole."""

    type: Literal["regex"]
    value: str


class JsonSchemaGrammar(BaseModel):
    """TGI's form gives the schema under `value`, OpenAI's under `json_schema`."""

    type: Literal["json_schema"]
    value: JsonSchemaConfig | None = None
    json_schema: JsonSchemaConfig | None = None


class GrammarType(RootModel[JsonGrammar | RegexGrammar | JsonSchemaGrammar | JsonObjectGrammar]):
    """What constrains the output."""


class CompatGenerateRequest(GenerateRequest):
    """Body of /: /generate or /generate_stream, by `stream`."""
