"""How fast it is: against what the memory's bandwidth allows, and against Transformers' continuous batching."""

import importlib.util
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from tgi_local.engine.step import StepPlan, StepRow
from tgi_local.model.attention import AttentionRules, DecodeRows, PagedStep
from tgi_local.model.block_attention import BlockRows, Kernel
from tgi_local.model.eager import EagerForward
from tgi_local.model.kernel_choice import make_rows
from tgi_local.model.kv_cache import LayerShape, bytes_per_token
from tgi_local.model.loader import LoadedModel
from tgi_local.model.memory import StepLimits
from tgi_local.model.runner import TorchRunner, build_runner
from tgi_local.types import SamplingParams
from tools.gpu_checks import models
from tools.gpu_checks.models import Context
from tools.gpu_checks.report import Reporter

CONTEXT_LEN = 512
NUM_NEW = 64
BATCHES = (1, 8, 32, 128)
PREFILLS = ((1, 2048), (8, 256), (1, 512))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, run: Callable[[], object], repeats: int, warm: int = 2) -> float:
    """Median wall-clock time of `run`, the device's work included."""
    times = []
    for i in range(warm + repeats):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        if i >= warm:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def device_seconds(device: torch.device, run: Callable[[], object], repeats: int) -> float:
    """Mean time of `run` on the device, queued one after another so that launches do not count."""
    if device.type != "cuda":
        return seconds(device, run, repeats)
    run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    synchronize(device)
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    synchronize(device)
    return begin.elapsed_time(end) / 1e3 / repeats


