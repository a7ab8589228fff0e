"""A Transformers model -> the packed weights of the native decoder. Knows which architectures it can execute."""

from dataclasses import dataclass, field
from typing import Any

import torch

from tgi_local.model.native import library
from tgi_local.model.native.library import UnavailableError

# Those whose layers are exactly: norm, attention, add, norm, gated MLP, add.
MODEL_TYPES = frozenset({"gemma", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3"})
# The other kinds of rotary embedding depend on the length of the sequence.
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
ACTIVATIONS = {"silu": False, "gelu_pytorch_tanh": True}
MAX_HEAD_SIZE = 256


@dataclass(slots=True, weakref_slot=True, eq=False)
class PackedModel:
    """All that the kernels read, and what keeps it alive. `embed` turns token ids into float32 [tokens, hidden]."""

    embed: Any
    embedding_scale: float
    logits_scale: float
    decoder: library.Decoder
    layers: Any  # ctypes array of library.Layer
    team: int
    vocab_size: int
    _keep: list[torch.Tensor | library.Pages] = field(default_factory=list)


def refusal(config: Any) -> str | None:
    """Why the native decoder can not execute a model of this config; None if it can."""
    config = config.get_text_config()
    if config.model_type not in MODEL_TYPES:
        return f"architecture {config.model_type!r}"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in ROPE_TYPES:
        return f"rope type {rope['rope_type']!r}"
    if _activation(config) not in ACTIVATIONS:
        return f"activation {_activation(config)!r}"
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_size % 16 or head_size > MAX_HEAD_SIZE:
        return f"head size {head_size}"
    if getattr(config, "mlp_bias", False):
        return "an MLP with biases"
    if config.intermediate_size % 16:
        return f"an MLP of {config.intermediate_size} channels, which is no multiple of 16"
    return None


def _activation(config: Any) -> str:
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    return "gelu_pytorch_tanh" if config.model_type == "gemma" else str(name)


def pack(model: Any, bits: int, max_positions: int, num_threads: int, dtype: torch.dtype) -> PackedModel:
    """Pack `model` layer by layer, dropping its own weights on the way. `bits` is 4, 8, 16 or 32.

    The KV cache is float32 for a model of that `dtype`, else bfloat16. Raises UnavailableError for a model or a machine that the kernels do not know.
    """
    reason = refusal(model.config)
    if reason is not None:
        raise UnavailableError(f"they do not know {reason}")
    return _Packer(model, bits, num_threads, dtype).pack(max_positions)


class _Packer:
    def __init__(self, model: Any, bits: int, num_threads: int, dtype: torch.dtype) -> None:
        self._library = library.load()
        self._model = model
        self._config = model.config.get_text_config()
        self._bits = bits
        self._is_bf16 = dtype is not torch.float32
        team = self._library.team_create(num_threads)
        if team is None:
            raise MemoryError("no memory for threads")
        self._team: int = team
        self._keep: list[torch.Tensor | library.Pages] = []

    def pack(self, max_positions: int) -> PackedModel:
        base, config = self._model.model, self._config
        layers = (library.Layer * len(base.layers))()
        for index, layer in enumerate(base.layers):
            self._pack_layer(layers[index], layer)
        attention = base.layers[0].self_attn
        head_size = attention.head_dim
        cosines, sines = self._rotary(base, max_positions)
        # The head decides between tokens: at 4 bits it keeps 8, as is usual.
        head = self._linear([self._model.lm_head.weight], None, max(self._bits, 8))
        decoder = library.Decoder(
            num_layers=len(layers),
            hidden=config.hidden_size,
            num_heads=config.num_attention_heads,
            intermediate=config.intermediate_size,
            rotary_size=2 * cosines.shape[1],
            max_positions=max_positions,
            is_gelu=ACTIVATIONS[_activation(config)],
            epsilon=config.rms_norm_eps,
            attention_scale=attention.scaling,
            residual_scale=getattr(config, "residual_multiplier", 1.0),
            cache=library.CacheShape(config.num_key_value_heads, head_size, self._is_bf16),
            layers=layers,
            final_norm=self._norm(base.norm),
            cosines=self._pointer(cosines),
            sines=self._pointer(sines),
            head=head,
        )
        if self._model.lm_head.weight is not base.embed_tokens.weight:
            _drop(self._model.lm_head)
        packed = PackedModel(
            embed=base.embed_tokens,
            embedding_scale=getattr(config, "embedding_multiplier", 1.0),
            logits_scale=1.0 / getattr(config, "logits_scaling", 1.0),
            decoder=decoder,
            layers=layers,
            team=self._team,
            vocab_size=config.vocab_size,
            _keep=self._keep,
        )
        library.when_gone(packed, self._library.team_destroy, self._team)
        self._library.pages_return_freed()
        return packed

    def _pack_layer(self, out: library.Layer, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        if hasattr(attention, "qkv_proj"):
            projections = [attention.qkv_proj]
        else:
            projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        if hasattr(mlp, "gate_up_proj"):
            gate, up = mlp.gate_up_proj.weight.chunk(2)
        else:
            gate, up = mlp.gate_proj.weight, mlp.up_proj.weight
        out.qkv = self._linear([p.weight for p in projections], [p.bias for p in projections], self._bits)
        out.output = self._linear([attention.o_proj.weight], [attention.o_proj.bias], self._bits)
        out.gate_up = self._linear([_interleave(gate, up)], None, self._bits)
        out.down = self._linear([mlp.down_proj.weight], None, self._bits)
        out.attention_norm = self._norm(layer.input_layernorm)
        out.mlp_norm = self._norm(layer.post_attention_layernorm)
        if hasattr(attention, "q_norm"):
            out.query_norm, out.key_norm = self._norm(attention.q_norm), self._norm(attention.k_norm)
        out.window = self._window(attention)
        out.is_rotary = int(getattr(attention, "use_rope", True))
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                _drop(module)

    def _linear(
        self, weights: list[torch.Tensor], biases: list[torch.Tensor | None] | None, bits: int
    ) -> library.Linear:
        weight = torch.cat([w.detach().float() for w in weights]).contiguous()
        outputs, inputs = weight.shape
        panels = library.Pages(self._library.linear_bytes(bits, inputs, outputs))
        self._library.linear_pack(self._team, bits, inputs, outputs, weight.data_ptr(), panels.address)
        self._keep.append(panels)
        bias = None
        if biases is not None and biases[0] is not None:
            bias = self._pointer(torch.cat([b.detach().float() for b in biases if b is not None]))
        return library.Linear(bits, inputs, outputs, panels.address, bias)

    def _norm(self, module: Any) -> int:
        weight = module.weight.detach().float()
        return self._pointer(weight + 1.0 if self._config.model_type == "gemma" else weight)

    def _window(self, attention: Any) -> int:
        """Mistral and Phi-3 have one window for all layers in their config, the others say it layer by layer."""
        owner = self._config if self._config.model_type in ("mistral", "phi3") else attention
        return getattr(owner, "sliding_window", None) or 0

    def _rotary(self, base: Any, max_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.arange(max_positions)[None]
        cosines, sines = base.rotary_emb(torch.zeros(1, 1, 1), positions)
        half = cosines.shape[-1] // 2
        return cosines[0, :, :half].float().contiguous(), sines[0, :, :half].float().contiguous()

    def _pointer(self, tensor: torch.Tensor) -> int:
        """Where a float32 tensor lies, which is kept from now on."""
        tensor = tensor.detach().float().contiguous().clone()
        self._keep.append(tensor)
        return tensor.data_ptr()


def _interleave(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Panels of 16 gate channels and the 16 up channels they go with; both [intermediate, hidden]."""
    size = gate.shape[0]
    both = torch.stack([gate.detach().view(size // 16, 16, -1), up.detach().view(size // 16, 16, -1)], dim=1)
    return both.reshape(2 * size, -1)


def _drop(linear: Any) -> None:
    linear.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
