"""The Triton kernels: what they compute, by Triton's interpreter, and that they compile for GPUs that are not here.

Each in a process of its own: Triton decides when a kernel is defined whether it is interpreted.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds for Linux")

ROOT = Path(__file__).resolve().parents[2]

INTERPRET = """
import torch
from tgi_local.model import kernel_choice
from tgi_local.model.attention_triton import TritonKernel
from tgi_local.model.kv_cache import LayerShape

kernel_choice.TRIED_LENS, kernel_choice.TRIED_CHUNK = (1, 20, 150), 20  # the interpreter is slow
shapes = [LayerShape(2, 16, 16, 2, 40), LayerShape(1, 24, 48, 7, None, 20.0), LayerShape(3, 16, 16, 1)]
for dtype, num_processors in ((torch.float32, 1), (torch.float16, 9)):  # contexts whole, and divided
    print(kernel_choice.check(TritonKernel(num_processors), shapes, dtype, torch.device("cpu")))
"""

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tgi_local.model import attention_triton as kernels

capability, dtype, size, heads, group = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), 32, 4
item = 4 if dtype == "fp32" else 2
for is_decode in (True, False):
    for is_split in (True, False):
        tile = kernels._Tile.of(is_decode, group, size * item)
        constants = dict(
            NUM_HEADS=heads, GROUP=group, KEY_SIZE=size, VALUE_SIZE=size, BLOCK_SIZE=16, WINDOW=0, HAS_SOFTCAP=False,
            IS_DECODE=is_decode, IS_SPLIT=is_split, PRECISION="ieee" if dtype == "fp32" else "tf32",
            BLOCK_M=tile.rows, BLOCK_Q=tile.queries, BLOCK_N=tile.keys, BLOCK_K=size, BLOCK_V=size,
        )
        parts = "*fp32" if is_split else f"*{dtype}"
        types = dict.fromkeys(("query", "keys", "values", "out"), f"*{dtype}")
        types |= dict.fromkeys(("part_out", "part_max", "part_sum"), parts)
        types |= dict.fromkeys(("table", "starts", "lens"), "*i32") | dict.fromkeys(("scale", "softcap"), "fp32")
        names = kernels._attend.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
        source = ASTSource(kernels._attend, signature, {(names.index(k),): v for k, v in constants.items()})
        options = dict(num_warps=tile.num_warps, num_stages=2)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        print(compiled.metadata.shared)
"""


def run(code: str, *args: str, cache: Path, interpret: bool = False) -> list[str]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "TRITON_INTERPRET": str(int(interpret))}
    command = [sys.executable, "-W", "ignore", "-c", code, *args]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.split("\n")[:-1]


def test_they_compute_what_plain_torch_computes(tmp_path: Path) -> None:
    assert run(INTERPRET, cache=tmp_path, interpret=True) == ["None"] * 2


@pytest.mark.long
@pytest.mark.parametrize(
    ("capability", "dtype", "head_size"), [(80, "bf16", 128), (86, "fp16", 256), (90, "bf16", 64), (86, "fp32", 256)]
)
def test_they_compile_and_fit_the_shared_memory_of_small_gpus(
    tmp_path: Path, capability: int, dtype: str, head_size: int
) -> None:
    """99 KiB is what a thread block has from compute capability 8.6 on; 8.0 and 9.0 have more."""
    used = run(COMPILE, str(capability), dtype, str(head_size), cache=tmp_path)
    assert len(used) == 4 and all(int(size) <= 99 * 1024 for size in used)
