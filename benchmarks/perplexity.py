"""What a number format costs in quality: perplexity of the built-in model on text it was not trained on.

The text is made by the scripts that made the model, from another seed, and scored as a client's prompt would be, through
engine and paged cache. What counts are the tokens that the model was taught to write, the assistant's. It is so sure of
them that perplexity hardly moves; the divergence from float32 tells more.
"""

import argparse
import json
import logging
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "demo_model")]

from corpus import build  # noqa: E402
from train import Sample, encode  # noqa: E402

from tgi_local.engine.block_manager import BlockManager  # noqa: E402
from tgi_local.engine.engine import Engine  # noqa: E402
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits  # noqa: E402
from tgi_local.engine.step import StepPlan, StepRow  # noqa: E402
from tgi_local.errors import StartupError  # noqa: E402
from tgi_local.model.loader import DTYPES, LoadOptions, load  # noqa: E402
from tgi_local.model.quantization import METHODS  # noqa: E402
from tgi_local.model.runner import TorchRunner, build_runner  # noqa: E402
from tgi_local.types import GenerationRequest, SamplingParams, StopParams  # noqa: E402

DEMO = ROOT / "tgi_local" / "demo_model"
HELD_OUT_SEED = 1001  # the training's own validation; its documents come from seed 1
BLOCK_SIZE = 16
CACHE_TOKENS = 16_384
NUM_COMPARED = 40  # documents whose logits are compared


@dataclass(frozen=True)
class Way:
    """One way to compute the model. Only one of them is the measure of the others."""

    name: str
    options: LoadOptions


def ways() -> list[Way]:
    """float32 by Transformers' modules first; every number format in both executions; every --quantize method."""
    found = []
    for dtype in DTYPES:
        for native in (False, True):
            name = f"{dtype}, {'native' if native else 'modules'}"
            found.append(Way(name, LoadOptions(dtype, "none", "cpu", may_pack=native)))
    # The numbers beside quantized weights are those of a usual checkpoint.
    return [*found, *(Way(f"--quantize {method}", LoadOptions("bfloat16", method, "cpu")) for method in METHODS)]


def held_out(count: int) -> list[Sample]:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    return [sample for sample in encode(list(build(count, HELD_OUT_SEED)), tokenizer) if len(sample.ids) > 1]


def load_runner(options: LoadOptions) -> TorchRunner:
    loaded = load(DEMO, "demo", None, False, options)
    if options.may_pack and options.quantize == "none" and loaded.packed is None:
        raise StartupError("the CPU kernels do not compute this")
    return build_runner(
        loaded, block_size=BLOCK_SIZE, min_tokens=16, max_tokens=CACHE_TOKENS, requested_tokens=CACHE_TOKENS
    )


def perplexity(runner: TorchRunner, samples: Sequence[Sample]) -> float:
    """e to the mean negative log-probability of the taught tokens."""
    engine = Engine(Scheduler(SchedulerLimits(16, 1024), BlockManager(runner.num_blocks, BLOCK_SIZE)), runner)
    for i, sample in enumerate(samples):
        prompt = tuple(sample.ids.tolist())
        engine.submit(GenerationRequest(str(i), "", prompt, SamplingParams(), StopParams(1), prompt_logprobs=True))
    taught: list[float] = []
    while engine.has_work:
        for event in engine.step()[0]:
            if event.error is not None:
                raise event.error
            marks = samples[int(event.request_id)].taught
            for token, is_taught in zip(event.prompt_logprobs or (), marks, strict=True):
                if token.logprob is not None and is_taught:
                    taught.append(token.logprob)
    return math.exp(-statistics.fmean(taught))


@torch.inference_mode()
def logits_of(runner: TorchRunner, samples: Sequence[Sample]) -> list[torch.Tensor]:
    """All logits [tokens, vocabulary] of each document."""
    found = []
    for sample in samples:
        ids = tuple(sample.ids.tolist())
        blocks = tuple(range(-(-len(ids) // BLOCK_SIZE)))
        row = StepRow("", ids, 0, blocks, False, SamplingParams())
        found.append(runner._forward.logits(StepPlan((row,)), range(len(ids))).float().clone())
    return found


def differences(
    mine: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], samples: Sequence[Sample]
) -> dict[str, float]:
    """Where the next token is a taught one: divergence (Kullback-Leibler, from `theirs`, in nats), and the same best."""
    is_taught = torch.cat([torch.from_numpy(np.append(sample.taught[1:], False)) for sample in samples])
    a, b = torch.cat(list(mine)), torch.cat(list(theirs))
    largest = (a - b).abs().max().item()
    a, b = a[is_taught].double().log_softmax(-1), b[is_taught].double().log_softmax(-1)
    divergence = torch.nn.functional.kl_div(a, b, log_target=True, reduction="none").sum(-1).mean().item()
    same_best = (a.argmax(-1) == b.argmax(-1)).float().mean().item()
    return {"divergence": divergence, "same_best": same_best, "largest_logit_difference": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--only", default="", help="ways whose name contains this, beside the first")
    options = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    samples = held_out(options.documents)
    print(f"{len(samples)} documents, {sum(int(sample.taught[1:].sum()) for sample in samples)} taught tokens")
    titles = ("perplexity", "ratio", "divergence", "same best", "largest logit difference")
    print(" " * 28 + "".join(f"{title:>{max(12, len(title) + 2)}}" for title in titles))
    results: dict[str, dict[str, float]] = {}
    first: list[torch.Tensor] = []
    measure, *others = ways()
    for way in [measure, *(way for way in others if options.only in way.name)]:
        try:
            runner = load_runner(way.options)
        except StartupError as error:
            print(f"{way.name:28}{error}")
            continue
        compared = samples[:NUM_COMPARED]
        logits = logits_of(runner, compared)
        first = first or logits
        value = perplexity(runner, samples)
        ratio = value / results[measure.name]["perplexity"] if results else 1.0
        result = {"perplexity": value, "ratio": ratio, **differences(logits, first, compared)}
        results[way.name] = result
        print(
            f"{way.name:28}{value:12.5f}{ratio:12.5f}{result['divergence']:12.1e}{result['same_best']:12.2%}"
            f"{result['largest_logit_difference']:26.5f}",
            flush=True,
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
