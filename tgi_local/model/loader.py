"""A folder of safetensors to a model ready to run: dtype, device, quantization, attention."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tgi_local.errors import StartupError
from tgi_local.model import attention
from tgi_local.model.kv_cache import LayerShape
from tgi_local.model.native import library, packing
from tgi_local.model.quantization import NATIVE_BITS, quantization_config
from tgi_local.model_info import GenerationDefaults, ModelInfo

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the user asked for; None lets the loader choose by hardware."""

    dtype: str | None = None
    quantize: str | None = None
    device: str | None = None
    memory_fraction: float = 1.0  # of the GPU's memory
    may_pack: bool = True  # for the native decoder, where it knows the model


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode whose attention reads the paged cache, and the shape of that cache.

    Where `packed` is there it has the weights, and `model` no longer has them.
    """

    model: Any
    layer_shapes: tuple[LayerShape, ...]
    dtype: torch.dtype
    device: torch.device
    vocab_size: int
    info: ModelInfo
    packed: packing.PackedModel | None = None


def load(folder: Path, model_id: str, revision: str | None, is_demo: bool, options: LoadOptions) -> LoadedModel:
    """Load the checkpoint in `folder`. Raises StartupError for one that can not be served."""
    _silence_transformers()
    device = choose_device(options.device)
    if device.type == "cuda" and options.memory_fraction < 1.0:
        torch.cuda.set_per_process_memory_fraction(options.memory_fraction, device.index or 0)
    config = _load_config(folder, model_id)
    dtype = choose_dtype(options.dtype, getattr(config, "dtype", None), device, is_demo)
    obstacle = native_obstacle(config, dtype, device, options)
    quantize = choose_quantize(
        options.quantize, config, device, is_demo, can_pack=obstacle is None and dtype is not torch.float32
    )
    if quantize in NATIVE_BITS and obstacle is not None:
        raise StartupError(f"--quantize {quantize} needs the CPU kernels, which can not be used here: {obstacle}")
    model = _load_weights(folder, model_id, config, dtype, device, None if quantize in NATIVE_BITS else quantize)
    layer_shapes = probe_layers(model, model_id, device)
    architecture = type(model).__name__
    context_length = getattr(config, "max_position_embeddings", None) or 4096
    packed = None
    if obstacle is None and (quantize is None or quantize in NATIVE_BITS):
        packed = _pack(model, model_id, quantize, dtype, context_length)
    elif device.type == "cpu":
        logger.info("executed by Transformers' modules: %s", obstacle or f"quantize={quantize}")
    logger.info("%s loaded: %s, %s on %s, quantize=%s", model_id, architecture, dtype, device, quantize)
    info = ModelInfo(
        model_id=model_id,
        revision=_commit(folder) or revision,
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        quantize=quantize,
        architecture=architecture,
        compute_type=_compute_type(device),
        context_length=context_length,
        is_demo=is_demo,
        generation_defaults=_generation_defaults(folder),
        eos_token_ids=_eos_token_ids(model),
    )
    return LoadedModel(model, layer_shapes, dtype, device, config.get_text_config().vocab_size, info, packed)


def choose_device(requested: str | None) -> torch.device:
    """`cuda` when there is one, else `cpu`. Raises StartupError for a device that is not here."""
    if requested is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(requested)
    except RuntimeError as error:
        raise StartupError(f"--device {requested!r} is no device; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise StartupError(f"--device {requested!r} is not supported; use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise StartupError("--device cuda: torch finds no CUDA GPU; install a CUDA build of torch, or use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StartupError(f"--device {requested}: the GPUs here are cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device


def choose_dtype(requested: str | None, checkpoint: Any, device: torch.device, is_demo: bool) -> torch.dtype:
    """As asked for; else float32 for the demo, else the checkpoint's own (bfloat16 where CPUs lack fast float16)."""
    if requested is not None:
        if requested not in DTYPES:
            raise StartupError(f"--dtype {requested!r} is not supported; choose one of {', '.join(DTYPES)}")
        return DTYPES[requested]
    if is_demo:
        return torch.float32
    dtype = checkpoint if isinstance(checkpoint, torch.dtype) else torch.bfloat16
    return torch.bfloat16 if dtype is torch.float16 and device.type == "cpu" else dtype


def choose_quantize(
    requested: str | None, config: Any, device: torch.device, is_demo: bool, can_pack: bool = False
) -> str | None:
    """As asked for; by default nf4 on CUDA and, where the CPU kernels know the model, int8 on the CPU.

    Checkpoints that are quantized already are left as they are.
    """
    own = getattr(config, "quantization_config", None)
    if own is not None:
        if requested is not None:
            raise StartupError(f"--quantize {requested}: the checkpoint is quantized already; leave the flag out")
        return str(own.get("quant_method") if isinstance(own, dict) else getattr(own, "quant_method", "own"))
    if requested is not None:
        return None if requested == "none" else requested
    if device.type == "cuda" and not is_demo:
        return "bitsandbytes-nf4"
    return "int8" if can_pack else None


