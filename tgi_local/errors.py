"""The error tree. Each kind has one TGI `error_type`, one native status and one OpenAI status and type.

TgiLocalError
├── RequestError                     the caller's fault
│   ├── ValidationError              a parameter out of bounds
│   │   ├── ContextLengthError       more tokens than the model's context holds
│   │   └── UnsupportedError         a known field this server does not honour yet
│   ├── TemplateError                the chat template refused the messages
│   ├── ToolError                    tools or tool_choice do not make sense
│   ├── SuffixError                  completions `suffix`
│   ├── BatchSizeError               too many prompts in one completions call
│   ├── NoInstancesError             Vertex AI: nothing to predict
│   ├── LengthMismatchError          KServe: not one output per input
│   ├── NotFoundError                no such model
│   ├── MalformedBodyError           the body is not JSON
│   └── BodyShapeError               JSON, but not the shape of this route
├── OverloadedError                  no request slot is free
├── GenerationError                  the model failed while generating
├── IncompleteGenerationError        the stream ended without a terminal event
├── FailedInstanceError              Vertex AI, KServe: an instance was refused or failed
├── NotReadyError                    loading, draining or dead
└── StartupError                     the process can not start; one line, exit status 2
"""

from typing import ClassVar


class TgiLocalError(Exception):
    """Root of the tree. `message` is what the client reads; it never contains the client's input at length."""

    error_type: ClassVar[str] = "generation"
    status: ClassVar[int] = 500
    openai_status: ClassVar[int] = 500
    openai_type: ClassVar[str] = "server_error"
    prefix: ClassVar[str] = ""

    def __init__(self, detail: str, *, param: str | None = None, code: str | None = None) -> None:
        self.detail = detail
        self.param = param
        self.code = code
        super().__init__(self.message)

    @property
    def message(self) -> str:
        return f"{self.prefix}{self.detail}"


class RequestError(TgiLocalError):
    error_type = "validation"
    status = 422
    openai_status = 400
    openai_type = "invalid_request_error"


class ValidationError(RequestError):
    prefix = "Input validation error: "


class ContextLengthError(ValidationError):
    """A prompt, or it together with `num_new_tokens`, that the model's context can not hold.

    `detail` is TGI's. Agents shorten their conversation when they read one of the two sentences here, which are
    OpenAI's and Anthropic's. `num_prompt_tokens` is None for a text too long to be tokenized.
    """

    def __init__(
        self,
        detail: str,
        *,
        param: str,
        max_input_tokens: int,
        max_total_tokens: int,
        num_prompt_tokens: int | None = None,
        num_new_tokens: int = 0,
    ) -> None:
        super().__init__(detail, param=param, code="context_length_exceeded")
        self._max_input, self._max_total = max_input_tokens, max_total_tokens
        self._num_prompt, self._num_new = num_prompt_tokens, num_new_tokens

    @property
    def in_words_of_openai(self) -> str:
        return f"{self.message}. This model's maximum context length is {self._max_total} tokens."

    @property
    def in_words_of_anthropic(self) -> str:
        if self._num_prompt is None:
            return f"prompt is too long: more than {self._max_input} tokens"
        if self._num_prompt > self._max_input:
            return f"prompt is too long: {self._num_prompt} tokens > {self._max_input} maximum"
        needed = f"{self._num_prompt} + {self._num_new} > {self._max_total}"
        return f"input length and `max_tokens` exceed context limit: {needed}, decrease input length or `max_tokens`"


class UnsupportedError(ValidationError):
    """A field of the contract that is refused by name until it is honoured."""


class TemplateError(RequestError):
    error_type = "template_error"
    prefix = "Template error: "


class ToolError(RequestError):
    error_type = "tool_error"
    prefix = "Tool error: "


class SuffixError(RequestError):
    error_type = "suffix not supported"

    def __init__(self) -> None:
        super().__init__("Suffix is not supported and can be achieved by preprocessing the prompt.", param="suffix")


class BatchSizeError(RequestError):
    error_type = "batch size exceeded"

    def __init__(self, max_client_batch_size: int) -> None:
        super().__init__(
            f"Number of prompts exceeds the maximum allowed batch size of {max_client_batch_size}", param="prompt"
        )


class NoInstancesError(RequestError):
    error_type = "Input validation error"

    def __init__(self) -> None:
        super().__init__("Input validation error", param="instances")


class LengthMismatchError(RequestError):
    error_type = "length mismatch"

    def __init__(self) -> None:
        super().__init__("Inputs and outputs length mismatch", param="outputs")


class NotFoundError(RequestError):
    error_type = "not_found"
    status = 404
    openai_status = 404


class MalformedBodyError(RequestError):
    """Native routes answer this as plain text (TGI's contract); OpenAI routes as JSON."""

    status = 400
    prefix = "Failed to parse the request body as JSON: "


class BodyShapeError(RequestError):
    """Native routes answer this as plain text (TGI's contract); OpenAI routes as JSON."""

    prefix = "Failed to deserialize the JSON body into the target type: "


class OverloadedError(TgiLocalError):
    error_type = "overloaded"
    status = 429
    openai_status = 429
    openai_type = "rate_limit_error"

    def __init__(self) -> None:
        super().__init__("Model is overloaded")


class GenerationError(TgiLocalError):
    error_type = "generation"
    status = 424
    openai_status = 500
    prefix = "Request failed during generation: Server error: "


class IncompleteGenerationError(TgiLocalError):
    error_type = "incomplete_generation"

    def __init__(self) -> None:
        super().__init__("Incomplete generation")


class FailedInstanceError(TgiLocalError):
    """TGI says no more to these platforms; the reason is in the log."""

    error_type = "Incomplete generation"

    def __init__(self) -> None:
        super().__init__("Incomplete generation")


class NotReadyError(TgiLocalError):
    """`state` is `loading`, `draining`, `stalled` or `dead`."""

    error_type = "healthcheck"
    status = 503
    openai_status = 503

    def __init__(self, state: str, detail: str) -> None:
        self.state = state
        super().__init__(detail)


class StartupError(TgiLocalError):
    """Shown as one line; the process ends with exit status 2."""
