"""The Space: the folder that would be pushed, what its front matter and pins promise, and the same folder at work."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.waiting import PATIENCE_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
PORT = 7860  # the Spaces proxy knows no other
HOST = "someone-tgi-local.hf.space"
START_LIMIT_S = 180.0


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("space_tool", ROOT / "tools" / "space.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("space") / "pushed"
    tool.assemble(output)
    return output


# ------------------------------------------------------------------------------------------------ the folder


def test_folder_holds_the_app_and_nothing_else(folder: Path) -> None:
    expected = {"app.py", "tgi_local", "ui", "requirements.txt", "packages.txt", "README.md", "LICENSE", tool.MARKER}
    assert {path.name for path in folder.iterdir()} == expected
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc") or "/test" in name]
    assert (folder / "tgi_local" / "demo_model" / "config.json").exists(), "the Space must answer without the Hub"


def test_folder_is_replaced_and_a_strangers_folder_is_not(tmp_path: Path) -> None:
    output = tmp_path / "space"
    tool.assemble(output)
    (output / "stale.py").write_text("")
    tool.assemble(output)
    assert not (output / "stale.py").exists()

    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert tool.main(["--output", str(precious)]) == 2
    assert (precious / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--push", "no-owner"], "owner/name"), (["--push", "owner/name"], "hf auth login")],
    ids=["bad-name", "no-token"],
)
def test_push_says_how_to_mend_it(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert tool.main([*arguments, "--output", str(tmp_path / "space")]) == 2
    assert says in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ front matter and pins


def front_matter(folder: Path) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert match, "README.md must begin with front matter between two lines of ---"
    return dict(yaml.safe_load(match[1]))


def assembled_pins(folder: Path) -> dict[str, Requirement]:
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines]
    in_force = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {canonicalize_name(pin.name): pin for pin in in_force}


def version_of(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


def test_front_matter_is_what_a_space_accepts(folder: Path) -> None:
    matter = front_matter(folder)
    colors = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert matter["sdk"] == "gradio"
    assert matter["app_file"] == "app.py" and (folder / "app.py").exists()
    assert matter["title"] and matter["emoji"] and {matter["colorFrom"], matter["colorTo"]} <= colors
    assert len(matter["short_description"]) <= 60, "the Hub refuses a longer one"
    assert matter["python_version"] == "3.12", (
        "Spaces default to 3.10, which is too old; as text, or 3.10 would read as 3.1"
    )
    assert matter["header"] in {"mini", "default"}
    assert matter["license"] == "apache-2.0"
    assert matter["pinned"] is False
    assert re.fullmatch(r"\d+[mh]", matter["startup_duration_timeout"])
    assert matter["suggested_hardware"]


def test_sdk_version_is_the_pinned_gradio(folder: Path) -> None:
    assert front_matter(folder)["sdk_version"] == version_of(assembled_pins(folder)["gradio"])


def test_pins_agree_with_what_the_spaces_builder_adds(folder: Path) -> None:
    """It installs gradio[oauth,mcp]==sdk_version in one command with ours, so a contradiction ends the build."""
    pins, wrong = assembled_pins(folder), []
    for name, pin in pins.items():
        extras = ["", "oauth", "mcp"] if name == "gradio" else [""]
        try:
            needs = importlib.metadata.requires(pin.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        installed = importlib.metadata.version(pin.name).partition("+")[0]
        if installed != version_of(pin):
            continue  # the metadata at hand is of another version: pydantic's own, which differs on purpose
        for need in map(Requirement, needs):
            applies = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras)
            other = pins.get(canonicalize_name(need.name))
            if applies and other and not need.specifier.contains(version_of(other), prereleases=True):
                wrong.append(f"{name} needs {need}, and the Space pins {other}")
    assert not wrong, "\n".join(wrong)


# ------------------------------------------------------------------------------------------------ the folder at work


def space_environment(home: Path) -> dict[str, str]:
    """What the container of a Gradio Space on CPU hardware sets, and nothing of ours."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": "",
        "PYTHONUNBUFFERED": "1",
        "SYSTEM": "spaces",
        "SPACE_ID": "someone/tgi-local",
        "SPACE_HOST": HOST,
        "SPACE_AUTHOR_NAME": "someone",
        "SPACE_REPO_NAME": "tgi-local",
        "SPACE_TITLE": "tgi-local",
        "SPACE_CREATOR_USER_ID": "000000000000000000000000",
        "ACCELERATOR": "none",
        "CPU_CORES": "2",
        "MEMORY": "16Gi",
        "GRADIO_ALLOW_FLAGGING": "never",
        "GRADIO_NUM_PORTS": "1",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SSR_MODE": "True",
        "GRADIO_THEME": "huggingface",
        "TQDM_POSITION": "-1",
        "TQDM_MININTERVAL": "1",
    }


