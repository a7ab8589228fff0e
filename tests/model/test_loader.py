"""Loading a folder: what is chosen by default, quantized weights that generate, and one line for what can not be served."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.errors import StartupError
from tgi_local.model.loader import LoadedModel, LoadOptions, choose_device, choose_dtype, choose_quantize, load
from tgi_local.model.quantization import BITSANDBYTES, METHODS, quantization_config
from tgi_local.model.runner import build_runner
from tgi_local.model_info import GenerationDefaults
from tgi_local.types import GenerationRequest, SamplingParams, StopParams

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PROMPTS = [[5, 6, 7], [9] * 20, list(range(3, 60))]
NUM_NEW = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The same checkpoint, to be broken."""
    target = tmp_path / "copy"
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def load_on_cpu(folder: Path, **options: Any) -> LoadedModel:
    return load(folder, "some/model", None, False, LoadOptions(**{"dtype": "float32", "device": "cpu", **options}))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(StartupError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    return line


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def generate(loaded: LoadedModel, prompts: list[list[int]]) -> list[list[int]]:
    runner = build_runner(loaded, block_size=16, min_tokens=16, max_tokens=1024, requested_tokens=1024)
    blocks = BlockManager(runner.num_blocks, runner.block_size)
    engine = Engine(Scheduler(SchedulerLimits(8, 64), blocks), runner)
    for i, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(f"r{i}", "", tuple(prompt), SamplingParams(), StopParams(NUM_NEW)))
    ids: dict[str, list[int]] = {f"r{i}": [] for i in range(len(prompts))}
    while engine.has_work:
        for event in engine.step()[0]:
            assert event.error is None and event.token is not None
            ids[event.request_id].append(event.token.id)
    return list(ids.values())


# Choices.


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == choose_device("cpu") == CPU
    for asked in ("cuda", "cuda:0"):
        assert "--device" in refusal(lambda asked=asked: choose_device(asked))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(None) == choose_device("cuda") == CUDA
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert "2" in refusal(lambda: choose_device("cuda:2"))


@pytest.mark.parametrize("asked", ["gpu", "", "cuda:x", "mps", "meta", "cpu cuda", "-1"])
def test_a_device_that_is_none(asked: str) -> None:
    assert "--device" in refusal(lambda: choose_device(asked))


@pytest.mark.parametrize(
    ("asked", "checkpoint", "device", "is_demo", "want"),
    [
        ("float16", torch.float32, CPU, False, torch.float16),
        ("bfloat16", torch.float32, CPU, True, torch.bfloat16),
        (None, torch.float32, CPU, False, torch.float32),
        (None, torch.bfloat16, CPU, False, torch.bfloat16),
        (None, torch.float16, CPU, False, torch.bfloat16),
        (None, torch.float16, CUDA, False, torch.float16),
        (None, None, CUDA, False, torch.bfloat16),
        (None, torch.bfloat16, CPU, True, torch.float32),
    ],
)
def test_dtype(asked: str | None, checkpoint: Any, device: torch.device, is_demo: bool, want: torch.dtype) -> None:
    assert choose_dtype(asked, checkpoint, device, is_demo) is want


def test_a_dtype_that_is_none() -> None:
    assert "--dtype" in refusal(lambda: choose_dtype("int3", None, CPU, False))


class Config:
    def __init__(self, own: Any = None) -> None:
        self.quantization_config = own


@pytest.mark.parametrize(
    ("asked", "own", "device", "is_demo", "want"),
    [
        (None, None, CPU, False, None),
        (None, None, CUDA, False, "bitsandbytes-nf4"),
        (None, None, CUDA, True, None),
        ("none", None, CUDA, False, None),
        ("bitsandbytes", None, CUDA, False, "bitsandbytes"),
        ("bitsandbytes-fp4", None, CPU, False, "bitsandbytes-fp4"),
        (None, {"quant_method": "gptq"}, CUDA, False, "gptq"),
    ],
)
def test_quantize(asked: str | None, own: Any, device: torch.device, is_demo: bool, want: str | None) -> None:
    assert choose_quantize(asked, Config(own), device, is_demo) == want


