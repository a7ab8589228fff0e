"""The flags of `tgi-local bench`."""

import argparse
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

from tgi_local.bench.completions import PATHS
from tgi_local.bench.connection import Endpoint
from tgi_local.errors import StartupError

DEFAULT_URL = "http://127.0.0.1:8080"
REQUESTS_PER_STREAM = 4
MIN_REQUESTS = 8
TLS_PORT = 443
PLAIN_PORT = 80

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Level:
    """One row of the table: a number of clients, or a number of arrivals per second."""

    concurrency: int | None = None
    rate: float | None = None


@dataclass(frozen=True)
class BenchOptions:
    """What to send, where to, and how much of it."""

    server: Endpoint
    endpoint: str
    model: str | None
    api_key: str | None
    levels: tuple[Level, ...]
    num_requests: int | None
    seconds: float | None
    prompt_tokens: int
    shared_prefix_tokens: int
    output_tokens: int
    vocab_size: int | None
    ignore_eos: bool
    num_warmups: int
    timeout_s: float
    seed: int
    json_path: str | None

    @property
    def total_prompt_tokens(self) -> int:
        return self.shared_prefix_tokens + self.prompt_tokens

    def requests_of(self, level: Level) -> int | None:
        """How many requests a level sends; None where its seconds decide."""
        if self.num_requests is not None or self.seconds is not None:
            return self.num_requests
        return max(MIN_REQUESTS, REQUESTS_PER_STREAM * (level.concurrency or MIN_REQUESTS))


def parse_options(args: Sequence[str]) -> BenchOptions:
    """Raises StartupError for a wrong flag; prints help and exits 0 on --help."""
    found = build_parser().parse_args(args)
    if found.rate and found.concurrency:
        raise StartupError("--concurrency is a closed loop, --rate an open one: give one of them")
    if found.requests is not None and found.seconds is not None:
        raise StartupError("--requests and --seconds both say when a level ends: give one of them")
    if found.token_ids is not None and found.endpoint == "chat":
        raise StartupError("--token-ids needs --endpoint completions: a chat's messages are text")
    concurrencies = tuple(Level(concurrency=number) for number in found.concurrency or (1, 8, 32))
    return BenchOptions(
        server=found.url,
        endpoint=found.endpoint,
        model=found.model,
        api_key=found.api_key,
        levels=tuple(Level(rate=rate) for rate in found.rate) if found.rate else concurrencies,
        num_requests=found.requests,
        seconds=found.seconds,
        prompt_tokens=found.prompt_tokens,
        shared_prefix_tokens=found.shared_prefix_tokens,
        output_tokens=found.output_tokens,
        vocab_size=found.token_ids,
        ignore_eos=found.ignore_eos,
        num_warmups=found.warmup,
        timeout_s=found.timeout,
        # Drawn anew unless asked for: the prompts of an earlier run may still be in the server's prefix cache.
        seed=secrets.randbelow(2**32) if found.seed is None else found.seed,
        json_path=found.json,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tgi-local bench",
        description="Measure a server of OpenAI's completions or chat: throughput, time to the first token, "
        "time between tokens. Every request is streamed, greedy, and has a prompt of its own.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "url", nargs="?", type=server_url, default=DEFAULT_URL, help=f"the server; default: {DEFAULT_URL}"
    )
    parser.add_argument(
        "--endpoint", choices=list(PATHS), default="completions", help="what to call under /v1; default: completions"
    )
    parser.add_argument("--model", help="model name to ask for; default: the first of /v1/models")
    parser.add_argument("--api-key", help="sent as `Authorization: Bearer`")
    _add_load(parser)
    _add_requests(parser)
    parser.add_argument("--json", metavar="FILE", help="write the measures as JSON; - for stdout")
    return parser


def _add_load(parser: argparse.ArgumentParser) -> None:
    loop = parser.add_argument_group("load")
    loop.add_argument(
        "--concurrency",
        type=_list_of(_positive),
        metavar="N,N,...",
        help="clients at once, level by level; default: 1,8,32",
    )
    loop.add_argument(
        "--rate",
        type=_list_of(_positive_float),
        metavar="R,R,...",
        help="Poisson arrivals per second in place of clients",
    )
    loop.add_argument(
        "--requests", type=_positive, metavar="N", help="requests per level; default: 4 per client, 8 at least"
    )
    loop.add_argument("--seconds", type=_positive_float, metavar="S", help="begin requests for so long, per level")
    loop.add_argument(
        "--warmup", type=_not_negative, default=1, metavar="N", help="unmeasured requests before each level; default: 1"
    )
    loop.add_argument(
        "--timeout", type=_positive_float, default=600.0, metavar="S", help="longest wait for one answer; default: 600"
    )
    loop.add_argument("--seed", type=_not_negative, help="of prompts and arrivals; default: a new one for each run")


def _add_requests(parser: argparse.ArgumentParser) -> None:
    shape = parser.add_argument_group("requests")
    shape.add_argument(
        "--prompt-tokens", type=_positive, default=128, metavar="N", help="tokens of a prompt; default: 128"
    )
    shape.add_argument(
        "--output-tokens", type=_positive, default=64, metavar="N", help="most tokens of an answer; default: 64"
    )
    shape.add_argument(
        "--shared-prefix-tokens",
        type=_not_negative,
        default=0,
        metavar="N",
        help="tokens before these that all prompts of a level share, the warm-up's too; default: 0",
    )
    shape.add_argument(
        "--token-ids",
        type=_vocabulary,
        metavar="VOCAB",
        help="send token ids below VOCAB, the vocabulary's size, not text",
    )
    shape.add_argument("--ignore-eos", action="store_true", help="send `ignore_eos`, for servers that know it")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StartupError(f"{message}; see bench --help")


def server_url(text: str) -> Endpoint:
    """A URL with or without `/v1` at its end. Raises ArgumentTypeError."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    is_tls = parts.scheme == "https"
    try:
        port = parts.port or (TLS_PORT if is_tls else PLAIN_PORT)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} has no valid port") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is not an http or https URL such as {DEFAULT_URL}")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Endpoint(parts.hostname, port, path, is_tls)


def _positive(text: str) -> int:
    return _checked(int, text, lambda value: value >= 1, "a whole number of at least 1")


def _not_negative(text: str) -> int:
    return _checked(int, text, lambda value: value >= 0, "a whole number of at least 0")


def _vocabulary(text: str) -> int:
    return _checked(int, text, lambda value: value >= 64, "a vocabulary's size of at least 64")


def _positive_float(text: str) -> float:
    return _checked(float, text, lambda value: 0 < value < float("inf"), "a number above 0")


def _list_of(parse: Callable[[str], Number]) -> Callable[[str], list[Number]]:
    return lambda text: [parse(part) for part in text.split(",")]


def _checked(parse: Callable[[str], Number], text: str, is_right: Callable[[Number], bool], what: str) -> Number:
    problem = argparse.ArgumentTypeError(f"{text!r} is not {what}")
    try:
        value = parse(text)
    except ValueError as error:
        raise problem from error
    if not is_right(value):
        raise problem
    return value
