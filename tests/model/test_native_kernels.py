"""The C kernels against the same arithmetic in NumPy and torch, in shapes that are no multiples of anything."""

import ctypes
from collections.abc import Callable, Iterator
from ctypes import POINTER, c_float, c_int, c_void_p

import numpy as np
import pytest
import torch

from tgi_local.model.native import library
from tgi_local.model.native.greedy import GreedyChooser

PANEL, GROUP, LANES, BLOCK, STRETCH = 32, 64, 16, 16, 256
STORE, ADD, GATE_SILU, GATE_GELU = range(4)
WORK = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
Array = np.ndarray


class Activations(ctypes.Structure):
    """linear.h"""

    _fields_ = (("values", c_void_p), ("codes", c_void_p), ("scales", c_void_p), ("sums", c_void_p))


class Kernels:
    """A compiled library with a team of threads, and the calls that the decoder makes inside of itself."""

    def __init__(self, compiled: ctypes.CDLL, num_threads: int = 2) -> None:
        self.library = compiled
        self.team = compiled.team_create(num_threads)
        for name, arguments in {
            "team_run": (c_void_p, WORK, c_void_p),
            "next_phase": (c_void_p,),
            "num_tiles": (c_int,),
            "tile_start": (c_int, c_int),
            "quantize_tile": (POINTER(Activations), c_int, c_int, c_int, c_int, c_int),
            "linear_run": (
                c_void_p,
                POINTER(library.Linear),
                POINTER(Activations),
                c_int,
                c_void_p,
                c_int,
                c_int,
                c_float,
            ),
            "cache_write": (POINTER(library.CacheShape), c_void_p, c_void_p, c_int, c_int, c_int, c_void_p, c_void_p),
            "attend": (
                POINTER(library.CacheShape),
                c_void_p,
                c_void_p,
                c_int,
                c_void_p,
                c_int,
                c_void_p,
                c_void_p,
                c_int,
            )
            + (c_void_p, c_void_p),
        }.items():
            getattr(compiled, name).argtypes = arguments

    def close(self) -> None:
        self.library.team_destroy(self.team)

    def pack(self, bits: int, weights: Array) -> Array:
        outputs, inputs = weights.shape
        panels = np.empty(self.library.linear_bytes(bits, inputs, outputs), np.uint8)
        self.library.linear_pack(self.team, bits, inputs, outputs, weights.ctypes.data, panels.ctypes.data)
        return panels

    def linear(
        self,
        bits: int,
        panels: Array,
        bias: Array | None,
        x: Array,
        out: Array,
        epilogue: int = STORE,
        scale: float = 1.0,
    ) -> None:
        """`out` [tokens, width] is written or added to; a gated one has half as many columns as the linear outputs."""
        (tokens, inputs), groups = x.shape, -(-x.shape[1] // GROUP)
        outputs = out.shape[1] * (2 if epilogue in (GATE_SILU, GATE_GELU) else 1)
        linear = library.Linear(bits, inputs, outputs, panels.ctypes.data, None if bias is None else bias.ctypes.data)
        codes, scales = np.empty((tokens, groups * GROUP), np.int8), np.empty((tokens, groups), np.float32)
        sums = np.empty((tokens, groups), np.int32)
        activations = Activations(x.ctypes.data, codes.ctypes.data, scales.ctypes.data, sums.ctypes.data)
        if bits <= 8:
            for tile in range(self.library.num_tiles(tokens)):
                self.library.quantize_tile(activations, tokens, tile, inputs, 0, groups)

        def work(_: int, member: int) -> None:
            self.library.linear_run(member, linear, activations, tokens, out.ctypes.data, out.shape[1], epilogue, scale)
            self.library.next_phase(member)

        self.library.team_run(self.team, WORK(work), None)


@pytest.fixture(scope="module")
def kernels() -> Iterator[Kernels]:
    try:
        kernels = Kernels(library.load())
    except library.UnavailableError as error:
        pytest.skip(str(error))
    yield kernels
    kernels.close()


@pytest.fixture(scope="module")
def avx2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernels]:
    """The variant for processors without AVX-512."""
    with pytest.MonkeyPatch.context() as patch:
        others = {"-march=native": "-march=x86-64-v3", "-O3": "-O1"}  # less to wait for
        patch.setattr(library, "FLAGS", tuple(others.get(flag, flag) for flag in library.FLAGS))
        folder = tmp_path_factory.mktemp("avx2")
        patch.setattr(library.paths, "cache_dir", lambda: folder)
        try:
            compiled = library.load.__wrapped__()
        except library.UnavailableError as error:
            pytest.skip(str(error))
    kernels = Kernels(compiled)
    yield kernels
    kernels.close()