class RunningSpace:
    """The app as a fresh process in the assembled folder; the module's fixture owns it."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.log_path = home / "space.log"
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{PORT}", headers={"Host": HOST}, timeout=60)
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"],
                cwd=folder,
                env=space_environment(home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait_until_ready(self) -> None:
        wait_until(self._is_ready, lambda: f"/health was not 200:\n{self.log()}", every_s=0.1, patience_s=START_LIMIT_S)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"app.py ended with {self.process.returncode}:\n{self.log()}"
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False  # not bound yet

    def stop(self) -> int:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


@pytest.fixture(scope="module")
def space(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSpace]:
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", PORT)) != 0, f"something else listens on port {PORT}: stop it first"
    running = RunningSpace(folder, tmp_path_factory.mktemp("home"))
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


def test_space_listens_on_every_interface(space: RunningSpace) -> None:
    """The Spaces proxy comes from outside the container."""
    family = psutil.Process(space.process.pid)
    processes = [family, *family.children(recursive=True)]
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("0.0.0.0", PORT)}, "one port, on all interfaces, and no server beside it"


def test_space_serves_the_page(space: RunningSpace) -> None:
    answer = space.client.get("/", headers={"Accept": "text/html"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "gradio" in answer.text.lower()


def test_space_answers_chat_under_its_own_host(space: RunningSpace) -> None:
    answer = space.client.post(
        "/v1/chat/completions",
        json={
            "model": "tgi",
            "messages": [{"role": "user", "content": "Count to 10"}],
            "max_tokens": 60,
            "temperature": 0,
        },
    )
    assert answer.status_code == 200, answer.text
    text = answer.json()["choices"][0]["message"]["content"]
    assert [int(number) for number in re.findall(r"\d+", text)] == list(range(1, 11))


def test_space_page_may_call_it_from_its_own_origin(space: RunningSpace) -> None:
    """The browser sends the Space's https origin, while the app itself sees plain http from the proxy."""
    headers = {"Origin": f"https://{HOST}", "X-Forwarded-Proto": "https", "X-Forwarded-Host": HOST}
    answer = space.client.post(
        "/generate", headers=headers, json={"inputs": "Hello", "parameters": {"max_new_tokens": 4}}
    )
    assert answer.status_code == 200, answer.text


def test_space_writes_nothing_into_its_own_folder(space: RunningSpace, folder: Path) -> None:
    written = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if "__pycache__" not in path.parts]
    assembled = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tgi_local").rglob("*")}
    assembled |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "ui").rglob("*")}
    assembled |= {"app.py", "tgi_local", "ui", "LICENSE", "README.md", "requirements.txt", "packages.txt", tool.MARKER}
    assert not set(written) - assembled


def test_space_stops_when_it_is_asked(space: RunningSpace) -> None:
    """Last in the file: a Space that restarts is told so by SIGTERM, and is killed when it does not listen."""
    code = space.stop()
    assert code in (0, -signal.SIGTERM, 128 + signal.SIGTERM), space.log()
    assert "Traceback" not in space.log()
