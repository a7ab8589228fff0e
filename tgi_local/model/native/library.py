"""The C kernels beside this file: compiled for this machine at first use, kept in the user's cache, loaded with ctypes."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from ctypes import POINTER, c_float, c_int, c_int32, c_size_t, c_void_p
from functools import cache
from pathlib import Path

from tgi_local import paths

logger = logging.getLogger(__name__)

SOURCES = ("pages.c", "threads.c", "linear.c", "attention.c", "decoder.c", "greedy.c")
HEADERS = ("pages.h", "threads.h", "vec.h", "linear.h", "attention.h", "decoder.h", "greedy.h")
# No contraction: an operation is fused where the source says so, or results would differ from one variant of a kernel
# to the next, and so from one batch to the next.
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-Wno-psabi", "-pthread")
COMPILE_TIMEOUT_S = 300


class UnavailableError(Exception):
    """The kernels can not be had on this machine; the message says why."""


def when_gone(owner: object, free: Callable[..., object], *args: object) -> None:
    """Free what the kernels hold for `owner` when it is gone, but not at exit.

    Then the system takes it all, and a thread that still computes must not lose it before.
    """
    weakref.finalize(owner, free, *args).atexit = False


class Pages:
    """Memory for the kernels, zeroed and in large pages; freed with this object."""

    def __init__(self, size: int) -> None:
        library = load()
        address = library.pages_create(size)
        if address is None:
            raise MemoryError(f"{size / 2**20:.0f} MiB could not be allocated")
        self.address: int = address
        self.size = size
        when_gone(self, library.pages_free, address, size)


class Linear(ctypes.Structure):
    """linear.h"""

    _fields_ = (
        ("bits", c_int32),
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("panels", c_void_p),
        ("bias", c_void_p),
    )


class Layer(ctypes.Structure):
    """decoder.h"""

    _fields_ = (
        ("qkv", Linear),
        ("output", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("window", c_int32),
        ("is_rotary", c_int32),
    )


class CacheShape(ctypes.Structure):
    """attention.h"""

    _fields_ = (("num_kv_heads", c_int32), ("head_size", c_int32), ("is_bf16", c_int32))


class Decoder(ctypes.Structure):
    """decoder.h"""

    _fields_ = (
        ("num_layers", c_int32),
        ("hidden", c_int32),
        ("num_heads", c_int32),
        ("intermediate", c_int32),
        ("rotary_size", c_int32),
        ("max_positions", c_int32),
        ("is_gelu", c_int32),
        ("epsilon", c_float),
        ("attention_scale", c_float),
        ("residual_scale", c_float),
        ("cache", CacheShape),
        ("layers", POINTER(Layer)),
        ("final_norm", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("head", Linear),
    )


class Step(ctypes.Structure):
    """decoder.h"""

    _fields_ = (
        ("num_tokens", c_int32),
        ("num_rows", c_int32),
        ("num_kept", c_int32),
        ("hidden", c_void_p),
        ("first", c_void_p),
        ("start", c_void_p),
        ("table_at", c_void_p),
        ("tables", c_void_p),
        ("kept", c_void_p),
        ("logits", c_void_p),
    )


class Workspace(ctypes.Structure):
    """decoder.h"""

    _fields_ = (("memory", c_void_p), ("size", c_size_t))


@cache
def load() -> ctypes.CDLL:
    """Compile if need be, and load. Raises UnavailableError."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise UnavailableError(f"they are written for x86-64, this is {platform.machine()}")
    path = paths.cache_dir() / "kernels" / f"{_fingerprint()}.so"
    if not path.exists():
        _compile(path)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UnavailableError(f"{path} can not be loaded: {error}") from error
    return _declare(library)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    library.team_create.argtypes, library.team_create.restype = (c_int,), c_void_p
    library.team_destroy.argtypes, library.team_destroy.restype = (c_void_p,), None
    library.team_size.argtypes, library.team_size.restype = (c_void_p,), c_int
    library.linear_bytes.argtypes, library.linear_bytes.restype = (c_int, c_int, c_int), c_size_t
    library.linear_pack.argtypes, library.linear_pack.restype = (
        (c_void_p, c_int, c_int, c_int, c_void_p, c_void_p),
        None,
    )
    library.decoder_run.argtypes, library.decoder_run.restype = (
        (c_void_p, POINTER(Decoder), POINTER(Step), POINTER(Workspace)),
        c_int,
    )
    library.greedy_run.argtypes, library.greedy_run.restype = (
        (c_void_p, c_void_p, c_void_p, c_int, c_int, c_void_p, c_void_p),
        None,
    )
    library.pages_create.argtypes, library.pages_create.restype = (c_size_t,), c_void_p
    library.pages_free.argtypes, library.pages_free.restype = (c_void_p, c_size_t), None
    library.pages_return_freed.argtypes, library.pages_return_freed.restype = (), None
    library.workspace_free.argtypes, library.workspace_free.restype = (POINTER(Workspace),), None
    return library


def _fingerprint() -> str:
    """Of all that the machine code depends on: sources, flags, compiler and the instructions of this processor."""
    digest = hashlib.sha256()
    for name in (*SOURCES, *HEADERS):
        digest.update((Path(__file__).parent / name).read_bytes())
    digest.update(repr((FLAGS, compiler(), platform.platform(), _instructions())).encode())
    return digest.hexdigest()[:32]


def _instructions() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), "")


def compiler() -> str | None:
    """The first of the usual C compilers that is installed."""
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def _compile(path: Path) -> None:
    command = compiler()
    if command is None:
        raise UnavailableError("no C compiler is installed (Debian and Ubuntu: apt install gcc libc6-dev)")
    logger.info("compiling the CPU kernels, once")
    # Into a file of its own first, so that another process never loads half a library.
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise UnavailableError(f"{path.parent} can not be written: {error.strerror}") from error
    sources = [str(Path(__file__).parent / name) for name in SOURCES]
    try:
        done = subprocess.run(
            [command, *FLAGS, "-shared", "-fPIC", "-o", temporary, *sources, "-lm"],
            capture_output=True,
            text=True,
            timeout=COMPILE_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), f"status {done.returncode}")
            raise UnavailableError(f"{command} can not compile them: {reason[:300]}")
        os.replace(temporary, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command} could not be run: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
