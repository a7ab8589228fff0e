"""How each compared server is started, waited for, loaded and stopped."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
CELL_TIMEOUT_S = 1800.0
LOG_LINES = 12
SERVER_ERRORS = 500  # statuses from here on may pass: loading


class PeerError(Exception):
    """A server did not start, or a cell could not be measured on it."""


@dataclass(frozen=True)
class Programs:
    """Where the peers' programs are; None for those that are not here."""

    llama_server: Path | None
    transformers: Path | None
    openvino_python: Path | None
    ours: dict[str, list[str]]  # variant -> flags of app.py


class Peer(ABC):
    """One server in one variant, such as `llama:Q4_0`, not yet running."""

    def __init__(self, name: str, programs: Programs) -> None:
        self.name = name
        self.variant = name.partition(":")[2]
        self.programs = programs

    @abstractmethod
    def command(self, model: Path, port: int, is_long: bool) -> list[str]:
        """How it is started on a checkpoint's folder. Raises PeerError where its program is missing."""

    def environment(self) -> dict[str, str]:
        return {**os.environ, "HF_HUB_OFFLINE": "1"}

    @contextlib.contextmanager
    def running(self, model: Path, is_long: bool) -> "Iterator[Running]":
        """The server, ready. Raises PeerError with the end of its log when it does not come up."""
        port = _free_port()
        command = self.command(model, port, is_long)
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(command, env=self.environment(), cwd=ROOT, stdout=log, stderr=log)
            server = HttpServer(process, command, f"http://127.0.0.1:{port}", str(model))
            try:
                server.wait_ready()
                yield server
            except PeerError as error:
                log.seek(0)
                tail = "".join(log.readlines()[-LOG_LINES:])
                raise PeerError(f"{self.name}: {error}\n{tail}") from error
            finally:
                _stop(process)


class Running(ABC):
    """A server that takes cells."""

    def __init__(self, process: "subprocess.Popen[str] | subprocess.Popen[bytes]", command: Sequence[str]) -> None:
        self.process = process
        self.command = list(command)

    @abstractmethod
    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        """The cell's measures. Raises PeerError."""


class HttpServer(Running):
    def __init__(self, process: "subprocess.Popen[Any]", command: Sequence[str], url: str, model: str) -> None:
        super().__init__(process, command)
        self._url = url
        self._model = model

    def wait_ready(self) -> None:
        """Until a completion is answered: a server may listen before it has loaded. Raises PeerError."""
        body = json.dumps({"model": self._model, "prompt": "a", "max_tokens": 1}).encode()
        request = urllib.request.Request(
            f"{self._url}/v1/completions", body, {"content-type": "application/json"}, method="POST"
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise PeerError(f"ended with status {self.process.returncode} while starting")
            try:
                urllib.request.urlopen(request, timeout=START_TIMEOUT_S).close()
                return
            except urllib.error.HTTPError as error:
                with error:
                    if error.code < SERVER_ERRORS:
                        raise PeerError(f"refuses a completion: {error}: {error.read(500)!r}") from error
            except OSError:
                pass  # nothing listens yet
            time.sleep(0.2)
        raise PeerError(f"not ready after {START_TIMEOUT_S:.0f} s")

    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "measures.json"
            common = ["--model", self._model, "--seed", str(seed), "--json", str(path)]
            script = ["benchmarks/long_prompt.py"] if cell.is_long else ["app.py", "bench", *cell.bench_args()]
            command = [sys.executable, *script, self._url, *common]
            try:
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=CELL_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                raise PeerError(f"{cell.name} took more than {CELL_TIMEOUT_S:.0f} s") from error
            if not path.exists() or not path.stat().st_size:
                raise PeerError(f"{cell.name}: {done.stderr[-2000:]}")
            found: dict[str, Any] = json.loads(path.read_text())
            return found if cell.is_long else found["levels"][0]


class Ours(Peer):
    def command(self, model: Path, port: int, is_long: bool) -> list[str]:
        flags = self.programs.ours.get(self.variant, ["--quantize", self.variant])
        return [
            sys.executable,
            str(ROOT / "app.py"),
            "--model-id",
            str(model),
            "--port",
            str(port),
            "--disable-ui",
            *flags,
        ]


class Llama(Peer):
    def command(self, model: Path, port: int, is_long: bool) -> list[str]:
        program = _required(self.programs.llama_server, "--llama-server")
        weights = model.with_name(f"{model.name}-{self.variant}.gguf")
        # A slot has its share of the context; a prompt of thousands of tokens needs fewer slots.
        slots = ["-np", "9", "-c", str(9 * 5376)] if is_long else ["-np", "32", "-c", "24576"]
        flags = ["--cont-batching", *slots, "-t", str(os.cpu_count() or 1), "--port", str(port)]
        return [str(program), "-m", str(weights), *flags]


class TransformersServe(Peer):
    def command(self, model: Path, port: int, is_long: bool) -> list[str]:
        program = _required(self.programs.transformers, "--transformers")
        flags = ["--dtype", "bfloat16", "--device", "cpu", "--continuous-batching", "--port", str(port)]
        return [str(program), "serve", str(model), *flags]


class OpenVino(Peer):
    """In the driver's process: what HTTP, text and client cost the others is not in its figures."""

    def command(self, model: Path, port: int, is_long: bool) -> list[str]:
        python = _required(self.programs.openvino_python, "--openvino-python")
        folder = model.with_name(f"{model.name}-ov-{self.variant}")
        return [str(python), str(ROOT / "benchmarks" / "openvino_driver.py"), str(folder)]

    @contextlib.contextmanager
    def running(self, model: Path, is_long: bool) -> Iterator[Running]:
        command = self.command(model, 0, is_long)
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
            driver = Driver(process, command)
            try:
                driver.answer()
                yield driver
            except PeerError as error:
                log.seek(0)
                raise PeerError(f"{self.name}: {error}\n{''.join(log.readlines()[-LOG_LINES:])}") from error
            finally:
                _stop(process)
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()


class Driver(Running):
    def measure(self, cell: Cell, seed: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({**cell.as_dict(), "seed": seed}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """One line of the driver. Raises PeerError when it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise PeerError("the driver ended")
        found: dict[str, Any] = json.loads(line)
        return found


KINDS: dict[str, type[Peer]] = {"ours": Ours, "llama": Llama, "transformers": TransformersServe, "openvino": OpenVino}


def make_peer(name: str, programs: Programs) -> Peer:
    """Raises PeerError for a name that means nothing."""
    kind = name.partition(":")[0]
    if kind not in KINDS:
        raise PeerError(f"there is no server {name}; servers are {', '.join(KINDS)}, with a variant after a colon")
    return KINDS[kind](name, programs)


def _required(program: Path | None, flag: str) -> Path:
    if program is None or not program.exists():
        raise PeerError(f"{program or 'its program'} is not there; name it with {flag}")
    return program


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _stop(process: "subprocess.Popen[Any]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
