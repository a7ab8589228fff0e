"""The README's examples, run as they stand there; only the port is another one."""

import contextlib
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import ROOT, Server, clean_environment
from tests.waiting import wait_until

README = (ROOT / "README.md").read_text()
CURL = re.findall(r"```bash\n(.+?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
SCRIPTS = [code for code in PYTHON if ".launch()" not in code]
GRADIO = [code for code in PYTHON if ".launch()" in code]


def with_port(code: str, server: Server) -> str:
    assert ":8080" in code
    return code.replace(":8080", f":{server.url.rsplit(':', 1)[1]}")


def test_examples_are_found() -> None:
    assert len(CURL) == 2 and len(SCRIPTS) == 4 and len(GRADIO) == 1


@pytest.mark.parametrize("command", CURL, ids=["chat", "generate"])
def test_curl(demo_server: Server, command: str) -> None:
    done = subprocess.run(
        ["bash", "-c", with_port(command, demo_server)], capture_output=True, text=True, timeout=60, check=True
    )
    if "stream" in command:
        assert done.stdout.startswith("data: {") and done.stdout.endswith("data: [DONE]\n\n")
    else:
        assert done.stdout.startswith('{"generated_text":"')


@pytest.mark.parametrize("code", SCRIPTS, ids=["openai", "inference-client", "async", "tools"])
def test_python(demo_server: Server, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", with_port(code, demo_server)],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout if "get_weather" in code else "learning" in done.stdout


def test_gradio_app_of_a_user(demo_server: Server, tmp_path: Path) -> None:
    from gradio_client import Client

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = tmp_path / "chat.py"
    script.write_text(with_port(GRADIO[0], demo_server))
    env = clean_environment(GRADIO_SERVER_PORT=str(port), GRADIO_ANALYTICS_ENABLED="False")
    with subprocess.Popen([sys.executable, script], env=env, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        try:
            client = connect(Client, f"http://127.0.0.1:{port}", process)
            assert "1, 2, 3, 4, 5" in str(client.predict("Count to 5", api_name="/answer"))
            client.close()
        finally:
            process.terminate()


def connect(make_client: type, url: str, process: subprocess.Popen[bytes]):  # type: ignore[no-untyped-def]
    clients = []

    def is_there() -> bool:
        assert process.poll() is None
        with contextlib.suppress(Exception):
            clients.append(make_client(url, verbose=False))
        return bool(clients)

    wait_until(is_there, every_s=0.3)
    return clients[0]


def test_commands_exist() -> None:
    for target in re.findall(r"^make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    headings = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)", README, re.M)
    }
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        path, _, heading = target.partition("#")
        assert heading in headings if not path else (ROOT / path).exists(), target


def test_flags_exist() -> None:
    from tgi_local.settings import Settings

    for flag in set(re.findall(r"`--([a-z-]+)", README)) - {"push", "help"}:
        assert flag.replace("-", "_") in Settings.model_fields, flag


def test_command_lines_are_understood() -> None:
    from tgi_local.settings import settings_or_exit

    lines = re.findall(r"^(text-generation-launcher|python app\.py) (.*)$", README, re.MULTILINE)
    before, now = (settings_or_exit(shlex.split(arguments, comments=True)) for _, arguments in lines)
    assert before.model_id == now.model_id == "Qwen/Qwen3-1.7B" and before.port == now.port == 3000
