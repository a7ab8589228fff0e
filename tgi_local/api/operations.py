"""The table of routes as clients see them: method, path, body, answer. The OpenAPI document and the docs come from it."""

from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel

from tgi_local.protocol import anthropic, cloud, openai, responses, tgi
from tgi_local.protocol import schema_openai as v1
from tgi_local.protocol import schema_tgi as native

Example = dict[str, Any]

# Besides these, the gate answers 400, 401, 403, 408, 413, 415, 421 and 429 on every route with a body.
GENERATION: Final = (422, 424, 429, 500, 503)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `answer` is a schema, a media type, or None for an empty body.

    `event` is what a stream consists of, a str when its events are of many kinds; a route with an `event` and no
    `answer` always streams.
    """

    method: Literal["get", "post", "delete"]
    path: str
    id: str
    summary: str
    answer: type[BaseModel] | str | None = None
    body: type[BaseModel] | None = None
    event: type[BaseModel] | str | None = None
    statuses: tuple[int, ...] = ()
    example: Example | None = None
    is_public: bool = False  # answered without a key
    group: str = "Text Generation Inference"

    @property
    def error(self) -> type[BaseModel] | None:
        """The one error body of the dialects that have one; TGI has several."""
        errors: dict[str, type[BaseModel]] = {OPENAI: v1.OpenAIError, ANTHROPIC: anthropic.ErrorAnswer}
        return errors.get(self.group)


OPENAI: Final = "OpenAI"
ANTHROPIC: Final = "Anthropic"
CLOUD: Final = "Cloud platforms"
SERVER: Final = "Server"

_INPUTS: Final = {"inputs": "My name is Olivier and I", "parameters": {"max_new_tokens": 20}}
_CHAT: Final = {"messages": [{"role": "user", "content": "What is Deep Learning?"}], "max_tokens": 32}
_PROMPT: Final = {"prompt": "What is Deep Learning?", "max_tokens": 32}
_MODEL: Final = "/v2/models/{model}/versions/{version}"
_INFER: Final = {"id": "1", "inputs": [{"name": "text", "data": ["Hello"]}], "outputs": [{"name": "answer"}]}


def _compat(path: str, id: str) -> Operation:
    summary = "Generate text: a list with the answer, or a stream with `stream: true`"
    return Operation(
        "post",
        path,
        id,
        summary,
        native.CompatGenerateResponse,
        native.CompatGenerateRequest,
        native.StreamResponse,
        GENERATION,
        _INPUTS,
    )


def _health(path: str, id: str) -> Operation:
    is_public = path in ("/health", "/ping")
    summary = "200 when ready, else 503 with what is going on"
    return Operation("get", path, id, summary, statuses=(503,), is_public=is_public, group=SERVER)


def _info(path: str, id: str) -> Operation:
    return Operation("get", path, id, "What is served, and its limits", native.Info, statuses=(503,), group=SERVER)


_NATIVE: Final = (
    _compat("/", "compat_generate"),
    _compat("/v1", "compat_generate_v1"),
    _compat("/v1/", "compat_generate_v1_slash"),
    Operation(
        "post",
        "/generate",
        "generate",
        "Generate text",
        native.GenerateResponse,
        tgi.GenerateRequest,
        statuses=GENERATION,
        example=_INPUTS,
    ),
    Operation(
        "post",
        "/generate_stream",
        "generate_stream",
        "Generate a stream of tokens as server-sent events",
        body=tgi.GenerateRequest,
        event=native.StreamResponse,
        statuses=GENERATION,
        example=_INPUTS,
    ),
    Operation(
        "post",
        "/tokenize",
        "tokenize",
        "Token ids of a text, with their offsets",
        native.TokenizeResponse,
        tgi.GenerateRequest,
        statuses=(404, 422, 429, 503),
        example={"inputs": "My name is Olivier and I"},
    ),
    Operation(
        "post",
        "/chat_tokenize",
        "get_chat_tokenize",
        "The prompt that the chat template makes, and its tokens",
        native.ChatTokenizeResponse,
        openai.ChatRequest,
        statuses=(404, 422, 429, 503),
        example=_CHAT,
    ),
)

_OPENAI: Final = (
    Operation(
        "post",
        "/v1/chat/completions",
        "chat_completions",
        "Answer a conversation",
        v1.ChatCompletion,
        openai.ChatRequest,
        v1.ChatCompletionChunk,
        GENERATION,
        _CHAT,
        group=OPENAI,
    ),
    Operation(
        "post",
        "/v1/completions",
        "completions",
        "Continue one or several prompts",
        v1.CompletionFinal,
        openai.CompletionRequest,
        v1.Chunk,
        GENERATION,
        _PROMPT,
        group=OPENAI,
    ),
    Operation(
        "get", "/v1/models", "openai_get_model_info", "The model", v1.ModelList, statuses=(404, 503), group=OPENAI
    ),
    Operation(
        "get",
        "/v1/models/{model_id}",
        "openai_retrieve_model",
        "The model, by its id",
        v1.ModelInfo,
        statuses=(404, 503),
        group=OPENAI,
    ),
)

_JSON: Final = "application/json"
_STORED: Final = "/v1/responses/{response_id}"
_SAY_HELLO: Final = {"messages": [{"role": "user", "content": "Hello"}]}

# Their answers are as their SDKs type them, and not described here again.
_CHAT_DIALECTS: Final = (
    Operation(
        "post",
        "/v1/responses",
        "create_response",
        "OpenAI's Responses: answer an input, or stream typed events",
        _JSON,
        responses.ResponsesRequest,
        _JSON,
        statuses=(404, *GENERATION),
        example={"input": "What is Deep Learning?"},
        group=OPENAI,
    ),
    Operation(
        "post",
        "/v1/responses/input_tokens",
        "count_response_input_tokens",
        "How many tokens an input has",
        _JSON,
        responses.PromptFields,
        statuses=(404, 422, 429, 503),
        example={"input": "What is Deep Learning?"},
        group=OPENAI,
    ),
    Operation("get", _STORED, "retrieve_response", "A stored response", _JSON, statuses=(404,), group=OPENAI),
    Operation(
        "get",
        f"{_STORED}/input_items",
        "list_input_items",
        "What a stored response was made from, in pages",
        _JSON,
        statuses=(400, 404),
        group=OPENAI,
    ),
    Operation(
        "post",
        f"{_STORED}/cancel",
        "cancel_response",
        "Refused: no response runs in the background",
        _JSON,
        statuses=(400, 404, 415),
        group=OPENAI,
    ),
    Operation("delete", _STORED, "delete_response", "Forget a stored response", _JSON, statuses=(404,), group=OPENAI),
    Operation(
        "post",
        "/v1/messages",
        "create_message",
        "Anthropic's Messages: answer a conversation, or stream typed events",
        _JSON,
        anthropic.MessagesRequest,
        _JSON,
        statuses=GENERATION,
        example={**_SAY_HELLO, "max_tokens": 32},
        group=ANTHROPIC,
    ),
    Operation(
        "post",
        "/v1/messages/count_tokens",
        "count_message_tokens",
        "How many tokens a conversation has",
        _JSON,
        anthropic.CountTokensRequest,
        statuses=(422, 429, 503),
        example=_SAY_HELLO,
        group=ANTHROPIC,
    ),
)

_CLOUD: Final = (
    Operation(
        "post",
        "/invocations",
        "sagemaker_compatibility",
        "SageMaker: any of the three bodies",
        v1.SagemakerResponse,
        v1.SagemakerRequest,
        v1.SagemakerStreamResponse,
        GENERATION,
        _INPUTS,
        group=CLOUD,
    ),
    Operation(
        "post",
        "/vertex",
        "vertex_compatibility",
        "Vertex AI: one text per instance",
        cloud.VertexResponse,
        cloud.VertexRequest,
        statuses=(422, 429, 500, 503),
        example={"instances": [_INPUTS, _CHAT]},
        group=CLOUD,
    ),
    Operation("get", "/v2", "kserve_server", "KServe: the server", cloud.ServerMetadata, group=CLOUD),
    Operation("get", "/v2/health/live", "kserve_live", "KServe: it runs", cloud.Liveness, group=CLOUD),
    Operation(
        "get", "/v2/health/ready", "kserve_ready", "KServe: it is ready", cloud.Liveness, statuses=(503,), group=CLOUD
    ),
    # No name has a line break in it: 404.
    Operation(
        "get",
        _MODEL,
        "kserve_model",
        "KServe: the model, under any name",
        cloud.ModelMetadata,
        statuses=(404,),
        group=CLOUD,
    ),
    Operation(
        "get",
        f"{_MODEL}/ready",
        "kserve_model_ready",
        "KServe: the model is ready",
        cloud.Liveness,
        statuses=(404, 503),
        group=CLOUD,
    ),
    Operation(
        "post",
        f"{_MODEL}/infer",
        "kserve_infer",
        "KServe: one text per input",
        cloud.InferResponse,
        cloud.InferRequest,
        statuses=(404, 422, 429, 500, 503),
        example=_INFER,
        group=CLOUD,
    ),
)

_SERVER: Final = (
    Operation("get", "/", "root_health", "The page; without one, as /health", statuses=(503,), group=SERVER),
    _health("/health", "health"),
    _health("/ping", "ping"),
    _health("/v1/health", "health_v1"),
    _info("/info", "get_model_info"),
    _info("/v1/info", "get_model_info_v1"),
    Operation("get", "/metrics", "metrics", "Prometheus metrics", "text/plain", group=SERVER),
    Operation("get", "/api-doc/openapi.json", "openapi_document", "This document", "application/json", group=SERVER),
    Operation("get", "/docs", "docs_redirect", "Goes on to /docs/", statuses=(303,), group=SERVER),
    Operation("get", "/docs/", "docs", "These pages", "text/html", group=SERVER),
    Operation("get", "/docs/{name}", "docs_asset", "A file of these pages", "*/*", statuses=(404,), group=SERVER),
)

OPERATIONS: Final = (*_NATIVE, *_OPENAI, *_CHAT_DIALECTS, *_CLOUD, *_SERVER)
