"""What HTTP, JSON, text and events cost: the same requests over HTTP, and on the bare engine in its process.

Both run 32 requests at a time on the built-in model, prompts of 128 random token ids, 256 tokens out. The client
only counts bytes, so that wall-clock times hold as little as possible of it; CPU time per token, of each process alone,
does not depend on what else the machine does.
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
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cpu_share import OtherUse, tree_cpu_s
from tests.serving import ROOT, Server

REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 96, 128, 256
VOCAB = 2048  # of the built-in model; prompts come from the middle of it
POLL_S = 0.03
IDS = range(VOCAB // 8, VOCAB - VOCAB // 8)


def over_http(seed: int, concurrency: int) -> dict[str, float]:
    server = Server("--disable-ui").wait_ready()
    rng = random.Random(seed)
    prompts = [rng.choices(IDS, k=PROMPT_TOKENS) for _ in range(REQUESTS)]
    read_answers(server.url, prompts[:2], concurrency)
    others = OtherUse(server.process.pid)
    server_cpu_s, client_cpu_s, started_s = tree_cpu_s(server.process.pid), time.process_time(), time.perf_counter()
    read_answers(server.url, prompts, concurrency)
    elapsed_s = time.perf_counter() - started_s
    server_cpu_s, client_cpu_s = tree_cpu_s(server.process.pid) - server_cpu_s, time.process_time() - client_cpu_s
    share = others.share()
    server.stop()
    num_tokens = REQUESTS * OUTPUT_TOKENS
    return {
        "http_tokens_per_s": num_tokens / elapsed_s,
        "http_server_cpu_us_per_token": server_cpu_s / num_tokens * 1e6,
        "client_cpu_us_per_token": client_cpu_s / num_tokens * 1e6,
        "http_other_cpu_share": share,
    }


def read_answers(url: str, prompts: list[list[int]], concurrency: int) -> None:
    """Stream all answers, `concurrency` at a time. Looks for data every POLL_S and does not parse it: a client that is
    elsewhere costs this machine nothing."""
    address = url.removeprefix("http://").split(":")
    waiting = [http_request(prompt) for prompt in prompts]
    open_answers: dict[socket.socket, bytes] = {}
    while waiting or open_answers:
        while waiting and len(open_answers) < concurrency:
            connection = socket.create_connection((address[0], int(address[1])))
            connection.sendall(waiting.pop())
            connection.setblocking(False)
            open_answers[connection] = b""
        time.sleep(POLL_S)
        for connection in select.select(list(open_answers), [], [], 0)[0]:
            tail = open_answers[connection] = (open_answers[connection] + connection.recv(1 << 20))[-64:]
            if tail.endswith(b"0\r\n\r\n"):
                assert b"data: [DONE]" in tail, tail
                connection.close()
                del open_answers[connection]


def http_request(prompt: list[int]) -> bytes:
    fields = {"prompt": prompt, "max_tokens": OUTPUT_TOKENS, "stream": True, "ignore_eos": True, "temperature": 0}
    body = json.dumps(fields).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def bare_engine(seed: int, concurrency: int) -> dict[str, float]:
    """In a process of its own, so that nothing is warmer than it was for the server."""
    others = OtherUse(None)
    command = [sys.executable, __file__, "--in-process", str(seed), "--concurrency", str(concurrency)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # as app.py sets it
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=environment)
    return {**json.loads(done.stdout.splitlines()[-1]), "engine_other_cpu_share": others.share()}


def in_process(seed: int, concurrency: int) -> dict[str, float]:
    """A closed loop around Engine.step."""
    from tgi_local.assembly import load_model
    from tgi_local.model import hub
    from tgi_local.settings import Settings
    from tgi_local.types import GenerationRequest, SamplingParams, StopParams

    nothing = lambda *_: None  # noqa: E731
    model = load_model(Settings(), hub.find("demo"), report=nothing, on_step=nothing, on_death=nothing)
    engine = model.engine._engine  # its thread is never started
    rng = random.Random(seed)

    def submit(number: int) -> None:
        prompt = tuple(rng.choices(IDS, k=PROMPT_TOKENS))
        engine.submit(GenerationRequest(str(number), "", prompt, SamplingParams(), StopParams(OUTPUT_TOKENS)))

    def run(num_requests: int) -> int:
        """Returns the number of tokens."""
        num_begun = min(concurrency, num_requests)
        num_tokens = 0
        for number in range(num_begun):
            submit(number)
        while engine.has_work:
            events, _ = engine.step()
            num_tokens += sum(event.token is not None for event in events)
            for _ in range(min(sum(event.is_terminal for event in events), num_requests - num_begun)):
                submit(num_begun)
                num_begun += 1
        return num_tokens

    run(2)
    started_s, cpu_s = time.perf_counter(), time.process_time()
    num_tokens = run(REQUESTS)
    elapsed_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    return {"engine_tokens_per_s": num_tokens / elapsed_s, "engine_cpu_us_per_token": cpu_s / num_tokens * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--in-process", type=int, metavar="SEED", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_process is not None:
        print(json.dumps(in_process(options.in_process, options.concurrency)))
        return
    rows: list[dict[str, Any]] = []
    for seed in range(options.repeat):
        row = {**over_http(seed, options.concurrency), **bare_engine(seed, options.concurrency)}
        row["http_cost_percent"] = (row["engine_tokens_per_s"] / row["http_tokens_per_s"] - 1) * 100
        row["http_cpu_cost_percent"] = (row["http_server_cpu_us_per_token"] / row["engine_cpu_us_per_token"] - 1) * 100
        rows.append(row)
    medians = {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}
    for name, value in medians.items():
        spread = [round(row[name], 3) for row in rows]
        print(f"{name:32} {value:12}   {min(spread)} .. {max(spread)}")
    print(json.dumps({"runs": len(rows), **medians}))


if __name__ == "__main__":
    main()
