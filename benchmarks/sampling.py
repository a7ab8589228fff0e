"""What a step costs beside the forward pass: from logits to tokens, for many rows and large vocabularies, on the CPU.

The forward pass is a stand-in that returns the same logits every time, peaked as a language model's are.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tgi_local.engine.step import StepPlan, StepRow
from tgi_local.model.runner import TorchRunner
from tgi_local.types import SamplingParams, Watermark

VOCAB_SIZES = (49152, 151936)
BATCH_SIZES = (1, 8, 32, 64)
CONTEXT = 4096  # tokens that penalties look at


class FixedForward:
    """Returns the logits it was given, as a fresh tensor: that is what a forward pass leaves behind."""

    num_blocks = 1
    block_size = 16

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits
        self.device = logits.device

    def logits(self, plan: StepPlan, kept: Sequence[int]) -> torch.Tensor:
        return self._logits


@dataclass
class HalfAllowed:
    """A grammar that allows a random half of the tokens; what computes masks is not measured here."""

    mask: bytes
    is_finished: bool = False

    def allowed_tokens(self) -> bytes:
        return self.mask

    def advance(self, token_id: int) -> None:
        pass


@dataclass(frozen=True)
class Case:
    """What all rows ask for."""

    name: str
    sampling: SamplingParams
    has_grammar: bool = False


CASES = (
    Case("greedy", SamplingParams()),
    Case("temperature", SamplingParams(temperature=0.8)),
    Case("top_k=50 top_p=0.95", SamplingParams(temperature=0.8, top_k=50, top_p=0.95)),
    Case("top_p=0.95", SamplingParams(temperature=0.8, top_p=0.95)),
    Case("top_p=0.95, hot", SamplingParams(temperature=2.5, top_p=0.95)),
    Case("typical_p=0.9", SamplingParams(temperature=0.8, typical_p=0.9)),
    Case("penalties, 4k tokens", SamplingParams(repetition_penalty=1.1, frequency_penalty=0.5, presence_penalty=0.2)),
    Case("watermark, new words", SamplingParams(watermark=Watermark())),
    Case("watermark, same words", SamplingParams(watermark=Watermark())),
    Case("grammar mask", SamplingParams(), has_grammar=True),
)


def plans(case: Case, batch: int, vocab_size: int) -> Iterator[StepPlan]:
    """One plan after the other, of rows that grow by a token each."""
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 256, -(-vocab_size // 8), dtype=np.uint8).tobytes()
    constraint = HalfAllowed(mask) if case.has_grammar else None
    histories = [rng.integers(0, vocab_size, CONTEXT).tolist() for _ in range(batch)]
    step = 0
    while True:
        rows = []
        for i, history in enumerate(histories):
            token = 7 * i if "same" in case.name else int(rng.integers(vocab_size))
            history.append(token)
            rows.append(
                StepRow(
                    f"r{i}",
                    (token,),
                    start=1,
                    block_table=(0,),
                    is_sampling=True,
                    sampling=replace(case.sampling, seed=i),
                    step_index=CONTEXT // 2 + step,
                    history=tuple(history) if case.sampling.uses_history else (),
                    num_prompt_tokens=CONTEXT // 2,
                    constraint=constraint,
                )
            )
        yield StepPlan(tuple(rows))
        step += 1


def peaked_logits(batch: int, vocab_size: int) -> torch.Tensor:
    """Zipf's law with exponent 2 in a random order, and noise: a few tokens carry the mass, the tail is long."""
    generator = torch.Generator().manual_seed(0)
    ranks = torch.stack([torch.randperm(vocab_size, generator=generator) for _ in range(batch)])
    return -2 * (ranks + 1).float().log() + torch.randn(batch, vocab_size, generator=generator)


def measure(case: Case, batch: int, vocab_size: int, repeat: int, run: Callable[[StepPlan], object]) -> float:
    """The fastest step in microseconds."""
    best = float("inf")
    for number, plan in enumerate(plans(case, batch, vocab_size)):
        started = time.perf_counter()
        run(plan)
        if number > 2:
            best = min(best, time.perf_counter() - started)
        if number == repeat + 2:
            return best * 1e6
    raise AssertionError("plans never end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, dict[str, int]] = {}
    for vocab_size in VOCAB_SIZES:
        print(f"\nmicroseconds per step, vocabulary {vocab_size}, {options.threads} thread(s)")
        print(f"{'batch':24}" + "".join(f"{batch:10}" for batch in BATCH_SIZES), flush=True)
        for case in CASES:
            if options.only not in case.name:
                continue
            found = {}
            for batch in BATCH_SIZES:
                runner = TorchRunner(FixedForward(peaked_logits(batch, vocab_size)))
                found[str(batch)] = round(measure(case, batch, vocab_size, options.repeat, runner.run))
            results[f"{case.name} / {vocab_size}"] = found
            print(f"{case.name:24}" + "".join(f"{value:10}" for value in found.values()), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
