"""`tgi-local bench`: find the server, make prompts of the right length, run the levels, say what was measured."""

import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import orjson

from tgi_local import __version__
from tgi_local.bench import report
from tgi_local.bench.completions import Dialect, Prompt, RefusedError, complete, fetch, stream_completion
from tgi_local.bench.connection import ConnectionLostError, HttpClient
from tgi_local.bench.load import Budget, Run, closed_loop, open_loop
from tgi_local.bench.measures import RequestRecord, summarize
from tgi_local.bench.options import BenchOptions, Level, parse_options
from tgi_local.bench.prompts import Prompts, calibrated_ids, calibrated_text
from tgi_local.errors import StartupError

UNAUTHORIZED = (401, 403)


def run(args: Sequence[str]) -> int:
    """The exit status: 0, or 1 when a measured request failed. Raises StartupError for what is wrong before any was measured."""
    options = parse_options(args)
    _check_writable(options.json_path)
    result = asyncio.run(_bench(options))
    if options.json_path is not None:
        _write_json(options.json_path, result)
    return 1 if any(level["errors"] for level in result["levels"]) else 0


async def _bench(options: BenchOptions) -> dict[str, Any]:
    keys = {} if options.api_key is None else {"authorization": f"Bearer {options.api_key}"}
    client = HttpClient(options.server, keys)
    try:
        dialect, prompts = await _prepare(client, options)
        return await _run_levels(client, options, dialect, prompts)
    finally:
        client.close()


async def _prepare(client: HttpClient, options: BenchOptions) -> tuple[Dialect, Prompts]:
    """Raises StartupError in the words of whoever has to mend it."""
    url = options.server.url
    try:
        dialect = Dialect(options.endpoint, options.model or await _first_model(client), options.ignore_eos)
        return dialect, await _calibrate(client, options, dialect)
    except RefusedError as error:
        if error.status in UNAUTHORIZED:
            wrong = "refuses this key" if options.api_key else "asks for a key"
            raise StartupError(f"{url} {wrong} (HTTP {error.status}): give the right one with --api-key") from error
        raise StartupError(f"{url} refuses the first request: {error}") from error
    except (TimeoutError, ConnectionLostError) as error:
        raise StartupError(f"{url} does not answer as an HTTP server: {error or 'no connection in time'}") from error
    except ConnectionRefusedError as error:
        raise StartupError(f"nothing listens on {url}: start the server first, or name another URL") from error
    except OSError as error:
        raise StartupError(f"{url} can not be reached: {error.strerror or error}") from error


async def _first_model(client: HttpClient) -> str:
    try:
        models = await fetch(client, "GET", "/v1/models")
        return str(models["data"][0]["id"])
    except (RefusedError, LookupError, TypeError) as error:
        if isinstance(error, RefusedError) and error.status in UNAUTHORIZED:
            raise
        raise StartupError(f"{client.endpoint.url}/v1/models names no model: give its name with --model") from error


async def _calibrate(client: HttpClient, options: BenchOptions, dialect: Dialect) -> Prompts:
    async def count_tokens(prompt: Prompt) -> int:
        count = (await complete(client, dialect, prompt, max_tokens=1)).get("prompt_tokens")
        if isinstance(count, int):
            return count
        if isinstance(prompt, list):
            return len(prompt)
        raise StartupError(
            "the server's answers have no usage.prompt_tokens, by which text gets its length: use --token-ids"
        )

    if options.vocab_size is not None:
        return await calibrated_ids(count_tokens, options.vocab_size, options.total_prompt_tokens)
    return await calibrated_text(count_tokens, options.total_prompt_tokens)


async def _run_levels(client: HttpClient, options: BenchOptions, dialect: Dialect, prompts: Prompts) -> dict[str, Any]:
    # JSON on stdout stays alone there.
    out = sys.stderr if options.json_path == "-" else sys.stdout
    _say(
        out, f"{options.server.url}{dialect.path}, model {dialect.model}: {_described(options)}\n\n{report.head_line()}"
    )
    rng = random.Random(options.seed)
    levels = []
    for level in options.levels:
        measured = await _run_level(client, options, dialect, prompts, level, rng)
        levels.append(measured)
        _say(out, report.level_line(measured))
    for note in report.notes(levels, options.total_prompt_tokens, options.output_tokens):
        _say(out, f"  {note}")
    return {
        "tgi_local": __version__,
        "url": options.server.url,
        "model": dialect.model,
        **_settings(options),
        "levels": levels,
    }


async def _run_level(
    client: HttpClient, options: BenchOptions, dialect: Dialect, prompts: Prompts, level: Level, rng: random.Random
) -> dict[str, Any]:
    stream = prompts.distinct(options.shared_prefix_tokens, options.total_prompt_tokens, rng)

    async def ask(due_s: float) -> RequestRecord:
        return await stream_completion(client, dialect, next(stream), options.output_tokens, due_s, options.timeout_s)

    for _ in range(options.num_warmups):
        failure = (await ask(0.0)).failure
        if failure is not None:
            raise StartupError(f"the warm-up request failed, {failure.kind}: {failure.detail}")
    budget = Budget(options.requests_of(level), options.seconds)
    run = await _load(ask, level, budget, rng)
    return {
        "concurrency": level.concurrency,
        "rate": level.rate,
        **summarize(run.records, run.wall_s),
        "client_cpu_s": round(run.client_cpu_s, 4),
        "client_cpu_share": round(run.client_cpu_s / run.wall_s, 4) if run.wall_s else 0.0,
    }


async def _load(ask: Any, level: Level, budget: Budget, rng: random.Random) -> Run:
    if level.rate is not None:
        return await open_loop(ask, level.rate, budget, rng)
    assert level.concurrency is not None
    return await closed_loop(ask, level.concurrency, budget)


def _described(options: BenchOptions) -> str:
    shared = f"{options.shared_prefix_tokens} shared + " if options.shared_prefix_tokens else ""
    return (
        f"prompts of {shared}{options.prompt_tokens} tokens, answers of {options.output_tokens}, "
        f"{options.num_warmups} warm-up, seed {options.seed}"
    )


def _settings(options: BenchOptions) -> dict[str, Any]:
    return {
        "endpoint": options.endpoint,
        "prompt_tokens": options.prompt_tokens,
        "shared_prefix_tokens": options.shared_prefix_tokens,
        "output_tokens": options.output_tokens,
        "token_ids": options.vocab_size,
        "ignore_eos": options.ignore_eos,
        "warmups": options.num_warmups,
        "seed": options.seed,
    }


def _check_writable(json_path: str | None) -> None:
    """Before anything is measured. Raises StartupError."""
    if json_path is None or json_path == "-":
        return
    try:
        Path(json_path).open("a").close()
    except OSError as error:
        raise StartupError(f"--json {json_path}: {error.strerror}") from error


def _write_json(path: str, result: dict[str, Any]) -> None:
    text = orjson.dumps(result, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8")


def _say(out: TextIO, line: str) -> None:
    print(line, file=out, flush=True)
