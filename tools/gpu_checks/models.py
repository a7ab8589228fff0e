"""Models and engines to check: tiny checkpoints on disk, and models of real shapes made on the device."""

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.model import attention
from tgi_local.model.block_attention import Kernel, PlainKernel
from tgi_local.model.eager import EagerForward
from tgi_local.model.graphs import CudaCapture, choose_sizes
from tgi_local.model.kernel_choice import choose_kernel
from tgi_local.model.kv_cache import KVCache
from tgi_local.model.loader import LoadedModel, LoadOptions, load, probe_layers
from tgi_local.model.runner import TorchRunner, capture_decodes
from tgi_local.model_info import GenerationDefaults, ModelInfo
from tgi_local.types import GenerationRequest, SamplingParams, StopParams, TokenEvent

NUM_NEW = 24
PROMPT_LENS = (1, 2, 3, 15, 16, 17, 31, 33, 64, 100, 150, 7)
CHECKED_SIZES = (1, 2, 4, 8)
ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen2", {}),
    ("qwen3", {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24}),
    ("mistral", {"sliding_window": 24}),
    ("gemma2", {"sliding_window": 24, "query_pre_attn_scalar": 16}),
    ("gemma3_text", {"sliding_window": 24, "query_pre_attn_scalar": 16}),
    ("phi3", {}),
    ("smollm3", {}),
    ("granite", {}),
    ("olmo2", {}),
    ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    ("gpt_neox", {}),
    ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
]


@dataclass(frozen=True)
class Context:
    """What every section is told."""

    device: torch.device
    tiny: bool
    folder: Path
    deadline: float  # on the monotonic clock

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


def tiny_checkpoint(context: Context, model_type: str, overrides: dict[str, Any]) -> Path:
    folder = context.folder / model_type
    if not (folder / "config.json").exists():
        make_checkpoint(folder, model_type, **overrides)
    return folder


def load_tiny(
    context: Context, model_type: str, overrides: dict[str, Any], dtype: str = "float32", quantize: str = "none"
) -> LoadedModel:
    folder = tiny_checkpoint(context, model_type, overrides)
    options = LoadOptions(dtype=dtype, quantize=quantize, device=str(context.device), may_pack=False)
    return load(folder, model_type, None, False, options)


def make_prompts(count: int = len(PROMPT_LENS)) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, VOCAB_SIZE) for _ in range(n)] for n in PROMPT_LENS][:count]


SHAPES: dict[str, dict[str, Any]] = {
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": VOCAB_SIZE,
        "tie_word_embeddings": True,
    },
}


def make_model(shape: str, dtype: torch.dtype, device: torch.device, *, nf4: bool = False) -> LoadedModel:
    """A Llama of random weights, made on the device; with `nf4` its linear layers are quantized one by one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    attention.register()
    config = AutoConfig.for_model(
        "llama", **SHAPES[shape], max_position_embeddings=131_072, bos_token_id=None, eos_token_id=None, pad_token_id=0
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
    model = model.eval().requires_grad_(False)
    if nf4:
        quantize_nf4(model, dtype)
    return wrap(model, dtype, device, quantize="bitsandbytes-nf4" if nf4 else None)


def quantize_nf4(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """What the loader's `bitsandbytes-nf4` makes of a checkpoint: every linear layer but the head."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, torch.nn.Linear) or name == "lm_head":
                continue
            device = layer.weight.device
            packed = Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=dtype,
                compress_statistics=True,
                quant_type="nf4",
                device="meta",
            )
            weight = Params4bit(
                layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=packed
            )
            packed.weight = weight.to(device)  # which quantizes it
            packed.bias = layer.bias
            setattr(parent, name, packed.eval())


def wrap(model: Any, dtype: torch.dtype, device: torch.device, quantize: str | None = None) -> LoadedModel:
    info = ModelInfo(
        model_id="random",
        revision=None,
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        quantize=quantize,
        architecture=type(model).__name__,
        compute_type="",
        context_length=model.config.max_position_embeddings,
        is_demo=False,
        generation_defaults=GenerationDefaults(),
        eos_token_ids=frozenset(),
    )
    shapes = probe_layers(model, "random", device)
    return LoadedModel(model, shapes, dtype, device, model.config.vocab_size, info)


def kernel_for(loaded: LoadedModel) -> Kernel | None:
    """The kernel that a server would use; on the CPU, where it would use none, the plain one, to check what is around it."""
    if loaded.device.type == "cpu":
        return PlainKernel()
    return choose_kernel(loaded.layer_shapes, loaded.dtype, loaded.device)


def capture_for(device: torch.device) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Real captures on a GPU; on the CPU the function is run again, which checks everything but the capture."""
    if device.type == "cuda":
        return CudaCapture(device)

    def keep(function: Callable[[], None]) -> Callable[[], None]:
        function()
        return function

    return keep


def make_forward(
    loaded: LoadedModel,
    kernel: Kernel | None,
    *,
    num_tokens: int,
    sizes: Sequence[int] = (),
    max_len: int | None = None,
) -> EagerForward:
    """A forward pass with a cache of `num_tokens`, and with graphs of these batch sizes where they can be captured."""
    block_size = kernel.block_size(16) if kernel is not None else 16
    num_blocks = -(-num_tokens // block_size)
    shapes, dtype, device = loaded.layer_shapes, loaded.dtype, loaded.device
    forward = EagerForward(loaded, KVCache(shapes, num_blocks, block_size, dtype, device, has_scratch=True), kernel)
    if kernel is not None and sizes:
        capture = capture_for(device)
        forward.use_graphs(
            capture_decodes(forward, kernel, choose_sizes(sizes, max(sizes)), max_len or num_tokens, capture)
        )
    return forward


def make_engine(
    loaded: LoadedModel,
    kernel: Kernel | None,
    *,
    sizes: Sequence[int] = (),
    num_tokens: int = 8192,
    batch_size: int = 64,
    batch_tokens: int = 4096,
) -> Engine:
    forward = make_forward(loaded, kernel, num_tokens=num_tokens, sizes=sizes)
    return engine_of(TorchRunner(forward), batch_size, batch_tokens)


def engine_of(runner: Any, batch_size: int, batch_tokens: int) -> Engine:
    blocks = BlockManager(runner.num_blocks, runner.block_size)
    return Engine(Scheduler(SchedulerLimits(batch_size, batch_tokens), blocks), runner)


def make_request(name: str, prompt: Sequence[int], num_new: int = NUM_NEW) -> GenerationRequest:
    return GenerationRequest(name, "", tuple(prompt), SamplingParams(), StopParams(num_new))


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], num_new: int = NUM_NEW, rng: random.Random | None = None
) -> list[list[int]]:
    """Greedy tokens of every prompt; with `rng` they join at random steps. Raises RuntimeError when one fails."""
    pending = [make_request(f"r{i}", prompt, num_new) for i, prompt in enumerate(prompts)]
    outputs: dict[str, list[int]] = {request.request_id: [] for request in pending}
    while pending or engine.has_work:
        while pending and (rng is None or rng.random() < 0.3):
            engine.submit(pending.pop(0))
        for event in engine.step()[0]:
            if event.error is not None:
                raise RuntimeError(f"{event.request_id} failed: {event.error}")
            add(outputs, event)
    return list(outputs.values())


def add(outputs: dict[str, list[int]], event: TokenEvent) -> None:
    if event.token is not None:
        outputs[event.request_id].append(event.token.id)


def release() -> None:
    """Free what the last model had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
