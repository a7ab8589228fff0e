"""Finding a model: folders, the hub, its cache, and one helpful line for everything that can be wrong."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest

from tests import fake_hub
from tests.fake_hub import COMMIT, FakeHub
from tgi_local.errors import StartupError
from tgi_local.model import hub as model_hub
from tgi_local.model.hub import ModelSource, fetch, find

MODEL = "some-owner/tiny"
WANTED = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
UNWANTED = {"pytorch_model.bin", "modeling_tiny.py", "consolidated.safetensors", "onnx/config.json", "x.gguf"}


def write_model(folder: Path, names: set[str] = WANTED | UNWANTED, num_bytes: int = 50_000) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(num_bytes) if "safetensors" in name else json.dumps({"name": name}).encode())
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub.serve() as fake:
        use_endpoint(monkeypatch, fake.url)
        fake.models[MODEL] = write_model(tmp_path / "on-the-hub")
        yield fake


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def failure(action: Callable[[], object]) -> str:
    """The one line of the StartupError that `action` must end in."""
    with pytest.raises(StartupError) as caught:
        action()
    line = str(caught.value)
    assert line and "\n" not in line and len(line) < 600
    return line


def download(cache: str, revision: str | None = None) -> Path:
    return fetch(find(MODEL, revision, cache), cache)


# From the hub.


def test_download_fetches_what_a_model_needs_and_nothing_else(hub: FakeHub, cache: str) -> None:
    source = find(MODEL, cache_dir=cache)
    assert source.folder is None and not source.is_demo
    assert not hub.downloaded, "finding a model downloads nothing"
    folder = fetch(source, cache)
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert on_disk == hub.downloaded == WANTED
    for name in WANTED:
        assert (folder / name).read_bytes() == (hub.models[MODEL] / name).read_bytes()


def test_progress_grows_to_the_announced_total(hub: FakeHub, cache: str, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    source = find(MODEL, cache_dir=cache)
    fetch(source, cache, lambda done, total: seen.append((done, total)))
    want = sum((hub.models[MODEL] / name).stat().st_size for name in WANTED)
    assert source.download_bytes == want
    assert seen == sorted(seen) and len(seen) > 1
    assert seen[-1] == (want, want) and {total for _, total in seen} == {want}
    assert capfd.readouterr() == ("", ""), "progress goes to the page, not to the terminal"


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_the_second_time_needs_no_hub(
    hub: FakeHub, cache: str, revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = download(cache, revision)
    use_endpoint(monkeypatch, "http://127.0.0.1:1")
    del hub.requests[:]
    source = find(MODEL, revision, cache)
    assert source.folder == folder and fetch(source, cache) == folder
    assert hub.requests == []


def test_an_interrupted_download_is_told_and_completed_later(
    hub: FakeHub, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library waits a second before each of its five retries.
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda _: None, time=time.time))
    hub.cut_after_bytes = 0
    line = failure(lambda: download(cache))
    assert MODEL in line and "start again" in line
    hub.cut_after_bytes = None
    assert find(MODEL, cache_dir=cache).folder is None, "half a model is not served from the cache"
    assert {path.name for path in download(cache).iterdir()} == WANTED


def test_a_cache_without_all_shards_is_completed(hub: FakeHub, cache: str) -> None:
    """Other programs put single files into the same cache."""
    origin = hub.models[MODEL]
    for shard in ("a.safetensors", "b.safetensors"):
        (origin / shard).write_bytes(b"weights")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (origin / "model.safetensors.index.json").write_text(json.dumps(index))
    folder = download(cache)
    (folder / "b.safetensors").unlink()
    assert find(MODEL, cache_dir=cache).folder is None
    assert (download(cache) / "b.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_in_the_cache_is_no_crash(hub: FakeHub, cache: str, index: str) -> None:
    folder = download(cache)
    (folder / "model.safetensors.index.json").write_text(index)
    assert find(MODEL, cache_dir=cache).folder is None


def test_unknown_model(hub: FakeHub, cache: str) -> None:
    line = failure(lambda: find("some-owner/no-such", cache_dir=cache))
    assert "some-owner/no-such" in line and "--model-id" in line and "HF_TOKEN" in line


def test_missing_revision(hub: FakeHub, cache: str) -> None:
    line = failure(lambda: find(MODEL, "v9", cache))
    assert "'v9'" in line and "--revision" in line


def test_gated_model_is_found_but_says_what_its_download_needs(hub: FakeHub, cache: str) -> None:
    hub.gated.add(MODEL)
    line = failure(lambda: download(cache))
    assert "gated" in line and "HF_TOKEN" in line and MODEL in line


def test_a_model_without_safetensors_is_refused_before_any_download(hub: FakeHub, cache: str) -> None:
    for name in ("model.safetensors", "consolidated.safetensors"):
        (hub.models[MODEL] / name).unlink()
    (hub.models[MODEL] / "onnx" / "model.safetensors").write_bytes(b"")
    assert "safetensors" in failure(lambda: find(MODEL, cache_dir=cache))
    assert not hub.downloaded


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:1")
    line = failure(lambda: find(MODEL, cache_dir=cache))
    assert "can not be reached" in line and "'demo'" in line


def test_a_hub_that_is_gone_between_finding_and_fetching(
    hub: FakeHub, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find(MODEL, cache_dir=cache)
    use_endpoint(monkeypatch, "http://127.0.0.1:1")
    assert MODEL in failure(lambda: fetch(source, cache))


@pytest.mark.parametrize("status", [200, 403, 500, 503])
def test_a_hub_that_answers_something_else(hub: FakeHub, cache: str, status: int) -> None:
    hub.answer_instead = (status, "<html>\n<title>Welcome to our hotel</title>\n</html>")
    assert MODEL in failure(lambda: find(MODEL, cache_dir=cache))


def test_a_hub_that_never_answers(hub: FakeHub, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.hang = Event()
    monkeypatch.setattr(model_hub, "HUB_TIMEOUT_S", 0.3)
    assert "can not be reached" in failure(lambda: find(MODEL, cache_dir=cache))


def test_offline_mode_by_environment(hub: FakeHub, cache: str) -> None:
    code = "import sys; from tgi_local.model.hub import find; find(*sys.argv[1:])"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.url}
    result = subprocess.run(
        [sys.executable, "-c", code, MODEL, "main", cache], env=environment, capture_output=True, text=True, timeout=60
    )
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and "StartupError" in last and "HF_HUB_OFFLINE" in last
    assert hub.requests == []


def test_the_endpoint_of_the_environment_is_used(hub: FakeHub, cache: str) -> None:
    code = "import sys; from tgi_local.model.hub import fetch, find; print(fetch(find(*sys.argv[1:]), sys.argv[-1]))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code, MODEL, "main", cache], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (Path(result.stdout.strip()) / "config.json").is_file(), result.stderr
    assert result.stderr == ""


# From a folder.


def test_local_folder(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", {"config.json", "model.safetensors"})
    assert find(str(folder)) == ModelSource(str(folder), None, folder)
    assert fetch(find(str(folder))) == folder


def test_local_folder_wins_over_a_hub_id_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "some-owner" / "tiny", {"config.json", "model.safetensors"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find(MODEL).folder == Path(MODEL)
    assert find("~/some-owner/tiny").folder == folder


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (set(), "config.json"),
        ({"model.safetensors"}, "config.json"),
        ({"config.json"}, "safetensors"),
        ({"config.json", "pytorch_model.bin"}, "safetensors"),
        ({"config.json", "sub/model.safetensors"}, "safetensors"),
    ],
    ids=["empty", "no config", "no weights", "pickle", "weights elsewhere"],
)
def test_a_folder_that_is_no_model(tmp_path: Path, names: set[str], word: str) -> None:
    line = failure(lambda: find(str(write_model(tmp_path, names))))
    assert word in line and str(tmp_path) in line


@pytest.mark.parametrize(
    "model_id",
    ["./none", "../none", "/no/such/folder", "~/none", "~nobody-here/x", "a/b/c", "C:\\models\\x", "/" * 3000],
)
def test_a_missing_folder(model_id: str) -> None:
    failure(lambda: find(model_id[:400]))


@pytest.mark.parametrize(
    "model_id",
    [
        "no spaces",
        "a?b",
        "a\nb",
        "ünïcode/x",
        "x" * 300,
        "foo--bar",
        "a..b",
        "-x",
        "x.git",
        "a/..",
        "a/",
        "\0",
        "<script>",
    ],
)
def test_nonsense_is_no_model_and_never_sent_to_the_hub(hub: FakeHub, cache: str, model_id: str) -> None:
    line = failure(lambda: find(model_id, cache_dir=cache))
    assert "--model-id" in line
    assert hub.requests == []


# The demo.


@pytest.mark.parametrize("alias", ["demo", "tgi-local/demo"])
def test_demo_is_inside_the_package(alias: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_model(tmp_path / "demo_model", {"config.json", "model.safetensors"})
    monkeypatch.setattr(model_hub.resources, "files", lambda package: tmp_path if package == "tgi_local" else None)
    source = find(alias)
    assert source == ModelSource("tgi-local/demo", None, tmp_path / "demo_model", is_demo=True)


def test_a_package_without_its_demo_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model_hub.resources, "files", lambda package: tmp_path)
    assert "tgi-local/demo" in failure(lambda: find("demo"))
