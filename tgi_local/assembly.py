"""From settings and a model's source to a served model: download, load, size the cache, build the engine."""

import asyncio
import gc
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.engine_thread import EngineThread
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.engine.step_pace import StepPace
from tgi_local.errors import StartupError
from tgi_local.model import hub
from tgi_local.service import ServedModel, Service
from tgi_local.settings import PROGRAM, Settings
from tgi_local.text.chat_template import ChatTemplate
from tgi_local.text.grammar import GrammarCompiler
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import Limits, StepStats, Watermark

logger = logging.getLogger(__name__)

T = TypeVar("T")

BLOCK_SIZE = 16
# Beyond this many requests of full length, more KV cache is hardly ever used.
MAX_FULL_LENGTH_REQUESTS = 32
# A context shorter than this is no use for chat: better to say at start what is missing.
MIN_CONTEXT_TOKENS = 512
# One step may take minutes: a long prompt on a large model and a slow CPU. After this, it hangs.
STALL_S = {"cuda": 60.0, "cpu": 600.0}


async def bring_up(settings: Settings, source: hub.ModelSource, service: Service, fail: Callable[[int], None]) -> None:
    """Load the model beside the running event loop and attach it to `service`.

    `fail` is called with the exit status when it can not be loaded (2: a setting or the checkpoint, 1: a bug), or
    when its engine dies later (1).
    """
    loop = asyncio.get_running_loop()

    def load() -> ServedModel:
        model = load_model(
            settings,
            source,
            report=lambda detail: _call(loop, service.report_loading, detail),
            on_step=service.metrics.step_done,
            on_death=lambda _: fail(1),
        )
        # What is loaded by now stays. Looked through again, the libraries alone would stop every stream for 0.2 s.
        gc.collect()
        gc.freeze()
        return model

    try:
        model = await _in_daemon_thread(load)
    except StartupError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return fail(2)
    except Exception:
        logger.exception("loading %s failed", source.model_id)
        return fail(1)
    model.engine.start()
    service.attach(model)
    logger.info("ready")


def load_model(
    settings: Settings,
    source: hub.ModelSource,
    *,
    report: Callable[[str], None],
    on_step: Callable[[StepStats], None],
    on_death: Callable[[BaseException], None],
) -> ServedModel:
    """Everything slow, for a worker thread. `report` hears what is going on. Raises StartupError."""
    folder = hub.fetch(source, settings.huggingface_hub_cache, lambda done, total: report(_progress(done, total)))
    report("loading the libraries")
    # Torch and Transformers take seconds to import; nothing before this line needs them.
    from tgi_local.model.loader import LoadOptions, load
    from tgi_local.model.memory import StepLimits
    from tgi_local.model.runner import build_runner

    report("reading the weights")
    options = LoadOptions(settings.dtype, settings.quantize, settings.device, settings.cuda_memory_fraction)
    loaded = load(folder, source.model_id, source.revision, source.is_demo, options)
    template_path = settings.tokenizer_config_path
    tokenizer = TextTokenizer.load(folder, Path(template_path) if template_path else None)
    max_total = _max_total_tokens(settings, loaded.info.context_length)
    report("allocating the KV cache")
    runner = build_runner(
        loaded,
        block_size=BLOCK_SIZE,
        min_tokens=settings.max_total_tokens or min(max_total, MIN_CONTEXT_TOKENS),
        max_tokens=max_total * min(settings.max_concurrent_requests, MAX_FULL_LENGTH_REQUESTS),
        requested_tokens=settings.max_batch_total_tokens,
        memory_fraction=settings.cuda_memory_fraction,
        limits=StepLimits(settings.max_batch_size, settings.max_batch_prefill_tokens, max_total),
        graph_sizes=settings.cuda_graphs or None,
    )
    blocks = BlockManager(runner.num_blocks, runner.block_size)
    if blocks.capacity_tokens < max_total:
        max_total = blocks.capacity_tokens
        logger.warning("memory holds a context of %d tokens, less than the model's own", max_total)
        _check_input_fits(settings, max_total)
    step_limits = SchedulerLimits(settings.max_batch_size, settings.max_batch_prefill_tokens)
    stall_s = settings.stall_timeout or STALL_S[loaded.device.type]
    scheduler = Scheduler(step_limits, blocks, pace=StepPace())
    engine = EngineThread(Engine(scheduler, runner), on_step, on_death, stall_s)
    limits = _limits(settings, max_total, blocks.capacity_tokens, min(tokenizer.vocab_size, loaded.vocab_size))
    logger.info("serving %s, KV cache of %d tokens", source.model_id, blocks.capacity_tokens)
    template = ChatTemplate(tokenizer)
    grammars = None
    if not settings.disable_grammar_support:
        grammars = _load_grammars(tokenizer, template, loaded.info.eos_token_ids, loaded.vocab_size)
    return ServedModel(loaded.info, limits, tokenizer, template, engine, grammars)


def _load_grammars(
    tokenizer: TextTokenizer, template: ChatTemplate, eos_token_ids: frozenset[int], vocab_size: int
) -> GrammarCompiler | None:
    try:
        return GrammarCompiler.load(
            tokenizer,
            eos_token_ids,
            vocab_size,
            format=template.tool_format,
            thoughts=template.thoughts,
            constrains_auto=template.response_template is None,
        )
    except ValueError as error:
        logger.warning("grammars are not supported with this tokenizer: %s", error)
        return None


def _max_total_tokens(settings: Settings, context_length: int) -> int:
    asked = settings.max_total_tokens
    if asked is not None and asked > context_length:
        raise StartupError(f"--max-total-tokens {asked} is more than the model's context of {context_length} tokens")
    max_total = asked or context_length
    _check_input_fits(settings, max_total)
    return max_total


def _check_input_fits(settings: Settings, max_total: int) -> None:
    longest_input = settings.max_input_tokens or settings.max_input_length
    if longest_input is not None and longest_input >= max_total:
        raise StartupError(f"--max-input-tokens {longest_input} must be less than the {max_total} tokens in total")


def _limits(settings: Settings, max_total: int, capacity: int, vocab_size: int) -> Limits:
    return Limits(
        max_best_of=settings.max_best_of,
        max_stop_sequences=settings.max_stop_sequences,
        max_top_n_tokens=settings.max_top_n_tokens,
        max_input_tokens=settings.max_input_tokens or settings.max_input_length or max_total - 1,
        max_total_tokens=max_total,
        max_client_batch_size=settings.max_client_batch_size,
        max_concurrent_requests=settings.max_concurrent_requests,
        max_batch_total_tokens=capacity,
        vocab_size=vocab_size,
        watermark=Watermark(settings.watermark_gamma, settings.watermark_delta),
        max_batch_size=settings.max_batch_size,
    )


def _progress(done: int, total: int) -> str:
    return f"downloading {done / 1e9:.2f} of {total / 1e9:.2f} GB"


async def _in_daemon_thread(work: Callable[[], T]) -> T:
    """Unlike an executor's thread, this one does not hold up the exit while a model is loading."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            value = work()
        except BaseException as error:
            _call(loop, _settle, result, None, error)
        else:
            _call(loop, _settle, result, value, None)

    threading.Thread(target=run, name="loader", daemon=True).start()
    return await result


def _settle(result: asyncio.Future[T], value: T, error: BaseException | None) -> None:
    if result.done():
        return
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(value)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    """Run `function` on the loop; quietly nothing when the server has shut down meanwhile."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        logger.debug("the event loop is closed")
