"""Paged attention, registered with Transformers' attention interface.

All rows of a step are laid end to end in one sequence of T tokens; keys and values go to the cache slots named by
`slots`, and every row attends to its own context only. Shapes: T tokens, B decode rows, H query heads, K key-value
heads, G = H / K, D head size, L context length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from tgi_local.model.kv_cache import KVCache

NAME = "tgi_local_paged"


@dataclass(frozen=True, slots=True)
class AttentionRules:
    """How one layer attends. `scaling` None is D ** -0.5; a query sees the last `window` tokens, itself included."""

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None


class AttentionStep(Protocol):
    """What a model's attention layers need to know of a step: where its tokens live and what they see."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
    ) -> torch.Tensor:
        """query [1, H, T, D], key and value [1, K, T, D] -> [T, H, D]; keys and values go to the cache."""
        ...


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """One row of several new tokens: tokens [first, last) of the step at positions from `start`.

    `context_slots` [L] are the cache slots of its whole context, new tokens included; None when there is no earlier
    context, so that the step's own keys and values are the context.
    """

    first: int
    last: int
    start: int
    context_slots: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows of one new token each and an earlier context: tokens [B] of the step, and slots [B, L] padded beyond lens [B]."""

    tokens: torch.Tensor
    slots: torch.Tensor
    lens: torch.Tensor


@dataclass(slots=True)
class PagedStep:
    """Where the tokens of one step live; contexts are gathered from the cache for torch's own attention."""

    cache: KVCache
    slots: torch.Tensor
    decodes: Sequence[DecodeRows]
    prefills: Sequence[PrefillSpan]
    _masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
    ) -> torch.Tensor:
        """query [1, H, T, D], key and value [1, K, T, D] -> [T, H, D]; keys and values go to the cache."""
        keys, values = self.cache.write(layer, self.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
        queries = query[0].transpose(0, 1)
        out = torch.empty(queries.shape[0], queries.shape[1], values.shape[-1], dtype=query.dtype, device=query.device)
        for group, rows in enumerate(self.decodes):
            mask = self._decode_mask(group, rules.window, query.dtype)
            out[rows.tokens] = _decode(queries[rows.tokens], keys, values, rows.slots, mask, rules)
        for span in self.prefills:
            new = slice(span.first, span.last)
            if span.context_slots is None:
                k, v = key[:, :, new], value[:, :, new]
            else:
                k = _gather(keys, span.context_slots[None]).transpose(1, 2)
                v = _gather(values, span.context_slots[None]).transpose(1, 2)
            out[new] = _prefill(query[:, :, new], k, v, span.start, rules)
        return out

    def _decode_mask(self, group: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask [B, 1, 1, L]; built once per step, group and window size."""
        mask = self._masks.get((group, window))
        if mask is None:
            rows = self.decodes[group]
            positions = torch.arange(rows.slots.shape[1], device=rows.slots.device)
            lens = rows.lens[:, None]
            hidden = positions >= lens
            if window is not None:
                hidden |= positions < lens - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            mask = self._masks[group, window] = mask[:, None, None, :]
        return mask


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    paged: AttentionStep | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention signature: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D]."""
    if paged is None:
        raise NotImplementedError("the model does not hand its attention the step's cache")
    if s_aux is not None:
        raise NotImplementedError("attention sinks")
    rules = AttentionRules(scaling, sliding_window, softcap)
    return paged.attend(module.layer_idx, query, key, value, rules)[None], None  # type: ignore[arg-type]


def _decode(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    mask: torch.Tensor,
    rules: AttentionRules,
) -> torch.Tensor:
    """queries [B, H, D] against the contexts at `slots` [B, L] -> [B, H, D]."""
    k = _gather(keys, slots).transpose(1, 2)  # [B, K, L, D]
    v = _gather(values, slots).transpose(1, 2)
    # A GQA group's heads become query rows: enable_gqa is an order of magnitude slower on the CPU.
    grouped = queries.view(queries.shape[0], k.shape[1], -1, queries.shape[-1])  # [B, K, G, D]
    out = _attend(grouped, k, v, mask, rules)
    return out.reshape(queries.shape[0], queries.shape[1], -1)


def _gather(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Rows of cache [slots, K, D] at `slots` [B, L] -> [B, L, K, D]; indexing would be slower on the CPU."""
    return cache.flatten(1).index_select(0, slots.flatten()).view(*slots.shape, *cache.shape[1:])


def _prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    start: int,
    rules: AttentionRules,
) -> torch.Tensor:
    """query [1, H, N, D] at positions from `start` against key, value [1, K, L, D] -> [N, H, D]."""
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)
    num_new, context = query.shape[2], key.shape[2]
    window = rules.window
    if start == 0 and window is None and rules.softcap is None:
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=rules.scaling)
    else:
        rows = torch.arange(start, start + num_new, device=query.device)[:, None]
        columns = torch.arange(context, device=query.device)[None]
        hidden = columns > rows
        if window is not None:
            hidden |= columns <= rows - window
        mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, float("-inf"))
        out = _attend(query, key, value, mask, rules)
    return out[0].transpose(0, 1)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    rules: AttentionRules,
) -> torch.Tensor:
    softcap = rules.softcap
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=rules.scaling)
    # Gemma 2's logit soft-capping, which the fused kernels do not know: softcap * tanh(scores / softcap).
    scale = rules.scaling if rules.scaling is not None else query.shape[-1] ** -0.5
    scores = torch.tanh(query @ key.transpose(-1, -2) * scale / softcap) * softcap
    return torch.softmax(scores + mask, dim=-1, dtype=torch.float32).to(query.dtype) @ value


def register() -> None:
    """Make the attention known to Transformers under NAME. Without a mask function of its own no mask is built."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, paged_attention)