def native_obstacle(config: Any, dtype: torch.dtype, device: torch.device, options: LoadOptions) -> str | None:
    """Why the native decoder can not execute this model here; None if it can."""
    if device.type != "cpu":
        return f"they run on the CPU, not on {device.type}"
    if not options.may_pack:
        return "not wanted"
    if getattr(config, "quantization_config", None) is not None:
        return "the checkpoint is quantized already"
    if dtype is torch.float16 and options.quantize not in NATIVE_BITS:
        return "dtype float16"
    reason = packing.refusal(config)
    if reason is not None:
        return reason
    try:
        library.load()
    except library.UnavailableError as error:
        return str(error)
    return None


def _pack(model: Any, model_id: str, quantize: str | None, dtype: torch.dtype, context: int) -> packing.PackedModel:
    bits = NATIVE_BITS[quantize] if quantize is not None else 8 * dtype.itemsize
    try:
        return packing.pack(model, bits, context, torch.get_num_threads(), dtype)
    except library.UnavailableError as error:
        raise StartupError(f"{model_id!r} can not be packed: {error}") from error


def probe_layers(model: Any, model_id: str, device: torch.device) -> tuple[LayerShape, ...]:
    """Run one token and note what every layer wants cached.

    Running it, rather than reading the config, finds any architecture whose layers do not go through the attention
    interface (recurrent state, sinks); it is refused by name.
    """
    recorder = _ShapeRecorder()
    zero = torch.zeros(1, 1, dtype=torch.long, device=device)
    name = type(model).__name__
    try:
        with torch.inference_mode():
            model(input_ids=zero, position_ids=zero, use_cache=False, logits_to_keep=1, paged=recorder)
    except (NotImplementedError, TypeError) as error:
        raise StartupError(f"{model_id!r} ({name}) is not supported: {_first_line(error)}") from error
    num_layers = model.config.get_text_config().num_hidden_layers
    if sorted(recorder.shapes) != list(range(num_layers)):
        raise StartupError(
            f"{model_id!r} ({name}) is not supported: only {len(recorder.shapes)} of its {num_layers} layers are plain "
            "attention, and layers with recurrent state can not be paged"
        )
    return tuple(recorder.shapes[layer] for layer in range(num_layers))


class _ShapeRecorder:
    """Stands in for a step while probing: a token that sees only itself gets its own value back."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: attention.AttentionRules
    ) -> torch.Tensor:
        num_heads = key.shape[1]
        group = query.shape[1] // num_heads
        self.shapes[layer] = LayerShape(num_heads, key.shape[3], value.shape[3], group, rules.window, rules.softcap)
        return value[0].transpose(0, 1).repeat_interleave(group, dim=1)


def _silence_transformers() -> None:
    """What it would write to the terminal (progress bars, advice) is said by our own log and errors."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _load_config(folder: Path, model_id: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the file can hold anything, and Transformers checks little of it
        if "trust_remote_code" in str(error):
            raise StartupError(
                f"{model_id!r} needs Python code that it brings along, which is never run here; choose a model whose "
                "architecture Transformers knows"
            ) from error
        raise StartupError(f"config.json of {model_id!r} can not be used: {_first_line(error)}") from error


def _load_weights(
    folder: Path, model_id: str, config: Any, dtype: torch.dtype, device: torch.device, quantize: str | None
) -> Any:
    from transformers import AutoModelForCausalLM

    attention.register()
    options: dict[str, Any] = {}
    if quantize is not None and getattr(config, "quantization_config", None) is None:
        options["quantization_config"] = quantization_config(quantize, dtype)
    if quantize is not None or device.type == "cuda":
        options["device_map"] = {"": device}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            config=config,
            dtype=dtype,
            attn_implementation=attention.NAME,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    except torch.OutOfMemoryError as error:
        raise StartupError(f"{model_id!r} does not fit on {device}; choose a smaller model or --quantize") from error
    except Exception as error:  # config and weights can hold anything; every library below has its own errors
        raise StartupError(f"{model_id!r} can not be loaded: {_first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:  # filled with random numbers, to be trained
        raise StartupError(
            f"{model_id!r} lacks {len(missing)} of the weights its config.json names, first {missing[0]}"
        )
    return model.eval()


def _eos_token_ids(model: Any) -> frozenset[int]:
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, list) else [ids])
    return frozenset()


def _generation_defaults(folder: Path) -> GenerationDefaults:
    """What generation_config.json says of sampling; `do_sample: false` means greedy."""
    values = _read_object(folder / "generation_config.json")
    if values.get("do_sample") is False:
        return GenerationDefaults(temperature=0.0)

    def number(name: str) -> Any:
        value = values.get(name)
        return value if isinstance(value, int | float) else None

    return GenerationDefaults(
        temperature=number("temperature"),
        top_p=number("top_p"),
        top_k=number("top_k") or None,
        repetition_penalty=number("repetition_penalty"),
    )


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty when there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _commit(folder: Path) -> str | None:
    """The commit of a snapshot in the hub's cache, which is the folder's name there."""
    return folder.name if folder.parent.name == "snapshots" else None


def _compute_type(device: torch.device) -> str:
    """TGI's form: `1-nvidia-l4`."""
    if device.type == "cpu":
        return "cpu"
    return f"1-{torch.cuda.get_device_name(device).lower().replace(' ', '-')}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
