"""The cells on OpenVINO GenAI's ContinuousBatchingPipeline, in its process: no HTTP, no tokenizing, no detokenizing.

Runs under the Python that has openvino_genai. Reads one cell as JSON per line, writes its measures as JSON per line; the
first line it writes is {"ready": true}. Prompts are random token ids.
"""

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import openvino
import openvino_genai

from benchmarks.cells import LONG_PROMPT_TOKENS, QUIET_TOKENS
from benchmarks.gaps import summary
from tgi_local.bench.measures import RequestRecord, summarize

IDS = range(6000, 43000)  # the middle of the vocabulary
CACHE_GB = 2


class Driver:
    """Steps the pipeline and stamps each request's tokens when a step has brought them."""

    def __init__(self, folder: Path) -> None:
        config = openvino_genai.SchedulerConfig()
        config.cache_size = CACHE_GB
        config.enable_prefix_caching = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), config, "CPU")
        self._running: dict[int, tuple[Any, RequestRecord]] = {}
        self._num_requests = 0

    def add(self, prompt: list[int], max_tokens: int) -> RequestRecord:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        record = RequestRecord(time.perf_counter(), prompt_tokens=len(prompt), output_tokens=0)
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        self._num_requests += 1
        handle = self._pipeline.add_request(self._num_requests, ids, config)
        self._running[self._num_requests] = (handle, record)
        return record

    def step(self) -> int:
        """One step; returns how many requests it ended."""
        self._pipeline.step()
        now, ended = time.perf_counter(), []
        for request_id, (handle, record) in self._running.items():
            if handle.can_read():
                tokens = sum(len(output.generated_ids) for output in handle.read().values())
                record.event_times_s += [now] * bool(tokens)
                record.output_tokens = (record.output_tokens or 0) + tokens
            if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                record.ended_s = now
                ended.append(request_id)
        for request_id in ended:
            del self._running[request_id]
        return len(ended)

    def stop(self) -> None:
        for handle, _ in self._running.values():
            handle.stop()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        self._running.clear()


def run_load(driver: Driver, cell: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A closed loop, as `tgi-local bench` runs it, with one warm-up request."""
    prefix = rng.choices(IDS, k=cell["shared_prefix_tokens"])

    def add() -> RequestRecord:
        return driver.add(prefix + rng.choices(IDS, k=cell["prompt_tokens"]), cell["output_tokens"])

    add()
    while not driver.step():
        pass
    started_s, cpu_s = time.perf_counter(), time.process_time()
    records = [add() for _ in range(min(cell["concurrency"], cell["requests"]))]
    num_ended = 0
    while num_ended < cell["requests"]:
        ended = driver.step()
        num_ended += ended
        records += [add() for _ in range(min(ended, cell["requests"] - len(records)))]
    wall_s = max(record.ended_s for record in records) - started_s
    return {**summarize(records, wall_s), "driver_cpu_s": time.process_time() - cpu_s}


def run_long(driver: Driver, cell: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The same as `long_prompt.py`."""
    records = [
        driver.add(rng.choices(IDS, k=cell["prompt_tokens"]), cell["output_tokens"]) for _ in range(cell["concurrency"])
    ]

    def until(num_tokens: int) -> float:
        while any(len(record.event_times_s) < num_tokens for record in records):
            driver.step()
        return time.perf_counter()

    quiet_s = until(QUIET_TOKENS)
    sent_s = until(3 * QUIET_TOKENS)
    long = driver.add(rng.choices(IDS, k=LONG_PROMPT_TOKENS), 1)
    while not long.event_times_s:
        driver.step()
    while any(record.event_times_s[-1] <= long.event_times_s[0] and not record.ended_s for record in records):
        driver.step()
    ended = sum(record.ended_s > 0 for record in records)
    driver.stop()
    found = summary([record.event_times_s for record in records], quiet_s, sent_s, long.event_times_s[0])
    return {**found, "long_prompt_tokens": LONG_PROMPT_TOKENS, "streams_ended_early": ended}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    driver_folder = parser.parse_args().folder
    # The library prints to stdout; answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    driver = Driver(driver_folder)
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        cell = json.loads(line)
        run = run_long if cell["name"] == "long" else run_load
        print(json.dumps(run(driver, cell, random.Random(cell["seed"]))), file=answers)


if __name__ == "__main__":
    main()
