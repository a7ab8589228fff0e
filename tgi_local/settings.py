"""Every flag once: type, bound, default and help. The command line, the environment and the docs derive from it.

Names and environment variables are TGI's. The command line wins over the environment.
"""

import argparse
import difflib
import ipaddress
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from tgi_local.tgi_flags import NO_EFFECT, PLATFORMS, TgiFlags

PROGRAM = "tgi-local"
DEFAULT_HOSTNAME = "127.0.0.1"
DEFAULT_PORT = 8080
SPACE_PORT = 7860
_ORIGIN = re.compile(r"\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s]+")
MAX_QUOTED = 120  # characters of a wrong value or flag in an error line


class UsageError(Exception):
    """A flag or variable is wrong; one line that names it and says how to mend it."""


class Settings(TgiFlags):
    """Serve one language model from this machine: TGI's and OpenAI's HTTP APIs and a chat page on one port."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        cli_prog_name=PROGRAM,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_shortcuts={"port": "p", "graceful-termination-timeout": "g", "env": "e"},
    )

    model_id: str = Field("demo", description="a folder, a hub id (owner/name), or 'demo', the tiny built-in model")
    revision: str | None = Field(None, description="hub revision: branch, tag or commit")
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="number format of the weights; default: the checkpoint's"
    )
    quantize: Literal["int8", "int4", "bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "none"] | None = Field(
        None,
        description="quantize while loading; default: bitsandbytes-nf4 on a GPU, int8 on a CPU whose kernels know the model",
    )
    tokenizer_config_path: str | None = Field(
        None, description="a tokenizer_config.json whose chat template replaces the checkpoint's"
    )
    device: str | None = Field(None, description="cpu, cuda or cuda:N; default: the GPU if there is one")
    cuda_memory_fraction: float = Field(1.0, gt=0, le=1, description="share of the GPU's memory to use")
    cuda_graphs: Annotated[list[Annotated[int, Field(ge=0)]], NoDecode] = Field(
        [],
        description="batch sizes whose decode steps are captured as CUDA graphs, such as 1,2,4,8; 0 for none; "
        "default: up to max-batch-size",
    )
    huggingface_hub_cache: str | None = Field(None, description="where downloaded models are kept; default: the hub's")

    hostname: str = Field(
        DEFAULT_HOSTNAME, description="IP address to listen on; 0.0.0.0 for all, which needs an API key"
    )
    port: int = Field(DEFAULT_PORT, ge=0, le=65535, description="TCP port to listen on; 0 picks a free one")
    api_key: str | None = Field(
        None, min_length=1, repr=False, description="key that clients and the page must present"
    )
    cors_allow_origin: Annotated[list[str], NoDecode] = Field(
        [], description="web origin that may call the API; repeat for several"
    )
    payload_limit: int = Field(2_000_000, ge=1, description="largest request body in bytes")
    desktop: bool = Field(False, description="open the page in a window of its own, or else in the default browser")
    disable_ui: bool = Field(False, description="serve the API only, without the chat page")

    max_concurrent_requests: int = Field(128, ge=1, description="requests in flight before 429 is answered")
    max_best_of: int = Field(2, ge=1, description="largest best_of")
    max_stop_sequences: int = Field(4, ge=0, description="most stop strings per request")
    max_top_n_tokens: int = Field(5, ge=0, description="most alternatives per token on the native routes")
    max_client_batch_size: int = Field(4, ge=1, description="most prompts per completions call")
    max_input_tokens: int | None = Field(None, ge=1, description="longest prompt; default: max-total-tokens - 1")
    max_input_length: int | None = Field(None, ge=1, description="old name of --max-input-tokens")
    max_total_tokens: int | None = Field(None, ge=2, description="longest prompt plus output; default: the model's")
    max_batch_prefill_tokens: int = Field(2048, ge=16, description="most tokens computed in one step")
    max_batch_total_tokens: int | None = Field(
        None, ge=16, description="tokens the KV cache holds; default: what fits in memory"
    )
    max_batch_size: int = Field(128, ge=1, description="most sequences in one step")
    disable_grammar_support: bool = Field(False, description="refuse grammars, response formats and forced tools")
    watermark_gamma: float = Field(0.5, gt=0, lt=1, description="share of the vocabulary that a watermark favours")
    watermark_delta: float = Field(2.0, ge=0, le=100, description="what a watermark adds to the logits of that share")
    validation_workers: int = Field(2, ge=1, description="threads for tokenizing and chat templates")
    graceful_termination_timeout: int = Field(
        30, ge=0, description="seconds that running requests get to finish at shutdown"
    )
    stall_timeout: float | None = Field(
        None,
        gt=0,
        description="seconds without a finished step after which /health says stalled, and after twice of which the "
        "process ends; default: 60 on a GPU, 600 on the CPU",
    )
    compute_type: str | None = Field(None, description="value of the x-compute-type header; default: the hardware")
    json_output: bool = Field(False, description="log JSON lines")
    log_level: Literal["trace", "debug", "info", "warn", "warning", "error"] = Field("info", description="log level")

    env: bool = Field(False, description="print what this server runs on (versions, GPU) at start; no variable")
    messages_api_enabled: bool = Field(False, description="SageMaker: /invocations reads a body as chat first")
    oai_enabled: bool = Field(False, description="same as --messages-api-enabled")

    space_id: str | None = Field(None, description="set by a Hugging Face Space; serves its port to everyone")
    space_host: str | None = Field(None, description="set by a Hugging Face Space; its public host name")

    _name_for_hostname: str | None = PrivateAttr(None)

    @property
    def is_space(self) -> bool:
        return self.space_id is not None

    @property
    def platform(self) -> str | None:
        """Who runs this container and decides who reaches it; None on a machine of one's own."""
        return "a Hugging Face Space" if self.is_space else _platform(self.model_dump())

    @property
    def notes(self) -> list[str]:
        """Lines that a start must log."""
        notes = super().notes
        if self._name_for_hostname is not None:
            notes = [
                *notes,
                f"HOSTNAME {_short(self._name_for_hostname)} is no IP address: listening on {self.hostname}",
            ]
        if self.is_loopback or self.api_key is not None:
            return notes
        return [*notes, f"serving {self.hostname} without an API key: {self.platform} decides who reaches it"]

    @property
    def chat_first(self) -> bool:
        """Whether /invocations takes a body that fits several dialects for chat."""
        return self.messages_api_enabled or self.oai_enabled

    @property
    def route_aliases(self) -> dict[str, str]:
        """Paths that Vertex AI asks for, and the routes they mean."""
        aliases = {self.aip_predict_route: "/vertex", self.aip_health_route: "/health"}
        return {path: target for path, target in aliases.items() if path is not None}

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.hostname).is_loopback

    @property
    def local_host(self) -> str:
        """The name under which this machine reaches the server, in brackets where it is an IPv6 address."""
        address = ipaddress.ip_address(self.hostname)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "[::1]"
        return f"[{address}]" if address.version == 6 else str(address)

    def local_url(self, port: int) -> str:
        """How this machine reaches the server on `port`."""
        return f"http://{self.local_host}:{port}"

    @field_validator("cors_allow_origin", "cuda_graphs", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("cors_allow_origin")
    @classmethod
    def _comparable_origins(cls, origins: list[str]) -> list[str]:
        """As browsers send them; one of another form would never be found."""
        if not all(_ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("an origin is a scheme and a host, such as https://app.example, without a path; or *")
        return origins

    @field_validator("hostname")
    @classmethod
    def _only_ip(cls, value: str) -> str:
        # Shells and containers put the machine's name into HOSTNAME; it must not break the start.
        return value if _is_address(value) else DEFAULT_HOSTNAME

    @field_validator("compute_type")
    @classmethod
    def _sendable_compute_type(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.isprintable()):
            raise ValueError("use printable ASCII characters, or no header can carry it")
        return value

    @field_validator("api_key")
    @classmethod
    def _sendable_key(cls, value: str | None) -> str | None:
        if value is not None and (not value.isascii() or not value.isprintable() or " " in value):
            raise ValueError("use printable ASCII characters without spaces, or no header can carry the key")
        return value

    @model_validator(mode="before")
    @classmethod
    def _platform_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What cloud platforms say in variables of their own; TGI's names win over SageMaker's."""
        sagemaker = ("model_id", "revision", "quantize", "trust_remote_code")
        names = {name: f"hf_{name}" if name.startswith("model_") else f"hf_model_{name}" for name in sagemaker}
        values = {name: values[theirs] for name, theirs in names.items() if values.get(theirs)} | values
        port = values.get("aip_http_port") or values.get("sagemaker_bind_to_port")
        if port:
            values["port"] = port
        if values.get("space_id"):
            # A Space routes to 0.0.0.0:7860, whatever HOSTNAME its container has.
            return {"port": SPACE_PORT, **values, "hostname": "0.0.0.0"}
        hostname = values.get("hostname")
        if _platform(values) is not None and hostname != "localhost" and not _is_address(hostname):
            values["hostname"] = "0.0.0.0"
        return values

    @model_validator(mode="wrap")
    @classmethod
    def _remember_name(cls, values: Any, handler: "ModelWrapValidatorHandler[Settings]") -> "Settings":
        given = values.get("hostname") if isinstance(values, dict) else None
        settings = handler(values)
        if given and given != "localhost" and not _is_address(given):
            settings._name_for_hostname = given
        return settings

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.max_input_tokens is not None and self.max_input_length is not None:
            raise ValueError("max-input-tokens and max-input-length are the same setting; give one of them")
        if self.desktop and self.disable_ui:
            raise ValueError("desktop shows the page that disable-ui leaves out; give one of them")
        if self.max_batch_size > self.max_batch_prefill_tokens:
            raise ValueError(
                f"max-batch-size {self.max_batch_size} needs max-batch-prefill-tokens of at least as much, "
                f"not {self.max_batch_prefill_tokens}"
            )
        longest_input = self.max_input_tokens or self.max_input_length
        if longest_input and self.max_total_tokens and longest_input >= self.max_total_tokens:
            raise ValueError(
                f"max-input-tokens {longest_input} must be less than max-total-tokens {self.max_total_tokens}"
            )
        if (
            self.max_total_tokens
            and self.max_batch_total_tokens
            and self.max_total_tokens > self.max_batch_total_tokens
        ):
            raise ValueError(
                f"max-total-tokens {self.max_total_tokens} must be at most max-batch-total-tokens "
                f"{self.max_batch_total_tokens}"
            )
        is_given = "max_batch_prefill_tokens" in self.model_fields_set and self.max_batch_total_tokens is not None
        if is_given and self.max_batch_prefill_tokens > (self.max_batch_total_tokens or 0):
            raise ValueError(
                f"max-batch-prefill-tokens {self.max_batch_prefill_tokens} must be at most max-batch-total-tokens "
                f"{self.max_batch_total_tokens}"
            )
        if not self.is_loopback and self.api_key is None and self.platform is None:
            raise ValueError(
                f"hostname {self.hostname} is reachable from other machines: set --api-key, or listen on 127.0.0.1"
            )
        return self


def _platform(values: dict[str, Any]) -> str | None:
    return next((name for name, variables in PLATFORMS.items() if any(values.get(v) for v in variables)), None)


def _is_address(hostname: str | None) -> bool:
    try:
        return ipaddress.ip_address(hostname or "") is not None
    except ValueError:
        return False


class _Environment(EnvSettingsSource):
    """The environment without ENV, in which containers name their stage ("production")."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return (None, field_name, False) if field_name == "env" else super().get_field_value(field, field_name)


def load_settings(args: Sequence[str]) -> Settings:
    """Settings from command line and environment. Raises UsageError; prints help and exits 0 on --help."""
    if args and args[0] == "serve":  # how SageMaker starts any container
        args = args[1:]
    parser = _Parser(prog=PROGRAM, description=Settings.__doc__, epilog=_EPILOG, allow_abbrev=False)
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(Settings, cli_parse_args=list(args), root_parser=parser)
        return Settings(_cli_settings_source=source)
    except ValidationError as error:
        raise UsageError(_first_problem(error)) from error
    except SettingsError as error:
        raise UsageError(str(error).splitlines()[0]) from error


_EPILOG = (
    f"`{PROGRAM} print-schema` prints the OpenAPI document and ends; `{PROGRAM} bench` measures a server, this or another "
    "(bench --help). TGI's other flags are accepted and change nothing: "
    + ", ".join(f"--{name.replace('_', '-')}" for name in NO_EFFECT)
)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line and proposes the nearest flag."""

    def error(self, message: str) -> NoReturn:
        _, is_unknown, arguments = message.partition("unrecognized arguments: ")
        if not is_unknown:
            raise UsageError(f"{_short(message)}; see --help")
        # Values are left out: beside a misspelt flag stands what may be the key.
        flag = _short(arguments.split()[0].split("=")[0]) if arguments.split() else ""
        if not flag.startswith("-"):
            raise UsageError("every value needs a flag before it, such as --model-id; see --help")
        known = [option for option in self._option_string_actions if option.startswith("--")]
        close = difflib.get_close_matches(flag.replace("_", "-"), known, n=1)
        raise UsageError(f"there is no flag {flag}; {f'did you mean {close[0]}?' if close else 'see --help'}")


def _short(text: str) -> str:
    """At most a line of what the user wrote."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    name = str(problem["loc"][0]) if problem["loc"] else ""
    flag = f"--{name.replace('_', '-')} ({name.upper()})" if name else ""
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    value = problem.get("input")
    given = (
        f", not {_short(repr(value))}" if flag and isinstance(value, str | int | float) and name != "api_key" else ""
    )
    return f"{flag}: {message}{given}" if flag else message


def settings_or_exit(args: Sequence[str] | None = None) -> Settings:
    """Settings, or one line on stderr and exit status 2."""
    try:
        return load_settings(sys.argv[1:] if args is None else args)
    except UsageError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