@pytest.fixture(params=["native", "avx2"])
def variant(request: pytest.FixtureRequest) -> Kernels:
    """Each of the two; for checks that are worth both."""
    return request.getfixturevalue("kernels" if request.param == "native" else "avx2")


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


# ---- The reference: the formats of linear.h, decoded.


def bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def unpack(bits: int, panels: Array, outputs: int, inputs: int) -> Array:
    """Packed panels -> the weights they stand for, float64 [outputs, inputs]."""
    groups, num_panels = -(-inputs // GROUP), -(-outputs // PANEL)
    panels = panels.reshape(num_panels, -1)
    if bits >= 16:
        numbers = bf16(panels.view(np.uint16)) if bits == 16 else panels.view(np.float32)
        weights = numbers.reshape(num_panels, inputs, PANEL).transpose(0, 2, 1)
        return weights.reshape(-1, inputs)[:outputs].astype(np.float64)
    size = GROUP * PANEL * bits // 8
    if bits == 8:
        codes = panels[:, : groups * size].reshape(num_panels, groups, GROUP // 4, PANEL, 4).astype(np.int64) - 128
        scales = panels[:, groups * size :].copy().view(np.float32)[:, None]
    else:
        parts = panels.reshape(num_panels, groups, size + 2 * PANEL)
        nibbles = parts[:, :, :size].reshape(num_panels, groups, GROUP // 4, LANES, 4)
        codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=3).astype(np.int64) - 8
        scales = bf16(parts[:, :, size:].copy().view(np.uint16))
    weights = codes.transpose(0, 1, 3, 2, 4).reshape(num_panels, groups, PANEL, GROUP) * scales[..., None].astype(float)
    return weights.transpose(0, 2, 1, 3).reshape(num_panels * PANEL, groups * GROUP)[:outputs, :inputs]


def quantize(x: Array) -> Array:
    """What the kernels read activations as: signed bytes with a scale per token and group, float64 [tokens, inputs]."""
    tokens, inputs = x.shape
    padded = np.zeros((tokens, -(-inputs // GROUP), GROUP), np.float32)
    padded.reshape(tokens, -1)[:, :inputs] = x
    extreme = np.abs(padded).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), extreme, out=np.zeros_like(extreme), where=extreme > 0)
    codes = np.rint(padded.astype(np.float64) * inverse)
    return (codes * (extreme / np.float32(127))).reshape(tokens, -1)[:, :inputs]


def reference(bits: int, panels: Array, outputs: int, x: Array) -> tuple[Array, Array]:
    """The product in float64, and the sum of its terms' magnitudes, by which rounding errors are measured."""
    weights = unpack(bits, panels, outputs, x.shape[1])
    values = quantize(x) if bits <= 8 else x.astype(np.float64)
    return values @ weights.T, np.abs(values) @ np.abs(weights).T


BITS = pytest.mark.parametrize("bits", [4, 8, 16, 32])


@BITS
@pytest.mark.parametrize("inputs", [1, 63, 65, 256])
@pytest.mark.parametrize("outputs", [1, 31, 32, 33, 96])
def test_packed_weights_are_the_nearest(kernels: Kernels, bits: int, outputs: int, inputs: int) -> None:
    weights = normal(outputs, inputs)
    got = unpack(bits, kernels.pack(bits, weights), outputs, inputs)
    if bits == 32:
        assert np.array_equal(got, weights)
        return
    if bits == 16:
        assert np.array_equal(got, torch.from_numpy(weights).bfloat16().double().numpy())
        return
    extreme = np.abs(weights).max(axis=1, keepdims=True)
    if bits == 4:
        starts = range(0, inputs, GROUP)
        blocks = [
            np.repeat(np.abs(weights[:, i : i + GROUP]).max(axis=1, keepdims=True), GROUP, axis=1) for i in starts
        ]
        extreme = np.concatenate(blocks, axis=1)[:, :inputs]
    step = extreme / (2 ** (bits - 1)) * (1 + 2**-8)
    error = np.abs(got - weights)
    is_opposite = np.abs(weights) > extreme - step * 0.6  # as large as the largest, of the other sign: no code for it
    assert np.all(error <= np.where(is_opposite, step * 1.04, step * 0.52 + extreme * 2**-8))


@pytest.mark.parametrize("tokens", [1, 2, 5, 7, 40])
@pytest.mark.parametrize("inputs", [1, 63, 65, 200])
@BITS
def test_linear(variant: Kernels, bits: int, inputs: int, tokens: int) -> None:
    for outputs in (1, 31, 33, 70):
        weights, x, bias = normal(outputs, inputs), normal(tokens, inputs, seed=1), normal(1, outputs, seed=2)[0]
        panels = variant.pack(bits, weights)
        want, size = reference(bits, panels, outputs, x)
        out = np.full((tokens, outputs), np.nan, np.float32)
        variant.linear(bits, panels, None, x, out)
        assert np.all(np.abs(out - want) <= 1e-6 * size + 1e-30)
        variant.linear(bits, panels, bias, x, out)
        assert np.all(np.abs(out - want - bias) <= 1e-6 * (size + np.abs(bias)))
        before = normal(tokens, outputs, seed=3)
        out = before.copy()
        variant.linear(bits, panels, bias, x, out, ADD, 0.5)
        assert np.all(np.abs(out - before - 0.5 * (want + bias)) <= 1e-6 * (size + np.abs(bias) + np.abs(before)))


@pytest.mark.parametrize("tokens", range(1, 41))
def test_every_number_of_tokens(kernels: Kernels, tokens: int) -> None:
    weights, x = normal(33, 130), normal(tokens, 130, seed=1)
    for bits in (4, 8, 16, 32):
        panels = kernels.pack(bits, weights)
        want, size = reference(bits, panels, 33, x)
        out = np.empty((tokens, 33), np.float32)
        kernels.linear(bits, panels, None, x, out)
        assert np.all(np.abs(out - want) <= 1e-6 * size)


@BITS
@pytest.mark.parametrize("epilogue", [GATE_SILU, GATE_GELU])
def test_gated(variant: Kernels, bits: int, epilogue: int) -> None:
    tokens, inputs, width = 7, 65, 48
    # Gates from -200 to 200: e^x alone would overflow.
    weights, x = normal(2 * width, inputs), normal(tokens, inputs, seed=1) * np.geomspace(0.1, 8, tokens)[:, None]
    x = x.astype(np.float32)
    panels = variant.pack(bits, weights)
    product = torch.from_numpy(reference(bits, panels, 2 * width, x)[0]).view(tokens, width // LANES, 2, LANES)
    gate, up = product[:, :, 0].reshape(tokens, width), product[:, :, 1].reshape(tokens, width)
    silu, gelu = torch.nn.functional.silu, torch.nn.functional.gelu
    want = (silu(gate) if epilogue == GATE_SILU else gelu(gate, approximate="tanh")) * up
    out = np.empty((tokens, width), np.float32)
    variant.linear(bits, panels, None, x, out, epilogue)
    assert np.allclose(out, want.numpy(), rtol=1e-4, atol=1e-4)


@BITS
def test_what_is_no_number_stays_none(variant: Kernels, bits: int) -> None:
    weights, x = normal(40, 100), normal(6, 100, seed=1)
    clean, out = np.empty((6, 40), np.float32), np.empty((6, 40), np.float32)
    panels = variant.pack(bits, weights)
    variant.linear(bits, panels, None, x, clean)
    x[1, 70], x[4, 3] = np.nan, np.inf
    variant.linear(bits, panels, None, x, out)
    assert not np.isfinite(out[[1, 4]]).any()
    assert np.array_equal(out[[0, 2, 3, 5]], clean[[0, 2, 3, 5]])
    weights[7, 9] = np.nan
    variant.linear(bits, variant.pack(bits, weights), None, x, out)
    assert np.isnan(out[:, 7]).all()
    assert np.array_equal(np.delete(out[[0, 2, 3, 5]], 7, axis=1), np.delete(clean[[0, 2, 3, 5]], 7, axis=1))


# ---- Attention.


def attend(
    kernels: Kernels, k: Array, v: Array, queries: Array, positions: list[int], window: int, is_bf16: bool, head: int
) -> Array:
    """One head of `k` and `v` [length, heads, size] by `attend`, over blocks in disorder among NaN."""
    length, heads, size = k.shape
    shape = library.CacheShape(heads, size, is_bf16)
    num_blocks = -(-length // BLOCK)
    table = np.random.default_rng(length).permutation(num_blocks + 3)[:num_blocks].astype(np.int32)
    caches = [np.zeros((num_blocks + 3) * BLOCK * heads * size, np.uint16 if is_bf16 else np.float32) for _ in "kv"]
    for position in range(length):
        for h in range(heads):
            key, value = np.ascontiguousarray(k[position, h]), np.ascontiguousarray(v[position, h])
            block, offset = int(table[position // BLOCK]), position % BLOCK
            kernels.library.cache_write(
                shape,
                caches[0].ctypes.data,
                caches[1].ctypes.data,
                block,
                offset,
                h,
                key.ctypes.data,
                value.ctypes.data,
            )
    out = np.empty_like(queries)
    for first in range(0, len(queries), 8):
        part = slice(first, first + 8)
        rows, places = queries[part], np.asarray(positions[part], np.int32)
        pointers = [(c_void_p * len(rows))(*(row.ctypes.data for row in array)) for array in (rows, out[part])]
        kernels.library.attend(
            shape, caches[0].ctypes.data, caches[1].ctypes.data, head, table.ctypes.data, len(rows), pointers[0],
            places.ctypes.data, window, pointers[1], None,
        )  # fmt: skip
    return out


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("window", [0, 1, 24, 300])
@pytest.mark.parametrize(("length", "size"), [(1, 16), (15, 256), (17, 48), (256, 64), (257, 128), (700, 32)])
def test_attention(variant: Kernels, length: int, size: int, window: int, is_bf16: bool) -> None:
    heads = 2
    k, v = normal(length, heads, size), normal(length, heads, size, seed=1)
    positions = sorted({length - 1, length // 2, *range(max(0, length - 11), length, 2)})
    queries = normal(len(positions), size, seed=2) / size**0.5
    keys, values = (torch.from_numpy(x[:, 1]).to(torch.bfloat16 if is_bf16 else torch.float32).double() for x in (k, v))
    distance = torch.tensor(positions)[:, None] - torch.arange(length)
    mask = (distance >= 0) & (distance < (window or length))
    want = torch.nn.functional.scaled_dot_product_attention(
        torch.from_numpy(queries).double()[None], keys[None], values[None], attn_mask=mask, scale=1.0
    )[0]
    got = attend(variant, k, v, queries, positions, window, is_bf16, head=1)
    assert np.allclose(got, want.numpy(), rtol=1e-5, atol=2e-6)


def test_attention_is_the_same_alone_and_beside_others(variant: Kernels) -> None:
    k, v, positions = normal(600, 1, 32), normal(600, 1, 32, seed=1), [3, 255, 256, 257, 511, 512, 598, 599]
    queries = normal(8, 32, seed=2)
    for window in (0, 100):
        together = attend(variant, k, v, queries, positions, window, True, head=0)
        for i, position in enumerate(positions):
            alone = attend(variant, k, v, queries[i : i + 1], [position], window, True, head=0)
            assert np.array_equal(alone[0], together[i])


# ---- The most likely token.


def choose(kernels: Kernels, logits: torch.Tensor, rows: list[int]) -> list[tuple[int, float] | None]:
    chosen = GreedyChooser(kernels.team)
    chosen._library = kernels.library
    return [None if token is None else (token.id, token.logprob) for token in chosen.choose(logits, rows)]


def with_ties(logits: torch.Tensor) -> None:
    logits[:, -1] = logits[:, logits.shape[1] // 2] = logits.max() + 1


def with_excluded(logits: torch.Tensor) -> None:
    logits[:, : logits.shape[1] - 1] = -torch.inf


def with_nothing(logits: torch.Tensor) -> None:
    pass


@pytest.mark.parametrize("vocabulary", [1, 3, 7, 8, 15, 17, 129, 1000, 4099])
@pytest.mark.parametrize("change", [with_nothing, with_ties, with_excluded])
def test_greedy(variant: Kernels, vocabulary: int, change: Callable[[torch.Tensor], None]) -> None:
    logits = torch.from_numpy(normal(70, vocabulary) * 10)
    change(logits)
    rows = [5, 0, 69, *range(67)]
    want = logits.double().log_softmax(-1)
    for row, chosen in zip(rows, choose(variant, logits, rows), strict=True):
        assert chosen is not None
        first = int((logits[row] == logits[row].max()).nonzero()[0])
        assert chosen == (first, pytest.approx(want[row, first].item(), abs=3e-6))


@pytest.mark.parametrize("vocabulary", [1, 5, 17, 1000])
def test_greedy_finds_no_token_beside_what_is_no_number(variant: Kernels, vocabulary: int) -> None:
    logits = torch.from_numpy(normal(5, vocabulary))
    for row, value in ((1, torch.nan), (3, torch.inf)):
        logits[row, (vocabulary - 1) // 2] = value
    logits[4] = -torch.inf
    alone = choose(variant, logits[:1].clone(), [0]) + choose(variant, logits[2:3].clone(), [0])
    assert choose(variant, logits, list(range(5))) == [alone[0], None, alone[1], None, None]