def test_a_quantized_checkpoint_is_not_quantized_again() -> None:
    line = refusal(lambda: choose_quantize("bitsandbytes-nf4", Config({"quant_method": "gptq"}), CPU, False))
    assert "--quantize bitsandbytes-nf4" in line


def test_quantization_config() -> None:
    eight = quantization_config("bitsandbytes", torch.bfloat16)
    assert eight.load_in_8bit and not eight.load_in_4bit
    for kind in ("nf4", "fp4"):
        four = quantization_config(f"bitsandbytes-{kind}", torch.bfloat16)
        assert four.load_in_4bit and four.bnb_4bit_quant_type == kind
        assert four.bnb_4bit_compute_dtype is torch.bfloat16 and four.bnb_4bit_use_double_quant
    assert "awq" in refusal(lambda: quantization_config("awq", torch.bfloat16))


def test_quantization_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "pip install bitsandbytes" in refusal(lambda: quantization_config("bitsandbytes", torch.bfloat16))


# What comes out.


@pytest.mark.parametrize("method", BITSANDBYTES)
def test_quantized_on_the_cpu_generates_what_transformers_generates(folder: Path, method: str) -> None:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from transformers import AutoModelForCausalLM

    loaded = load_on_cpu(folder, quantize=method)
    projection = loaded.model.model.layers[0].self_attn.q_proj
    assert isinstance(projection, Linear8bitLt if method == "bitsandbytes" else Linear4bit)
    assert projection.weight.element_size() == 1 and loaded.info.quantize == method
    config = quantization_config(method, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config).eval()
    want = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=NUM_NEW, do_sample=False, eos_token_id=None)
        want.append(out[0, len(prompt) :].tolist())
    assert [generate(loaded, [prompt])[0] for prompt in PROMPTS] == want
    assert want != generate(load_on_cpu(folder), PROMPTS), "quantization changes something"


