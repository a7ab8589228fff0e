"""The cache keeps what is written where it is written, and its size is what was asked for or what fits."""

import pytest
import torch

from tgi_local.errors import StartupError
from tgi_local.model.kv_cache import KVCache, LayerShape, bytes_per_token, choose_num_blocks

CPU = torch.device("cpu")
SHAPES = (LayerShape(2, 4, 4), LayerShape(1, 8, 6))


def test_bytes_per_token() -> None:
    assert bytes_per_token(SHAPES, torch.float32) == (2 * (4 + 4) + 1 * (8 + 6)) * 4
    assert bytes_per_token(SHAPES, torch.bfloat16) == (2 * (4 + 4) + 1 * (8 + 6)) * 2
    assert bytes_per_token([LayerShape(8, 128, 128)] * 32, torch.float16) == 131_072, "Llama 3 8B"


def test_memory_is_what_bytes_per_token_says() -> None:
    cache = KVCache(SHAPES, num_blocks=5, block_size=16, dtype=torch.bfloat16, device=CPU)
    tensors = [*cache._keys, *cache._values]
    assert sum(t.numel() * t.element_size() for t in tensors) == 5 * 16 * bytes_per_token(SHAPES, torch.bfloat16)


def test_written_values_are_found_at_their_slots_and_others_stay() -> None:
    cache = KVCache(SHAPES, num_blocks=4, block_size=2, dtype=torch.float32, device=CPU)
    first = torch.tensor([5, 0, 3])
    keys, values = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    all_keys, all_values = cache.write(0, first, keys, values)
    assert all_keys.shape == all_values.shape == (8, 2, 4)
    assert torch.equal(all_keys[first], keys) and torch.equal(all_values[first], values)
    second = torch.tensor([1])
    all_keys, all_values = cache.write(0, second, keys[:1] + 1, values[:1] + 1)
    assert torch.equal(all_keys[first], keys) and torch.equal(all_keys[1], keys[0] + 1)
    untouched = [2, 4, 6, 7]
    assert not all_keys[untouched].any() and not all_values[untouched].any()
    assert not any(t.any() for t in (cache._keys[1], cache._values[1])), "layers are apart"


def test_other_number_formats_are_converted() -> None:
    cache = KVCache(SHAPES[:1], num_blocks=1, block_size=2, dtype=torch.bfloat16, device=CPU)
    keys, _ = cache.write(0, torch.tensor([1]), torch.ones(1, 2, 4), torch.ones(1, 2, 4))
    assert keys.dtype is torch.bfloat16 and keys[1].eq(1).all()


@pytest.mark.parametrize(
    ("free_tokens", "min_tokens", "max_tokens", "requested", "want_tokens"),
    [
        (1000, 100, 500, None, 500),
        (300, 100, 500, None, 300),
        (100, 100, 500, None, 100),
        (1000, 100, 500, 800, 800),
        (1000, 100, 500, 100, 100),
        (1000, 100, 500, 1000, 1000),
    ],
    ids=["enough", "what fits", "just one request", "more than useful", "less than useful", "all there is"],
)
def test_number_of_blocks(
    free_tokens: int, min_tokens: int, max_tokens: int, requested: int | None, want_tokens: int
) -> None:
    for token_bytes in (1, 131_072):
        free = free_tokens * token_bytes
        got = choose_num_blocks(token_bytes, free, 16, min_tokens, max_tokens, requested)
        assert got * 16 >= want_tokens > (got - 1) * 16, "whole blocks, none too many"


def test_a_longest_request_always_fits_even_when_it_is_no_multiple_of_the_block_size() -> None:
    for tokens in range(1, 70):
        assert choose_num_blocks(1, tokens, 16, tokens, tokens, None) * 16 >= tokens


@pytest.mark.parametrize(
    ("free_tokens", "requested", "words"),
    [
        (1000, 1001, ["--max-batch-total-tokens 1001", "at most 1000"]),
        (1000, 99, ["99 tokens", "--max-batch-total-tokens to at least 100", "--max-total-tokens to 99"]),
        (99, None, ["99 tokens", "100", "--max-total-tokens to at most 99"]),
        (0, None, ["no memory", "0.0 GiB are free", "--model-id", "--quantize"]),
        (15, None, ["no memory"]),
        (-5000, None, ["no memory", "0.0 GiB are free"]),
        (-5000, 100, ["--max-batch-total-tokens 100", "0.0 GiB are free", "at most 0"]),
    ],
    ids=[
        "asked for too much",
        "asked for too little",
        "too little memory",
        "none",
        "no block",
        "debts",
        "asked of debts",
    ],
)
def test_what_does_not_fit_says_what_would(free_tokens: int, requested: int | None, words: list[str]) -> None:
    with pytest.raises(StartupError) as caught:
        choose_num_blocks(1024, free_tokens * 1024, 16, 100, 500, requested)
    line = str(caught.value)
    assert all(word in line for word in words) and "\n" not in line
