"""What is being served."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling values of the checkpoint's generation_config.json; None where it says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model, as far as clients are told of it."""

    model_id: str
    revision: str | None
    dtype: str
    device: str
    quantize: str | None
    architecture: str
    compute_type: str
    context_length: int
    is_demo: bool
    generation_defaults: GenerationDefaults
    eos_token_ids: frozenset[int]