@pytest.mark.parametrize("method", METHODS)
def test_quantized_in_the_default_dtype_generates(folder: Path, method: str) -> None:
    loaded = load_on_cpu(folder, quantize=method, dtype="bfloat16")
    assert loaded.dtype is torch.bfloat16
    assert [len(ids) for ids in generate(loaded, PROMPTS)] == [NUM_NEW] * len(PROMPTS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_on_the_cpu_generates(folder: Path, dtype: str) -> None:
    loaded = load_on_cpu(folder, dtype=dtype)
    assert next(loaded.model.parameters()).dtype is getattr(torch, dtype)
    assert [len(ids) for ids in generate(loaded, PROMPTS)] == [NUM_NEW] * len(PROMPTS)


def test_info(copy: Path) -> None:
    sampling = {"temperature": 0.6, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.05, "do_sample": True}
    edit(copy / "generation_config.json", eos_token_id=[1, 2], **sampling)
    info = load_on_cpu(copy).info
    assert (info.model_id, info.revision, info.dtype, info.device) == ("some/model", None, "float32", "cpu")
    assert (info.architecture, info.quantize, info.compute_type) == ("LlamaForCausalLM", None, "cpu")
    assert info.context_length == 4096 and not info.is_demo
    assert info.eos_token_ids == {1, 2}
    assert info.generation_defaults == GenerationDefaults(0.6, 0.9, None, 1.05)


def test_eos_falls_back_to_the_config_and_greedy_is_a_default(copy: Path) -> None:
    edit(copy / "config.json", eos_token_id=7)
    (copy / "generation_config.json").unlink()
    assert load_on_cpu(copy).info.eos_token_ids == {7}
    (copy / "generation_config.json").write_text('{"do_sample": false}')
    assert load_on_cpu(copy).info.generation_defaults == GenerationDefaults(temperature=0.0)


def test_the_revision_of_a_snapshot_is_its_commit(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    snapshot = tmp_path / "snapshots" / "0123456789abcdef"
    snapshot.symlink_to(folder, target_is_directory=True)
    loaded = load(snapshot, "some/model", "main", False, LoadOptions("float32", None, "cpu"))
    assert loaded.info.revision == "0123456789abcdef"


def test_loading_writes_nothing_to_the_terminal(folder: Path) -> None:
    """In a fresh process: Transformers draws a progress bar and warns in colours by default."""
    code = (
        "import sys; from pathlib import Path; from tgi_local.model.loader import LoadOptions, load;"
        "load(Path(sys.argv[1]), 'm', None, False, LoadOptions('float32', None, 'cpu'))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=240)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# What is refused.


def test_remote_code_is_never_run(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    code = f"open({str(marker)!r}, 'w').close()\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    for module in ("configuration_x.py", "modeling_x.py"):
        (copy / module).write_text(code)
    auto_map = {"AutoConfig": "configuration_x.C", "AutoModelForCausalLM": "modeling_x.M"}
    edit(copy / "config.json", auto_map=auto_map, model_type="unheard_of")
    line = refusal(lambda: load_on_cpu(copy))
    assert "some/model" in line
    assert "trust_remote_code" not in line, "an advice that can not be followed here"
    # A known type loads with Transformers' own code, whatever the checkpoint brings along.
    edit(copy / "config.json", model_type="llama")
    assert load_on_cpu(copy).info.architecture == "LlamaForCausalLM"
    assert not marker.exists()


@pytest.mark.parametrize(
    "config",
    [
        "",
        "not json",
        "[]",
        "null",
        "{}",
        {"model_type": "unheard_of"},
        {"model_type": "bert"},
        {"vocab_size": "x"},
        {"hidden_size": -5},
        {"num_attention_heads": 0},
        {"hidden_act": "no-such"},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    ],
    ids=str,
)
def test_a_config_that_can_not_be_used(copy: Path, config: str | dict[str, Any]) -> None:
    if isinstance(config, str):
        (copy / "config.json").write_text(config)
    else:
        edit(copy / "config.json", **config)
    assert "some/model" in refusal(lambda: load_on_cpu(copy))


@pytest.mark.parametrize("kept", [0, 7, 8, 300, -1])
def test_truncated_weights(copy: Path, kept: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "some/model" in refusal(lambda: load_on_cpu(copy))


def test_weights_of_another_shape(copy: Path) -> None:
    edit(copy / "config.json", hidden_size=96)
    assert "some/model" in refusal(lambda: load_on_cpu(copy))


@pytest.mark.parametrize("quantize", [None, "bitsandbytes-nf4"])
def test_missing_weights_are_not_made_up(copy: Path, quantize: str | None) -> None:
    """Transformers fills what is missing with random numbers, and only warns."""
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    line = refusal(lambda: load_on_cpu(copy, quantize=quantize))
    assert "up_proj" in line and "some/model" in line


def test_a_missing_shard(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "some/model" in refusal(lambda: load_on_cpu(copy))


def test_pickled_weights_are_not_read(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"

    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {marker}",)

    (copy / "model.safetensors").unlink()
    torch.save({"x": Malicious()}, copy / "pytorch_model.bin")
    assert "some/model" in refusal(lambda: load_on_cpu(copy))
    assert not marker.exists()


@pytest.mark.parametrize("text", ["", "[]", "not json", '{"temperature": "hot"}'])
def test_a_broken_generation_config(copy: Path, text: str) -> None:
    (copy / "generation_config.json").write_text(text)
    try:
        defaults = load_on_cpu(copy).info.generation_defaults
    except StartupError as error:
        assert "some/model" in str(error)
    else:
        assert defaults == GenerationDefaults()


def test_vocabulary_size(folder: Path) -> None:
    assert load_on_cpu(folder).vocab_size == VOCAB_SIZE
