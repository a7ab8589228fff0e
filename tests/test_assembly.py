"""Limits that can not be met are one line at the start: what was asked, what there is, and which flag to change."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tgi_local import assembly
from tgi_local.metrics import Metrics
from tgi_local.model import hub, runner
from tgi_local.service import ServedModel, Service
from tgi_local.settings import load_settings

CONTEXT = 4096  # of the test checkpoint


@pytest.fixture(autouse=True)
def collecting_again() -> Iterator[None]:
    """A model that was brought up is kept from the garbage collector, which the other tests' leavings are not."""
    yield
    gc.unfreeze()


async def start(folder: Path, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[Service, list[int], str]:
    """Bring the model up; the exit statuses it asked for, and what it printed."""
    settings = load_settings(["--model-id", str(folder), "--dtype", "float32", "--device", "cpu", *args])
    service, statuses = Service(Metrics()), list[int]()
    source = hub.find(settings.model_id, settings.revision, settings.huggingface_hub_cache)
    await assembly.bring_up(settings, source, service, statuses.append)
    return service, statuses, capsys.readouterr().err


async def refused(folder: Path, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    service, statuses, printed = await start(folder, capsys, *args)
    lines = [line for line in printed.splitlines() if line.startswith("tgi-local: ")]
    assert statuses == [2] and len(lines) == 1 and "Traceback" not in printed
    assert service.state().name == "loading"
    return lines[0]


async def served(folder: Path, capsys: pytest.CaptureFixture[str], *args: str) -> ServedModel:
    service, statuses, _ = await start(folder, capsys, *args)
    assert statuses == []
    model = service.model
    await service.close(0)
    return model


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--max-total-tokens", "9999"], ["--max-total-tokens 9999", f"context of {CONTEXT} tokens"]),
        (["--max-input-tokens", str(CONTEXT)], [f"--max-input-tokens {CONTEXT}", f"less than the {CONTEXT}"]),
        (["--max-batch-total-tokens", "100"], ["100 tokens", "--max-batch-total-tokens to at least 512"]),
        (["--max-batch-total-tokens", "999999999999"], ["--max-batch-total-tokens 999999999999", "GiB are free"]),
        (["--max-input-tokens", "2000", "--max-batch-total-tokens", "1024"], ["--max-input-tokens 2000", "1024"]),
    ],
)
async def test_what_does_not_fit(
    args: list[str], words: list[str], tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = await refused(tiny_folder, capsys, *args)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("free_bytes", [0, -(2**30), 1000])
async def test_no_room_for_a_single_block(
    free_bytes: int, tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_free_for_cache", lambda *_: free_bytes)
    line = await refused(tiny_folder, capsys)
    assert "no memory" in line and "0.0 GiB are free" in line and "--model-id" in line and "--quantize" in line


async def test_a_cache_smaller_than_the_context_shortens_the_context(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await served(tiny_folder, capsys, "--max-batch-total-tokens", "1024")
    assert (model.limits.max_total_tokens, model.limits.max_input_tokens) == (1024, 1023)
    assert model.limits.max_batch_total_tokens == 1024


async def test_what_is_loaded_is_not_searched_for_garbage(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search through all of it would stop every stream."""
    await refused(tiny_folder, capsys, "--max-total-tokens", "9999")
    assert gc.get_freeze_count() == 0
    await served(tiny_folder, capsys)
    assert gc.get_freeze_count() > 100_000


async def test_how_long_a_step_may_take(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (await served(tiny_folder, capsys, "--stall-timeout", "7.5")).engine.stall_s == 7.5
    assert (await served(tiny_folder, capsys)).engine.stall_s == assembly.STALL_S["cpu"]
