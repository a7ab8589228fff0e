"""Greedy float32 output equals transformers' generate, token for token: alone, batched, staggered, chunked, preempted."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.errors import StartupError
from tgi_local.model.loader import LoadedModel, LoadOptions, load
from tgi_local.model.native.packing import MODEL_TYPES
from tgi_local.model.runner import build_runner
from tgi_local.types import GenerationRequest, SamplingParams, StopParams, TokenEvent

NUM_NEW = 24


def reference(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        outputs.append(out[0, len(prompt) :].tolist())
    return outputs


def make_engine(
    loaded: LoadedModel, *, num_tokens: int = 8192, batch_size: int = 64, batch_tokens: int = 4096
) -> Engine:
    runner = build_runner(loaded, block_size=16, min_tokens=16, max_tokens=num_tokens, requested_tokens=num_tokens)
    blocks = BlockManager(runner.num_blocks, runner.block_size)
    return Engine(Scheduler(SchedulerLimits(batch_size, batch_tokens), blocks), runner)


def make_request(i: int, prompt: list[int], **kwargs: Any) -> GenerationRequest:
    sampling = kwargs.pop("sampling", SamplingParams())
    return GenerationRequest(f"r{i}", "", tuple(prompt), sampling, StopParams(NUM_NEW), **kwargs)


def run(
    engine: Engine, requests: list[GenerationRequest], rng: random.Random | None = None
) -> dict[str, list[TokenEvent]]:
    """Run all requests; with `rng`, they join at random steps."""
    pending = list(requests)
    events: dict[str, list[TokenEvent]] = {r.request_id: [] for r in requests}
    while pending or engine.has_work:
        while pending and (rng is None or rng.random() < 0.3):
            engine.submit(pending.pop(0))
        for event in engine.step()[0]:
            assert event.error is None
            events[event.request_id].append(event)
        engine.check_invariants()
    return events


def token_ids(events: list[TokenEvent]) -> list[int]:
    return [event.token.id for event in events if event.token is not None]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, VOCAB_SIZE) for _ in range(n)] for n in [1, 2, 3, 15, 16, 17, 31, 33, 64, 100, 150, 7]]


@pytest.fixture(scope="module")
def expected(llama: Path, prompts: list[list[int]]) -> list[list[int]]:
    return reference(llama, prompts)


@pytest.fixture(scope="module", params=[True, False], ids=["native", "modules"])
def loaded(llama: Path, request: pytest.FixtureRequest) -> LoadedModel:
    loaded = load(llama, "tiny", None, False, LoadOptions(dtype="float32", device="cpu", may_pack=request.param))
    assert (loaded.packed is not None) == request.param
    return loaded


def check(
    engine: Engine, prompts: list[list[int]], expected: list[list[int]], rng: random.Random | None = None
) -> None:
    events = run(engine, [make_request(i, prompt) for i, prompt in enumerate(prompts)], rng)
    assert [token_ids(events[f"r{i}"]) for i in range(len(prompts))] == expected


def test_alone(loaded: LoadedModel, prompts: list[list[int]], expected: list[list[int]]) -> None:
    for prompt, want in zip(prompts, expected, strict=True):
        check(make_engine(loaded), [prompt], [want])


def test_in_one_batch(loaded: LoadedModel, prompts: list[list[int]], expected: list[list[int]]) -> None:
    check(make_engine(loaded), prompts, expected)


@pytest.mark.parametrize("seed", range(5))
def test_joining_at_random_steps(
    loaded: LoadedModel, prompts: list[list[int]], expected: list[list[int]], seed: int
) -> None:
    check(make_engine(loaded), prompts, expected, random.Random(seed))


@pytest.mark.parametrize("chunk", [13, 40])
def test_chunked_prefill(loaded: LoadedModel, prompts: list[list[int]], expected: list[list[int]], chunk: int) -> None:
    check(make_engine(loaded, batch_tokens=chunk, batch_size=12), prompts, expected, random.Random(0))


def test_preempted(loaded: LoadedModel, prompts: list[list[int]], expected: list[list[int]]) -> None:
    engine = make_engine(loaded, num_tokens=192)
    check(engine, prompts, expected)
    assert engine._scheduler.num_preempted > 0


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": 24}),
        ("gemma2", {"sliding_window": 24, "query_pre_attn_scalar": 16}),
        ("gemma3_text", {"sliding_window": 24, "query_pre_attn_scalar": 16}),
        ("phi3", {}),
        ("gemma", {}),
        (
            "llama",
            {"attention_bias": True, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        ),
        ("smollm3", {}),
        (
            "granite",
            {
                "embedding_multiplier": 3.0,
                "residual_multiplier": 0.5,
                "attention_multiplier": 0.2,
                "logits_scaling": 2.0,
            },
        ),
        ("olmo2", {}),
        ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
        ("gpt_neox", {}),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    ],
)
def test_architectures(tmp_path: Path, prompts: list[list[int]], model_type: str, overrides: dict[str, Any]) -> None:
    folder = make_checkpoint(tmp_path, model_type, **overrides)
    few = prompts[3:9]
    expected = reference(folder, few)
    for may_pack in [True, False] if model_type in MODEL_TYPES else [False]:
        loaded = load(folder, model_type, None, False, LoadOptions(dtype="float32", device="cpu", may_pack=may_pack))
        assert (loaded.packed is not None) == may_pack
        check(make_engine(loaded), few, expected, random.Random(3))


@pytest.mark.parametrize("model_type", ["mamba", "t5", "qwen3_next", "gpt_oss"])
def test_architectures_that_can_not_be_paged_are_refused_by_name(tmp_path: Path, model_type: str) -> None:
    from transformers import AutoConfig, AutoModel

    shape: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 128, "intermediate_size": 64}
    if model_type == "t5":
        shape = {"d_model": 32, "num_layers": 2, "vocab_size": 128, "d_ff": 32, "num_heads": 2, "d_kv": 16}
    if model_type in ("qwen3_next", "gpt_oss"):
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
        shape |= {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config = AutoConfig.for_model(model_type, **shape)
    model = AutoModel.from_config(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(StartupError, match="broken-one"):
        load(tmp_path, "broken-one", None, False, LoadOptions(dtype="float32", device="cpu"))


def test_token_and_prompt_logprobs_equal_a_plain_forward_pass(
    loaded: LoadedModel, llama: Path, prompts: list[list[int]]
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    requests = [
        make_request(i, prompt, prompt_logprobs=True, sampling=SamplingParams(top_n_tokens=3))
        for i, prompt in enumerate(prompts)
    ]
    events = run(make_engine(loaded, batch_tokens=40, batch_size=12), requests)
    for i, prompt in enumerate(prompts):
        mine = events[f"r{i}"]
        output = token_ids(mine)
        with torch.inference_mode():
            logprobs = model(torch.tensor([prompt + output])).logits[0].log_softmax(-1)
        want = [logprobs[p, t].item() for p, t in enumerate(prompt[1:] + output)]
        assert mine[0].prompt_logprobs is not None
        got = [t.logprob for t in mine[0].prompt_logprobs[1:]] + [e.token.logprob for e in mine if e.token]
        assert mine[0].prompt_logprobs[0].logprob is None
        assert got == pytest.approx(want, abs=1e-4)
        for place, scored in enumerate(mine[0].prompt_logprobs[1:]):
            values = logprobs[place, [t.id for t in scored.top]].tolist()
            assert values == pytest.approx(logprobs[place].topk(3).values.tolist(), abs=1e-4)
            assert [t.logprob for t in scored.top] == pytest.approx(values, abs=1e-4)
            # Programs ask whether a token was the likeliest by comparing the two numbers.
            assert (scored.top[0].logprob == scored.logprob) == (scored.top[0].id == scored.id)
        for event in mine:
            assert event.token is not None
            assert event.token.top[0].id == event.token.id and len(event.token.top) == 3


def num_cached(events: list[TokenEvent]) -> int:
    return events[0].num_cached_tokens


@pytest.mark.parametrize("chunk", [40, 4096])
def test_prefix_hits_change_nothing(
    loaded: LoadedModel, prompts: list[list[int]], expected: list[list[int]], chunk: int
) -> None:
    engine = make_engine(loaded, batch_tokens=chunk, batch_size=12)
    check(engine, prompts, expected)
    events = run(engine, [make_request(i, prompt) for i, prompt in enumerate(prompts)], random.Random(2))
    assert [token_ids(events[f"r{i}"]) for i in range(len(prompts))] == expected
    assert [num_cached(events[f"r{i}"]) for i in range(len(prompts))] == [(len(p) - 1) // 16 * 16 for p in prompts]


def test_prefix_hits_beside_eviction_change_nothing(
    loaded: LoadedModel, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    engine = make_engine(loaded, num_tokens=192)
    for seed in range(3):
        check(engine, prompts, expected, random.Random(seed))


def test_users_with_a_shared_prefix(loaded: LoadedModel, llama: Path, prompts: list[list[int]]) -> None:
    shared = prompts[9]
    users = [[*shared, 3 + i, *prompts[i]] for i in range(8)]
    want = reference(llama, users)
    engine = make_engine(loaded)
    events = run(engine, [make_request(i, prompt) for i, prompt in enumerate(users)])  # all at once
    assert [token_ids(events[f"r{i}"]) for i in range(8)] == want
    assert [num_cached(events[f"r{i}"]) for i in range(8)] == [0] + 7 * [len(shared) // 16 * 16]
    check(engine, users, want, random.Random(4))


def test_the_second_turn_of_a_chat(loaded: LoadedModel, llama: Path, prompts: list[list[int]]) -> None:
    engine = make_engine(loaded)
    answers = run(engine, [make_request(i, prompt) for i, prompt in enumerate(prompts)])
    turns = [[*p, *token_ids(answers[f"r{i}"]), 5, 6, 7] for i, p in enumerate(prompts)]
    events = run(engine, [make_request(i, prompt) for i, prompt in enumerate(turns)], random.Random(5))
    assert [token_ids(events[f"r{i}"]) for i in range(len(turns))] == reference(llama, turns)
    # The last token of an answer was never fed back, so it is not in the cache.
    assert [num_cached(events[f"r{i}"]) for i in range(len(turns))] == [
        (len(prompt) + NUM_NEW - 1) // 16 * 16 for prompt in prompts
    ]
