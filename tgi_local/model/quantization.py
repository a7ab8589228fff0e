"""Quantization method names (TGI's) and what each one means to Transformers."""

from typing import Any

import torch

from tgi_local.errors import StartupError

BITSANDBYTES = ("bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4")
# Our own, on the CPU: bits of a weight. Activations are 8 bits, with a scale per token and group of 64.
NATIVE_BITS = {"int8": 8, "int4": 4}
METHODS = (*NATIVE_BITS, *BITSANDBYTES)


def quantization_config(method: str, compute_dtype: torch.dtype) -> Any:
    """The `BitsAndBytesConfig` for `method`. Raises StartupError for an unknown one or a missing library."""
    if method not in BITSANDBYTES:
        raise StartupError(f"--quantize {method!r} is not supported; choose one of {', '.join(METHODS)}")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise StartupError(f"--quantize {method} needs the bitsandbytes package: pip install bitsandbytes") from error
    from transformers import BitsAndBytesConfig

    if method == "bitsandbytes":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=method.removeprefix("bitsandbytes-"),
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=True,
    )
