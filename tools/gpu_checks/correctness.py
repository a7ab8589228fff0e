"""Is it right: kernels, tokens against Transformers' own, graphs, sampling, and steps for which memory lacks."""

import random
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tgi_local.engine.engine import Engine
from tgi_local.engine.step import StepPlan, StepResult, StepRow
from tgi_local.model import kernel_choice
from tgi_local.model.attention import AttentionRules, DecodeRows, PagedStep, PrefillSpan
from tgi_local.model.block_attention import BlockRows, BlockStep, Kernel, PlainKernel
from tgi_local.model.graphs import CudaCapture
from tgi_local.model.kv_cache import KVCache, LayerShape
from tgi_local.model.loader import LoadedModel
from tgi_local.model.runner import TorchRunner
from tgi_local.types import SamplingParams
from tools.gpu_checks import models
from tools.gpu_checks.models import ARCHITECTURES, CHECKED_SIZES, Context, generate, make_engine
from tools.gpu_checks.report import Reporter

LAYERS = {
    "8B": LayerShape(8, 128, 128, 4),
    "1B": LayerShape(8, 64, 64, 4),
    "1B, window": LayerShape(8, 64, 64, 4, window=40),
    "groups of 7": LayerShape(2, 64, 64, 7),
    "256 wide, soft cap": LayerShape(4, 256, 256, 2, softcap=50.0),
    "256 wide, window, soft cap": LayerShape(4, 256, 256, 2, window=40, softcap=50.0),
    "no groups": LayerShape(12, 96, 96, 1),
}
# How far below the best logit, in standard deviations of the position's logits, a chosen token may be.
CLOSE_CALL = 0.2
NUM_OOM = 20


# Kernels.


def kernels(context: Context, report: Reporter) -> None:
    """Every kernel that is here, against contexts gathered for torch's own attention."""
    dtype = torch.bfloat16
    if context.is_gpu:
        for kind in (torch.bfloat16, torch.float32):
            chosen = kernel_choice.choose_kernel([LAYERS["8B"]], kind, context.device)
            report(f"chosen for {kind}", chosen.name if chosen is not None else "none", ok=chosen is not None)
    for name, kernel in _available(context):
        for layer, shape in LAYERS.items():
            if context.tiny and shape.key_size > 64:
                continue
            reason = kernel.refusal((shape,), dtype, _capability(context))
            if reason is not None:
                report(f"{name}, {layer}", "refused", note=reason)
                continue
            error = max(_errors(context, kernel, shape))
            report(f"{name}, {layer}: largest difference", error, ok=error < kernel_choice.TOLERANCE)


def _available(context: Context) -> Iterable[tuple[str, Kernel]]:
    if not context.is_gpu:
        return [("plain torch", PlainKernel())]
    found = []
    for name, make in kernel_choice.CANDIDATES:
        try:
            found.append((name, make(context.device)))
        except ImportError:
            continue
    return found


def _capability(context: Context) -> tuple[int, int]:
    return torch.cuda.get_device_capability(context.device) if context.is_gpu else (0, 0)


def _errors(context: Context, kernel: Kernel, shape: LayerShape) -> Iterable[float]:
    lens = (1, 17, 130) if context.tiny else (1, 17, 130, 700, 3000)
    chunk = 70 if context.tiny else 500
    for num_new in ((1,) * len(lens), tuple(min(length, chunk) for length in lens)):
        yield _difference(context, kernel, shape, num_new, lens)


@torch.inference_mode()
def _difference(
    context: Context,
    kernel: Kernel,
    shape: LayerShape,
    num_new: Sequence[int],
    lens: Sequence[int],
) -> float:
    """The largest difference between `kernel` and the gathering path, both as a step of a model uses them."""
    device, dtype, block_size = context.device, torch.bfloat16, kernel.block_size(16)
    rows = kernel_choice.make_rows(num_new, lens, block_size, device)
    rules = AttentionRules(None, shape.window, shape.softcap)
    num_blocks = int(rows.table.max()) + 1
    torch.manual_seed(0)
    cache = KVCache((shape,), num_blocks, block_size, dtype, device)
    for tensor in (*cache._keys, *cache._values):
        tensor.normal_()
    slots = _slots(rows, block_size)
    new_slots = torch.cat([context_slots[-n:] for n, context_slots in zip(num_new, slots, strict=True)])
    total = sum(num_new)
    query = torch.randn(1, shape.num_heads * shape.group, total, shape.key_size, dtype=dtype, device=device)
    key = torch.randn(1, shape.num_heads, total, shape.key_size, dtype=dtype, device=device)
    value = torch.randn(1, shape.num_heads, total, shape.value_size, dtype=dtype, device=device)
    is_decode = max(num_new) == 1
    step = BlockStep(cache, kernel, new_slots, rows if is_decode else None, None if is_decode else rows)
    got = step.attend(0, query, key, value, rules)
    want = _gathering(cache, rows, slots, num_new, new_slots).attend(0, query, key, value, rules)
    return kernel_choice.largest_error(got, want)


