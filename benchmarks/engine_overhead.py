"""What HTTP, JSON, text and events cost: the same requests over HTTP, and on the bare engine of the same process.

Rounds of both take turns in one server, so that a machine that is faster now and slower then is so for both; a round is
32 requests at a time on the built-in model, prompts of 128 random token ids, 256 tokens out. The client lets the system
collect the answers, so that wall-clock times hold next to nothing of it.
"""

import argparse
import json
import os
import random
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cpu_share import OtherUse, tree_cpu_s

ROOT = Path(__file__).parents[1]
REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 64, 128, 256
VOCAB = 2048  # of the built-in model; prompts come from the middle of it
IDS = range(VOCAB // 8, VOCAB - VOCAB // 8)
MAX_ANSWER_BYTES = 1 << 20


def random_prompts(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [rng.choices(IDS, k=PROMPT_TOKENS) for _ in range(REQUESTS)]


# In the server.


def serve() -> None:
    """The server as it is. For every seed read from standard input, one round on its engine, and a line with its figures."""
    import app
    from tgi_local.engine.engine_thread import EngineThread

    start = EngineThread.start

    def start_and_listen(thread: EngineThread) -> None:
        start(thread)
        threading.Thread(target=answer, args=(thread._engine,), daemon=True).start()

    def answer(engine: Any) -> None:
        """Between rounds over HTTP the engine's own thread waits for requests, and leaves the engine alone."""
        for line in sys.stdin:
            seed, concurrency = map(int, line.split())
            print("round " + json.dumps(bare_round(engine, random_prompts(seed), concurrency)), flush=True)

    EngineThread.start = start_and_listen  # type: ignore[method-assign]
    app.main(["--port", "0", "--disable-ui"])


def bare_round(engine: Any, prompts: list[list[int]], concurrency: int) -> dict[str, float]:
    """A closed loop around Engine.step."""
    from tgi_local.types import GenerationRequest, SamplingParams, StopParams

    waiting = [
        GenerationRequest(str(number), "", tuple(prompt), SamplingParams(), StopParams(OUTPUT_TOKENS))
        for number, prompt in enumerate(prompts)
    ]
    started_s, cpu_s, num_tokens = time.perf_counter(), time.process_time(), 0
    for _ in range(min(concurrency, len(waiting))):
        engine.submit(waiting.pop())
    while engine.has_work:
        events, _ = engine.step()
        num_tokens += sum(event.token is not None for event in events)
        for _ in range(min(sum(event.is_terminal for event in events), len(waiting))):
            engine.submit(waiting.pop())
    return figures("engine", num_tokens, time.perf_counter() - started_s, time.process_time() - cpu_s)


def figures(name: str, num_tokens: int, elapsed_s: float, cpu_s: float) -> dict[str, float]:
    assert num_tokens == REQUESTS * OUTPUT_TOKENS, num_tokens
    return {f"{name}_tokens_per_s": num_tokens / elapsed_s, f"{name}_cpu_us_per_token": cpu_s / num_tokens * 1e6}


# Beside it.


class Server:
    """The process that serves, and runs rounds of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},  # as app.py sets it where it begins the process
        )
        self.pid = self._process.pid
        address = self._line("listening on ").split("listening on ")[1].split(",")[0].removeprefix("http://")
        self._address = (address.split(":")[0], int(address.split(":")[1]))
        self._line("ready")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def bare(self, seed: int, concurrency: int) -> dict[str, float]:
        assert self._process.stdin is not None
        print(seed, concurrency, file=self._process.stdin, flush=True)
        found: dict[str, float] = json.loads(self._line("round ").removeprefix("round "))
        return found

    def http(self, seed: int, concurrency: int) -> dict[str, float]:
        prompts = random_prompts(seed)
        loop_s, cpu_s, client_s = self._loop_cpu_s(), tree_cpu_s(self.pid), time.process_time()
        started_s = time.perf_counter()
        num_tokens = self._read_answers([http_request(prompt) for prompt in prompts], concurrency)
        elapsed_s = time.perf_counter() - started_s
        found = figures("http", num_tokens, elapsed_s, tree_cpu_s(self.pid) - cpu_s)
        found["loop_cpu_us_per_token"] = (self._loop_cpu_s() - loop_s) / num_tokens * 1e6
        found["client_cpu_us_per_token"] = (time.process_time() - client_s) / num_tokens * 1e6
        return found

    def _loop_cpu_s(self) -> float:
        """Of the event loop's thread, which is the process's first."""
        (thread,) = (thread for thread in psutil.Process(self.pid).threads() if thread.id == self.pid)
        return float(thread.user_time + thread.system_time)

    def _read_answers(self, waiting: list[bytes], concurrency: int) -> int:
        """The number of events with text, `concurrency` streams at a time. The system collects each answer until the
        server has closed its connection, and only then wakes this client: reading costs the machine nothing, and the
        next request comes at once."""
        open_answers: set[socket.socket] = set()
        num_tokens = 0
        while waiting or open_answers:
            while waiting and len(open_answers) < concurrency:
                connection = socket.socket()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MAX_ANSWER_BYTES)  # the system doubles it
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, MAX_ANSWER_BYTES)
                connection.connect(self._address)
                connection.sendall(waiting.pop())
                open_answers.add(connection)
            for connection in select.select(list(open_answers), [], [])[0]:
                answer = connection.makefile("rb").read()
                assert answer.endswith(b"0\r\n\r\n") and b"data: [DONE]" in answer[-64:], answer[-500:]
                num_tokens += answer.count(b"data: {")
                connection.close()
                open_answers.remove(connection)
        return num_tokens

    def _line(self, part: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if part in line:
                return line
        raise RuntimeError("the server has ended")


def http_request(prompt: list[int]) -> bytes:
    fields = {"prompt": prompt, "max_tokens": OUTPUT_TOKENS, "stream": True, "ignore_eos": True, "temperature": 0}
    body = json.dumps(fields).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=10, help="pairs of rounds (default: 10)")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    server = Server()
    # The first of each warms up. Seeds differ, or a round would find its prompts cached.
    seeds = iter(range(1_000_000))
    server.http(next(seeds), options.concurrency)
    server.bare(next(seeds), options.concurrency)
    rows: list[dict[str, Any]] = []
    for _ in range(options.repeat):
        others = OtherUse(server.pid)
        row = server.http(next(seeds), options.concurrency) | server.bare(next(seeds), options.concurrency)
        row["other_cpu_share"] = others.share()
        row["http_cost_percent"] = (row["engine_tokens_per_s"] / row["http_tokens_per_s"] - 1) * 100
        row["http_cpu_cost_percent"] = (row["http_cpu_us_per_token"] / row["engine_cpu_us_per_token"] - 1) * 100
        rows.append(row)
    server.stop()
    medians = {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}
    for name, value in medians.items():
        spread = [round(row[name], 3) for row in rows]
        print(f"{name:32} {value:12}   {min(spread)} .. {max(spread)}")
    print(json.dumps({"runs": len(rows), **medians}))


if __name__ == "__main__":
    main()