def copy_bandwidth(context: Context) -> float:
    """Bytes per second, read and written, of a copy much larger than the caches."""
    size = 1 << 24
    if context.is_gpu and not context.tiny:
        size = min(1 << 32, torch.cuda.mem_get_info(context.device)[0] // 8)
    source = torch.empty(size, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    return 2 * size / device_seconds(context.device, lambda: target.copy_(source), 3 if context.tiny else 10)


def matmul_rate(context: Context) -> float:
    """Operations per second of a large bfloat16 product of random numbers."""
    size = 256 if context.tiny else 8192
    a, b = (torch.randn(size, size, device=context.device).to(torch.bfloat16) for _ in range(2))
    return 2 * size**3 / device_seconds(context.device, lambda: a @ b, 3 if context.tiny else 20)


# Attention alone.


@torch.inference_mode()
def attention(context: Context, report: Reporter) -> None:
    """Decode and prefill attention of one layer: bandwidth and operations per second of every variant that is here."""
    shape = LayerShape(2, 16, 16, 2) if context.tiny else LayerShape(8, 128, 128, 4)
    bandwidth = copy_bandwidth(context)
    cases = ((2, 64),) if context.tiny else ((1, 512), (1, 8192), (8, 2048), (32, 2048), (128, 512), (128, 2048))
    for batch, length in cases:
        moved = batch * length * bytes_per_token([shape], torch.bfloat16)
        for name, kernel in _variants(context):
            took = device_seconds(context.device, _attention_call(context, kernel, shape, batch, length, 1), 20)
            share = moved / took / bandwidth
            report(f"decode {batch} x {length}, {name}", took * 1e6, "us", note=f"{share:.0%} of the copy bandwidth")
    for new, length in ((32, 64),) if context.tiny else ((2048, 2048), (512, 8192), (64, 32_768)):
        operations = 4 * new * (length - new / 2) * shape.num_heads * shape.group * shape.key_size
        for name, kernel in _variants(context):
            took = device_seconds(context.device, _attention_call(context, kernel, shape, 1, length, new), 10)
            report(
                f"prefill {new} of {length}, {name}", took * 1e6, "us", note=f"{operations / took / 1e12:.0f} TFLOP/s"
            )


def _variants(context: Context) -> list[tuple[str, Kernel | None]]:
    if not context.is_gpu:
        return [("gathered", None)]
    found: list[tuple[str, Kernel | None]] = [("gathered", None)]
    try:
        from tgi_local.model.attention_triton import TritonKernel
    except ImportError:
        pass
    else:
        processors = torch.cuda.get_device_properties(context.device).multi_processor_count
        for programs, stages in ((2, 2), (4, 2), (2, 3), (4, 3), (8, 2)):
            kernel = TritonKernel(processors, programs_per_processor=programs, num_stages=stages)
            found.append((f"Triton, {programs} programs, {stages} stages", kernel))
    from tgi_local.model.attention_varlen import VarlenKernel

    varlen = VarlenKernel()
    capability = torch.cuda.get_device_capability(context.device)
    if varlen.refusal([LayerShape(8, 128, 128)], torch.bfloat16, capability) is None:
        found.append(("varlen_attn", varlen))
    return found


def _attention_call(
    context: Context, kernel: Kernel | None, shape: LayerShape, batch: int, length: int, new: int
) -> Callable[[], object]:
    device, rules = context.device, AttentionRules()
    block_size = kernel.block_size(16) if kernel is not None else 16
    rows = make_rows((new,) * batch, (length,) * batch, block_size, device)
    num_blocks = int(rows.table.max()) + 1
    heads = (num_blocks, block_size, shape.num_heads, shape.key_size)
    keys, values = (torch.randn(heads, device=device).to(torch.bfloat16) for _ in range(2))
    query = torch.randn(batch * new, shape.num_heads * shape.group, shape.key_size, device=device).to(torch.bfloat16)
    if kernel is not None:
        return lambda: kernel(query, keys, values, rows, rules)
    return _gathered_call(rows, keys, values, query, new)


def _gathered_call(
    rows: BlockRows, keys: torch.Tensor, values: torch.Tensor, query: torch.Tensor, new: int
) -> Callable[[], object]:
    """What a step without a kernel does, the writing of new keys left out."""
    block_size = keys.shape[1]
    slots = (rows.table.long()[:, :, None] * block_size + torch.arange(block_size, device=query.device)).flatten(1)
    slots = slots[:, : rows.max_len]
    flat = (keys.flatten(0, 1), values.flatten(0, 1))

    class Written:
        def write(self, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return flat

    from tgi_local.model.attention import PrefillSpan

    tokens = torch.arange(len(slots), device=query.device)
    decodes = [DecodeRows(tokens, slots, rows.lens)] if new == 1 else []
    prefills = [] if new == 1 else [PrefillSpan(0, new, rows.max_len - new, slots[0])]
    q = query.transpose(0, 1)[None]
    step = PagedStep(Written(), slots[:, 0], decodes, prefills)  # type: ignore[arg-type]
    return lambda: step.attend(0, q, q, q, AttentionRules())


# The whole model.


def model_timings(shape: str, nf4: bool) -> Callable[[Context, Reporter], None]:
    """A section that measures a model of this shape, and Transformers' continuous batching on the same weights."""

    def section(context: Context, report: Reporter) -> None:
        if nf4:
            try:
                import bitsandbytes  # noqa: F401
            except ImportError:
                return report("nf4", "skipped", note="bitsandbytes is not installed")
        measure_model(context, report, "tiny" if context.tiny else shape, nf4)

    return section


def measure_model(context: Context, report: Reporter, shape: str, nf4: bool) -> None:
    dtype = torch.float32 if context.tiny else torch.bfloat16
    bandwidth = copy_bandwidth(context)
    models.release()
    report("copy bandwidth", bandwidth / 1e9, "GB/s")
    started = time.perf_counter()
    loaded = models.make_model(shape, dtype, context.device, nf4=nf4)
    report("model made", time.perf_counter() - started, "s")
    batches = (1, 3) if context.tiny else BATCHES
    runner = _start(context, report, loaded, max(batches))
    weights = _weight_bytes(loaded)
    report("weights read in a step", weights / 1e9, "GB")
    for batch in batches:
        _decode(context, report, loaded, runner, batch, weights, bandwidth)
    if context.is_gpu:
        _waits(report, runner)
    for rows, new in ((2, 16),) if context.tiny else PREFILLS:
        _prefill(context, report, loaded, runner, rows, new)
    ours = {batch: _engine_rate(context, report, runner, batch) for batch in batches}
    model = loaded.model
    del runner, loaded
    models.release()
    for batch in batches:
        if context.seconds_left < 15:
            report(f"transformers, batch {batch}", "skipped", note="no time left for it")
            continue
        _rival(context, report, model, batch, ours[batch])


def _start(context: Context, report: Reporter, loaded: LoadedModel, max_rows: int) -> Any:
    """A runner as the server builds it: memory measured, graphs captured."""
    max_len = 256 if context.tiny else 8192
    started = time.perf_counter()
    if context.is_gpu:
        runner: Any = build_runner(
            loaded,
            block_size=16,
            min_tokens=max_len,
            max_tokens=max(32, max_rows) * 1024,
            requested_tokens=None,
            limits=StepLimits(max_rows, 2048, max_len),
        )
    else:
        kernel = models.kernel_for(loaded)
        runner = TorchRunner(models.make_forward(loaded, kernel, num_tokens=2048, sizes=(1, 2, max_rows)))
    report(
        "runner built", time.perf_counter() - started, "s", note=f"{runner.num_blocks} blocks of {runner.block_size}"
    )
    forward: EagerForward = runner._forward
    report("attention", forward._kernel.name if forward._kernel is not None else "gathered")
    captured = forward._graphs.sizes if forward._graphs is not None else ()
    report("captured sizes", ",".join(map(str, captured)) or "none")
    if context.is_gpu:
        report("memory allocated", torch.cuda.memory_allocated(context.device) / 1e9, "GB")
        report("memory reserved", torch.cuda.memory_reserved(context.device) / 1e9, "GB")
    return runner


def _weight_bytes(loaded: LoadedModel) -> int:
    """Bytes of parameters that a decode step reads: all but the embedding, of which it reads some rows."""
    embedding = loaded.model.get_input_embeddings().weight
    is_tied = loaded.model.get_output_embeddings().weight is embedding
    total = 0
    for parameter in loaded.model.parameters():
        total += parameter.numel() * parameter.element_size() if parameter is not embedding or is_tied else 0
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.numel() * state.absmax.element_size()
    return total


def _plan(batch: int, start: int, new: int, block_size: int, room: int) -> StepPlan:
    per_row = -(-room // block_size)
    rng = random.Random(start)
    return StepPlan(
        tuple(
            StepRow(
                request_id=f"r{i}",
                token_ids=tuple(rng.randrange(3, 500) for _ in range(new)),
                start=start,
                block_table=tuple(range(i * per_row, (i + 1) * per_row)),
                is_sampling=True,
                sampling=SamplingParams(),
            )
            for i in range(batch)
        )
    )


def _decode(
    context: Context, report: Reporter, loaded: LoadedModel, runner: Any, batch: int, weights: int, bandwidth: float
) -> None:
    """One decode step: whole, without the choice of tokens, and on the device alone; against weights and cache read once."""
    length, repeats = (64, 3) if context.tiny else (CONTEXT_LEN, 30)
    forward = runner._forward
    plan = _plan(batch, length, 1, runner.block_size, length + NUM_NEW)
    whole = seconds(context.device, lambda: runner.run(plan), repeats)
    with torch.inference_mode():
        model_only = seconds(context.device, lambda: forward.logits(plan, range(batch)), repeats)
        on_device = device_seconds(context.device, lambda: forward.logits(plan, range(batch)), repeats)
    floor = (weights + batch * length * bytes_per_token(loaded.layer_shapes, loaded.dtype)) / bandwidth
    note = f"floor {floor * 1e3:.2f} ms, reached {floor / whole:.0%}"
    report(f"decode step, batch {batch}, context {length}", whole * 1e3, "ms", note=note)
    report(f"decode step, batch {batch}: model", model_only * 1e3, "ms", note=f"queued: {on_device * 1e3:.2f} ms")
    if forward._graphs is not None:
        graphs = forward._graphs
        forward.use_graphs(None)
        eager = seconds(context.device, lambda: runner.run(plan), max(3, repeats // 3))
        forward.use_graphs(graphs)
        report(f"decode step, batch {batch}: without graphs", eager * 1e3, "ms")


def _waits(report: Reporter, runner: Any) -> None:
    """How often a decode step of 8 rows waits for the device: once, for its results."""
    kinds = {"greedy": SamplingParams(), "sampled": SamplingParams(temperature=0.8, top_p=0.9, top_k=50)}
    for name, params in kinds.items():
        rows = _plan(8, 64, 1, runner.block_size, 128).rows
        plan = StepPlan(tuple(_with(row, params) for row in rows))
        runner.run(plan)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                runner.run(plan)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        count = sum("synchronizing" in str(warning.message) for warning in caught)
        report(f"waits of a {name} decode step", count, "", ok=count == 1 if name == "greedy" else None)


def _with(row: StepRow, params: SamplingParams) -> StepRow:
    return StepRow(row.request_id, row.token_ids, row.start, row.block_table, row.is_sampling, params)


def _prefill(context: Context, report: Reporter, loaded: LoadedModel, runner: Any, rows: int, new: int) -> None:
    plan = _plan(rows, 0, new, runner.block_size, new)
    took = seconds(context.device, lambda: runner.run(plan), 3 if context.tiny else 8)
    parameters = sum(p.numel() * (2 if hasattr(p, "quant_state") else 1) for p in loaded.model.parameters())
    rate = 2 * parameters * rows * new / took / 1e12
    note = f"{rows * new / took:.0f} tokens/s, about {rate:.0f} TFLOP/s"
    report(f"prefill step, {rows} x {new}", took * 1e3, "ms", note=note)


# Against Transformers.


def _prompts(context: Context, batch: int) -> list[list[int]]:
    rng = random.Random(batch)
    length = 32 if context.tiny else CONTEXT_LEN
    return [[rng.randrange(3, 500) for _ in range(length)] for _ in range(batch)]


def _engine_rate(context: Context, report: Reporter, runner: Any, batch: int) -> float:
    """Tokens per second of steady decoding through the engine, scheduling and events included."""
    num_new = 8 if context.tiny else NUM_NEW
    engine = models.engine_of(runner, batch, 2048)
    for i, prompt in enumerate(_prompts(context, batch)):
        engine.submit(models.make_request(f"b{batch}-{i}", prompt, num_new))
    times, started = [], time.perf_counter()
    while engine.has_work:
        events = engine.step()[0]
        if len(events) == batch:  # everybody decodes
            times.append(time.perf_counter())
    took = time.perf_counter() - started
    rate = batch / statistics.median(b - a for a, b in pairwise(times))
    whole = batch * num_new / took
    report(f"engine, batch {batch}: decode", rate, "tokens/s", note=f"prompts included: {whole:.0f} tokens/s")
    return rate


def _rival(context: Context, report: Reporter, model: Any, batch: int, ours: float) -> None:
    """Transformers' generate_batch on the same weights, with the best attention that it finds here."""
    from transformers import GenerationConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    num_new = 8 if context.tiny else NUM_NEW
    model.set_attn_implementation("sdpa")
    config = GenerationConfig(
        max_new_tokens=num_new, do_sample=False, eos_token_id=-1, pad_token_id=0, bos_token_id=None
    )
    options: dict[str, Any] = {"record_timestamps": True, "progress_bar": False}
    if not context.is_gpu:
        options["continuous_batching_config"] = _small_rival()
    started = time.perf_counter()
    outputs = model.generate_batch(_prompts(context, batch), config, **options)
    took = time.perf_counter() - started
    complete = [output for output in outputs.values() if len(output.generated_tokens) == num_new]
    if len(complete) < batch or not all(output.timestamps for output in complete):
        return report(f"transformers, batch {batch}", "failed", note=f"{len(complete)} of {batch} answers complete")
    rate = _steady_rate([output.timestamps for output in complete])
    note = f"{_rival_attention()}; whole call {took:.1f} s; ours is {ours / rate:.2f} times as fast"
    report(f"transformers, batch {batch}: decode", rate, "tokens/s", note=note)


def _rival_attention() -> str:
    """Transformers takes FlashAttention where one of these is installed, else torch's attention under a mask."""
    found = [name for name in ("flash_attn", "flash_attn_3", "kernels") if importlib.util.find_spec(name)]
    return f"with {', '.join(found)}" if found else "by sdpa, no flash-attn here"


def _small_rival() -> Any:
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    return ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=256)


def _steady_rate(timestamps: Sequence[Sequence[float]]) -> float:
    """Tokens per second while everybody decodes: from the last first token to the first last one."""
    begin, end = max(times[0] for times in timestamps), min(times[-1] for times in timestamps)
    count = sum(begin < time <= end for times in timestamps for time in times)
    return count / (end - begin) if end > begin and count else float("nan")


# Where the time goes.


def profile(context: Context, report: Reporter) -> None:
    """The kernels of one decode step and one prefill step, by their time."""
    shape, batch = ("tiny", 2) if context.tiny else ("1B", 32)
    loaded = models.make_model(shape, torch.float32 if context.tiny else torch.bfloat16, context.device)
    kernel = models.kernel_for(loaded)
    length = 64 if context.tiny else CONTEXT_LEN
    runner = TorchRunner(models.make_forward(loaded, kernel, num_tokens=(length + 64) * batch))
    activity = torch.profiler.ProfilerActivity.CUDA if context.is_gpu else torch.profiler.ProfilerActivity.CPU
    for name, plan in (
        ("decode", _plan(batch, length, 1, runner.block_size, length + 16)),
        ("prefill", _plan(1, 0, length, runner.block_size, length)),
    ):
        for _ in range(3):
            runner.run(plan)
        with torch.profiler.profile(activities=[activity]) as recorded:
            runner.run(plan)
            synchronize(context.device)
        _report_profile(context, report, name, recorded)


def _report_profile(context: Context, report: Reporter, name: str, recorded: Any) -> None:
    def own_time(event: Any) -> float:
        return float(event.self_device_time_total if context.is_gpu else event.self_cpu_time_total)

    events = sorted(recorded.key_averages(), key=own_time, reverse=True)
    total = sum(map(own_time, events)) or 1.0
    report(f"{name}: kernels", sum(event.count for event in events), "launches", note=f"{total / 1e3:.2f} ms in all")
    for event in events[:10]:
        share = f"{own_time(event) / total:.0%}, {event.count} times"
        report(f"{name}: {event.key[:48]}", own_time(event), "us", note=share)
