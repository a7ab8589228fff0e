"""How long the event loop is away under hostile loads: a heartbeat inside the server, and one client beside it.

    python benchmarks/event_loop.py [--repeats 3] [--only WORD] [--json FILE]

Each line is one load. `late` is how much later than asked the heartbeat came: what another request had to wait for the
loop, for whatever reason (its own work, a thread that kept the interpreter, another program). `own` is the longest stretch
of CPU time that the loop's thread used between two beats, which no other program and no other thread can lengthen. Of
several repetitions the best is shown, for what disturbs only adds.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BEAT_S = 0.002
MARK = "heartbeat "
CONTEXT = 32_768
PROSE = "the quick brown fox jumps over the lazy dog and counts to ten "

Body = dict[str, Any]


# In the server.


async def beat() -> None:
    """Prints what it saw, and begins anew, at every SIGUSR1."""
    late: list[float] = []
    own: list[float] = []

    def report() -> None:
        print(MARK + json.dumps({"late": late, "own": own}), flush=True)
        late.clear()
        own.clear()

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, report)
    while True:
        begun_s, begun_cpu_s = time.perf_counter(), time.thread_time()
        await asyncio.sleep(BEAT_S)
        late.append(max(0.0, time.perf_counter() - begun_s - BEAT_S))
        own.append(time.thread_time() - begun_cpu_s)


def serve(args: list[str]) -> None:
    """The server as it is, with a heartbeat on its loop."""
    import app
    from tgi_local.api.http_server import HttpServer

    main_loop = HttpServer.main_loop

    async def with_heartbeat(self: HttpServer) -> None:
        heart = asyncio.ensure_future(beat())
        await main_loop(self)
        heart.cancel()

    HttpServer.main_loop = with_heartbeat  # type: ignore[method-assign]
    app.main(args)


# Beside it.


class Server:
    """The process with the heartbeat."""

    def __init__(self, folder: Path) -> None:
        options = ["--model-id", str(folder), "--dtype", "float32", "--disable-ui", "--port", "0", "--max-best-of", "4"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", *options, "--max-client-batch-size", "8"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.url = self._line("listening on ").split("listening on ")[1].split(",")[0]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def measure(self) -> dict[str, list[float]]:
        """What the heart has felt since the last call, seconds."""
        self._process.send_signal(signal.SIGUSR1)
        found: dict[str, list[float]] = json.loads(self._line(MARK).removeprefix(MARK))
        return found

    def _line(self, part: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if part in line:
                return line
        raise RuntimeError("the server has ended")


class Client:
    """Requests whose answers nobody looks at, but for their status."""

    def __init__(self, url: str) -> None:
        import httpx

        self._http = httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None))

    async def post(self, path: str, body: Body | bytes, *statuses: int) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        answer = await self._http.post(path, content=content, headers={"content-type": "application/json"})
        if answer.status_code not in (statuses or (200,)):
            raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:200]}")

    async def get(self, path: str) -> None:
        (await self._http.get(path)).raise_for_status()

    async def close(self) -> None:
        await self._http.aclose()


def chat(**fields: Any) -> Body:
    return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, **fields}


def big_schema(num_properties: int) -> Body:
    properties = {
        f"field_{i}": {"type": "string", "enum": [f"{i}-{j}" for j in range(20)]} for i in range(num_properties)
    }
    return {"type": "object", "properties": properties, "required": list(properties)}


def loads() -> dict[str, Callable[[Client], Awaitable[Any]]]:
    text = PROSE * (1_900_000 // len(PROSE))
    long_prompt = PROSE * 1500  # about 20 000 tokens
    details = {"max_new_tokens": 1, "details": True, "decoder_input_details": True}
    parts = [{"type": "text", "text": "x"}] * 40
    return {
        "nothing": lambda c: asyncio.sleep(1),
        "short chat": lambda c: c.post("/v1/chat/completions", chat(max_tokens=16)),
        "1.9 MB prompt, /generate": lambda c: c.post("/generate", {"inputs": text}, 422),
        "1.9 MB prompt, truncated": lambda c: c.post(
            "/generate", {"inputs": text, "parameters": {"truncate": 100, "max_new_tokens": 1}}, 200, 422
        ),
        "1.9 MB message": lambda c: c.post(
            "/v1/chat/completions", chat(messages=[{"role": "user", "content": text}]), 400, 422
        ),
        "1.9 MB, /tokenize": lambda c: c.post("/tokenize", {"inputs": text}),
        "1 MB that is not ASCII, /tokenize": lambda c: c.post("/tokenize", {"inputs": "żółw " * 120_000}),
        "1000 messages": lambda c: c.post(
            "/v1/chat/completions", chat(messages=[{"role": "user", "content": "hello"}] * 1000)
        ),
        "1000 messages of 40 parts": lambda c: c.post(
            "/v1/chat/completions", chat(messages=[{"role": "user", "content": parts}] * 1000), 200, 400
        ),
        "1000 messages, /v1/responses": lambda c: c.post(
            "/v1/responses", {"input": [{"role": "user", "content": "hello"}] * 1000, "max_output_tokens": 1}
        ),
        "1000 messages, /v1/messages": lambda c: c.post(
            "/v1/messages", chat(messages=[{"role": "user", "content": "hello"}] * 1000)
        ),
        "schema of 50 enums": lambda c: c.post(
            "/v1/chat/completions",
            chat(response_format={"type": "json_schema", "json_schema": {"schema": big_schema(50)}}),
            200,
            400,
        ),
        "schema of 2000 enums": lambda c: c.post(
            "/v1/chat/completions",
            chat(response_format={"type": "json_schema", "json_schema": {"schema": big_schema(2000)}}),
            200,
            400,
        ),
        "regular expression of 60 KB": lambda c: c.post(
            "/generate",
            {"inputs": "x", "parameters": {"grammar": {"type": "regex", "value": "(ab|cd)*" * 7500}}},
            200,
            422,
        ),
        "64 streams together": lambda c: asyncio.gather(
            *(c.post("/v1/chat/completions", chat(stream=True, max_tokens=32)) for _ in range(64))
        ),
        "8 lists of 100 000 ids": lambda c: c.post(
            "/v1/completions", {"prompt": [[5] * 100_000] * 8, "max_tokens": 1}, 400, 413
        ),
        "900 000 ids": lambda c: c.post("/v1/completions", {"prompt": [5] * 630_000, "max_tokens": 1}, 400),
        "600 000 wrong ids": lambda c: c.post("/v1/completions", b'{"prompt":[' + b"1.5," * 400_000 + b"1]}", 400),
        "300 000 lists of one id": lambda c: c.post("/v1/completions", {"prompt": [[5]] * 300_000}, 400),
        "300 000 empty lists": lambda c: c.post(
            "/generate", b'{"inputs":[' + b",".join([b"[]"] * 300_000) + b"]}", 422
        ),
        "logit_bias of 300": lambda c: c.post("/v1/chat/completions", chat(logit_bias={str(i): 1 for i in range(300)})),
        "logit_bias of 100 000": lambda c: c.post(
            "/v1/chat/completions", chat(logit_bias={str(i): 1 for i in range(100_000)}), 400
        ),
        "best_of with top_n_tokens": lambda c: c.post(
            "/generate",
            {
                "inputs": "x",
                "parameters": {
                    "best_of": 4,
                    "do_sample": True,
                    "top_n_tokens": 5,
                    "details": True,
                    "max_new_tokens": 200,
                },
            },
        ),
        "prompt log-probabilities": lambda c: c.post("/generate", {"inputs": long_prompt, "parameters": details}),
        "echo with logprobs": lambda c: c.post(
            "/v1/completions", {"prompt": long_prompt, "max_tokens": 1, "echo": True, "logprobs": 5}
        ),
        "/metrics": lambda c: c.get("/metrics"),
        "/api-doc/openapi.json": lambda c: c.get("/api-doc/openapi.json"),
    }


async def run(server: Server, repeats: int, only: str) -> list[Body]:
    client = Client(server.url)
    while True:
        try:
            await client.get("/health")
            break
        except Exception:  # it listens before it is ready
            await asyncio.sleep(0.2)
    rows = []
    for name, load in loads().items():
        if only not in name:
            continue
        seen = []
        for _ in range(repeats):
            await asyncio.sleep(0.2)
            server.measure()
            begun_s = time.perf_counter()
            await load(client)
            took_s = time.perf_counter() - begun_s
            await asyncio.sleep(0.05)
            felt = server.measure()
            late = sorted(felt["late"])
            seen.append((max(late), late[int(len(late) * 0.99)], max(felt["own"]), took_s))
        figures = [min(column) * 1000 for column in zip(*seen, strict=True)]
        rows.append(dict(zip(("late_max_ms", "late_p99_ms", "own_max_ms", "took_ms"), figures, strict=True), load=name))
        print(f"| {name} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |", flush=True)
    await client.close()
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="loads whose name holds this")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    from tests.checkpoints import make_checkpoint

    print("python " + " ".join(sys.argv))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| load | late, max ms | late, p99 ms | own, max ms | took, ms |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(make_checkpoint(Path(folder), max_position_embeddings=CONTEXT))
        try:
            rows = asyncio.run(run(server, options.repeats, options.only))
        finally:
            server.stop()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