def _slots(rows: BlockRows, block_size: int) -> list[torch.Tensor]:
    """The cache slots of every row's context."""
    offsets = torch.arange(block_size, device=rows.table.device)
    tables = rows.table.long()[:, :, None] * block_size + offsets
    return [table.flatten()[: int(length)] for table, length in zip(tables, rows.lens, strict=True)]


def _gathering(
    cache: KVCache, rows: BlockRows, slots: Sequence[torch.Tensor], num_new: Sequence[int], new_slots: torch.Tensor
) -> PagedStep:
    device = new_slots.device
    if max(num_new) > 1:
        spans, first = [], 0
        for n, context_slots in zip(num_new, slots, strict=True):
            spans.append(PrefillSpan(first, first + n, len(context_slots) - n, context_slots))
            first += n
        return PagedStep(cache, new_slots, [], spans)
    longest = max(len(context_slots) for context_slots in slots)
    padded = torch.stack([torch.cat((s, s[:1].expand(longest - len(s)))) for s in slots])
    return PagedStep(cache, new_slots, [DecodeRows(torch.arange(len(slots), device=device), padded, rows.lens)], [])


# Tokens.


def parity(context: Context, report: Reporter) -> None:
    """Greedy float32 tokens equal those of Transformers' generate: in place and gathered, in every way of batching."""
    for model_type, overrides in ARCHITECTURES[: 4 if context.tiny else None]:
        prompts = models.make_prompts(6 if model_type != "llama" or context.tiny else 12)
        loaded = models.load_tiny(context, model_type, overrides)
        want = reference(context, model_type, overrides, prompts)
        for name, kernel in {"in place": models.kernel_for(loaded), "gathered": None}.items():
            ways = {"joining": ({}, random.Random(3))}
            if model_type == "llama":
                ways |= {
                    "alone": ({"batch_size": 1}, None),
                    "chunked": ({"batch_tokens": 13, "batch_size": 12}, random.Random(0)),
                    "preempted": ({"num_tokens": 192}, None),
                }
            for way, (limits, rng) in ways.items():
                engine = make_engine(loaded, kernel, sizes=CHECKED_SIZES, **limits)
                got = generate(engine, prompts, rng=rng)
                same = sum(g == w for g, w in zip(got, want, strict=True))
                how = "no kernel" if name == "in place" and kernel is None else ""
                report(f"{model_type}, {name}, {way}", f"{same}/{len(want)}", "same", same == len(want), how)


def reference(context: Context, model_type: str, overrides: dict[str, Any], prompts: Sequence[Sequence[int]]) -> Any:
    from transformers import AutoModelForCausalLM

    folder = models.tiny_checkpoint(context, model_type, overrides)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(context.device).eval()
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=context.device)
        mask = torch.ones_like(ids)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=models.NUM_NEW, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        outputs.append(out[0, len(prompt) :].tolist())
    return outputs


def halves(context: Context, report: Reporter) -> None:
    """In lower precision every token we choose is, by Transformers' own logits, the best or nearly so."""
    kinds = [
        ("llama", {}, "none"),
        ("gemma3_text", ARCHITECTURES[5][1], "none"),
        ("gemma2", ARCHITECTURES[4][1], "none"),
    ]
    kinds += [("llama", {}, method) for method in ("bitsandbytes-nf4", "bitsandbytes")]
    for model_type, overrides, quantize in kinds:
        name = f"{model_type}, bfloat16" + (f", {quantize}" if quantize != "none" else "")
        if quantize != "none" and not has_bitsandbytes():
            report(name, "skipped", note="bitsandbytes is not installed")
            continue
        loaded = models.load_tiny(context, model_type, overrides, "bfloat16", quantize)
        prompts = models.make_prompts(4 if context.tiny else 12)
        engine = make_engine(loaded, models.kernel_for(loaded), sizes=CHECKED_SIZES)
        got = generate(engine, prompts, rng=random.Random(0))
        gap = max(_gaps(_teacher(context, model_type, overrides, quantize), prompts, got))
        report(f"{name}: largest gap to the best logit", gap, "std", gap < CLOSE_CALL)


def has_bitsandbytes() -> bool:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return False
    return True


def _teacher(context: Context, model_type: str, overrides: dict[str, Any], quantize: str) -> Any:
    from transformers import AutoModelForCausalLM

    from tgi_local.model.quantization import quantization_config

    options: dict[str, Any] = {"device_map": {"": context.device}} if context.is_gpu else {}
    if quantize != "none":
        options["quantization_config"] = quantization_config(quantize, torch.bfloat16)
    folder = models.tiny_checkpoint(context, model_type, overrides)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager", **options)
    return model.eval()


@torch.inference_mode()
def _gaps(teacher: Any, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> Iterable[float]:
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([[*prompt, *output]], device=next(teacher.parameters()).device)
        logits = teacher(ids).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
        yield ((logits.max(-1).values - chosen) / logits.std(-1)).max().item()


# Graphs.


def graphs(context: Context, report: Reporter) -> None:
    """Decode steps with and without graphs: logits of the same steps, and what is captured at all."""
    if context.is_gpu:
        _failed_capture(context, report)
    kinds = [("llama", {}, "float32", "none"), ("llama", {}, "bfloat16", "none")]
    kinds += [(*ARCHITECTURES[5], "bfloat16", "none"), (*ARCHITECTURES[-1], "bfloat16", "none")]
    kinds += [("llama", {}, "bfloat16", method) for method in ("bitsandbytes-nf4", "bitsandbytes")]
    for model_type, overrides, dtype, quantize in kinds:
        name = f"{model_type}, {dtype}" + (f", {quantize}" if quantize != "none" else "")
        if quantize != "none" and not has_bitsandbytes():
            report(name, "skipped", note="bitsandbytes is not installed")
            continue
        loaded = models.load_tiny(context, model_type, overrides, dtype, quantize)
        kernel = models.kernel_for(loaded)
        if kernel is None:
            report(name, "no kernel", note="nothing is captured without one")
            continue
        captured = models.make_forward(loaded, kernel, num_tokens=4096, sizes=CHECKED_SIZES)
        sizes = captured._graphs.sizes if captured._graphs is not None else ()
        # 8-bit layers and some routers wait for the device, which no graph can do.
        must = quantize == "none" and model_type == "llama"
        named = ",".join(map(str, sizes)) or "none"
        report(f"{name}: captured sizes", named, ok=sizes == CHECKED_SIZES if must else None)
        if sizes:
            plain = models.make_forward(loaded, kernel, num_tokens=4096)
            _compare(report, name, captured, plain, sizes)


def _failed_capture(context: Context, report: Reporter) -> None:
    """After a capture that failed midway the device computes, frees memory, and captures again."""
    numbers, target = torch.ones(2, 1000, device=context.device)
    for name, prepare in {"noticed before": None, "failed midway": lambda _: None}.items():
        capture = CudaCapture(context.device)
        if prepare is not None:
            capture._warm_up = prepare  # type: ignore[method-assign]
        try:
            capture(lambda: print((numbers * 2).sum().item()))
            outcome = "captured"
        except RuntimeError as error:
            outcome = str(error).splitlines()[0][:80]
        torch.cuda.empty_cache()
        is_default = torch.cuda.current_stream(context.device) == torch.cuda.default_stream(context.device)
        replay = CudaCapture(context.device)(lambda: target.copy_(numbers * 3))
        target.zero_()
        replay()
        is_well = is_default and target.sum().item() == 3000.0
        report(f"a wait in a capture, {name}", "well" if is_well else "not well", "", is_well, outcome)


@torch.inference_mode()
def _compare(report: Reporter, name: str, captured: Any, plain: Any, exact_sizes: Sequence[int]) -> None:
    worst = {True: 0.0, False: 0.0}
    for num_rows in range(1, max(exact_sizes) + 1):
        for step in range(3):
            plan = decode_plan(num_rows, captured.block_size, 256, step)
            a, b = (forward.logits(plan, range(num_rows)) for forward in (captured, plain))
            difference = ((a - b).abs().max() / b.abs().max()).item()
            worst[num_rows in exact_sizes] = max(worst[num_rows in exact_sizes], difference)
    report(f"{name}: difference at captured sizes", worst[True], "relative", worst[True] < 1e-3)
    report(f"{name}: difference at filled-up sizes", worst[False], "relative", worst[False] < 0.02)


def decode_plan(num_rows: int, block_size: int, room: int, step: int) -> StepPlan:
    """Rows of different contexts, each in blocks of its own; what the blocks hold does not matter."""
    per_row = -(-room // block_size)
    return StepPlan(
        tuple(
            StepRow(
                request_id=f"r{i}",
                token_ids=(3 + i,),
                start=3 + 29 * i + step,
                block_table=tuple(range(i * per_row, (i + 1) * per_row)),
                is_sampling=True,
                sampling=SamplingParams(),
            )
            for i in range(num_rows)
        )
    )


# Sampling.


class FixedForward:
    """A forward pass that gives the same logits on any device."""

    num_blocks, block_size = 64, 16

    def __init__(self, logits: torch.Tensor) -> None:
        self.device = logits.device
        self._logits = logits

    def logits(self, plan: StepPlan, kept: Sequence[int]) -> torch.Tensor:
        return self._logits[: len(kept)].clone()


def sampling(context: Context, report: Reporter) -> None:
    """The same logits, seeds and rules give the same tokens and log-probabilities as on the CPU."""
    vocab_size, num_rows = (512, 32) if context.tiny else (128_256, 128)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_rows, vocab_size, generator=generator) * 3
    rules = [
        {},
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 40},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.3, "typical_p": 0.8},
        {"temperature": 0.9, "min_p": 0.05, "top_n_tokens": 5},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2},
        {"temperature": 0.8, "logit_bias": ((7, 5.0), (9, -50.0))},
    ]
    history = tuple(torch.randint(vocab_size, (200,), generator=generator).tolist())
    rows = []
    for i in range(num_rows):
        params = SamplingParams(seed=i, **rules[i % len(rules)])
        past = history if params.uses_history else ()
        rows.append(
            StepRow(f"r{i}", (1,), 5, (0,), True, params, step_index=i, history=past, num_prompt_tokens=len(past) // 2)
        )
    results = [TorchRunner(FixedForward(logits.to(d))).run(StepPlan(tuple(rows))) for d in (context.device, "cpu")]
    mine, theirs = ([row.token for row in result.rows] for result in results)
    same = sum(a.id == b.id for a, b in zip(mine, theirs, strict=True))
    report("tokens as on the CPU", f"{same}/{num_rows}", "same", same == num_rows)
    error = max(abs(a.logprob - b.logprob) for a, b in zip(mine, theirs, strict=True))
    report("largest difference of a log-probability", error, "", error < 1e-3)


# Memory.


class Counting:
    """A runner that counts the steps for which memory lacked."""

    def __init__(self, runner: TorchRunner) -> None:
        self._runner = runner
        self.num_blocks, self.block_size = runner.num_blocks, runner.block_size
        self.num_oom = 0

    def run(self, plan: StepPlan) -> StepResult:
        try:
            return self._runner.run(plan)
        except Exception as error:
            self.num_oom += "OutOfMemory" in type(error).__name__
            raise


def oom(context: Context, report: Reporter) -> None:
    """Take the device's memory away before a step, twenty times: every request ends once, and the engine goes on."""
    if not context.is_gpu:
        report("steps without memory", "skipped", note="needs a GPU")
        return
    loaded = _wide_model(context)
    kernel = models.kernel_for(loaded)
    runner = Counting(TorchRunner(models.make_forward(loaded, kernel, num_tokens=32_768, sizes=(1, 2, 4))))
    engine = models.engine_of(runner, 16, 8192)
    rng = random.Random(0)
    control = [[rng.randrange(3, 500) for _ in range(50)] for _ in range(3)]
    before = generate(engine, control)
    num_once = num_same = 0
    for i in range(NUM_OOM):
        prompts = [[rng.randrange(3, 500) for _ in range(2000)] for _ in range(4)]
        ends = _starved(context, engine, i, prompts)
        num_once += sorted(ends) == sorted(f"oom-{i}-{j}" for j in range(4))
        num_same += generate(engine, control) == before
    report("steps that ran out of memory", runner.num_oom, "", runner.num_oom >= NUM_OOM)
    report("times that every request ended once", f"{num_once}/{NUM_OOM}", "", num_once == NUM_OOM)
    report("times that the next requests got the same tokens", f"{num_same}/{NUM_OOM}", "", num_same == NUM_OOM)


def _wide_model(context: Context) -> LoadedModel:
    """Few layers and a large vocabulary: activations that are large beside everything else."""
    models.SHAPES["wide"] = models.SHAPES["1B"] | {"num_hidden_layers": 2}
    return models.make_model("wide", torch.bfloat16, context.device)


def _starved(context: Context, engine: Engine, i: int, prompts: Sequence[Sequence[int]]) -> list[str]:
    """Run requests whose first step has no memory; the ids of the terminal events."""
    for j, prompt in enumerate(prompts):
        engine.submit(models.make_request(f"oom-{i}-{j}", prompt, 4))
    with _ballast(context):
        events = list(engine.step()[0])
    while engine.has_work:
        events += engine.step()[0]
    engine.check_invariants()
    return [event.request_id for event in events if event.is_terminal]


@contextmanager
def _ballast(context: Context) -> Any:
    """Take all memory but a little, in pieces, because one piece of that size may not be there."""
    torch.cuda.synchronize(context.device)
    torch.cuda.empty_cache()
    pieces: list[torch.Tensor] = []
    size = 1 << 32
    while size >= 1 << 24:
        try:
            pieces.append(torch.empty(size, dtype=torch.uint8, device=context.device))
        except torch.OutOfMemoryError:
            size //= 2
    try:
        yield
    finally:
        pieces.clear()
        torch.cuda.empty_cache()
