"""`tgi-local bench` against a stub that behaves as told, and against this server itself."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import stub_server
from tests.bench.stub_server import KEY, NUM_TOKENS, Stub
from tests.serving import ROOT, Server, clean_environment
from tgi_local.bench.command import run
from tgi_local.errors import StartupError

SMALL = ["--concurrency", "2", "--requests", "4", "--prompt-tokens", "12", "--output-tokens", str(NUM_TOKENS)]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server.serving() as stub:
        yield stub


def bench(url: str, tmp_path: Path, *args: str) -> tuple[int, dict]:  # type: ignore[type-arg]
    """Exit status and the JSON."""
    path = tmp_path / "bench.json"
    status = run([url, *SMALL, "--json", str(path), *args])
    return status, json.loads(path.read_text())


def only_error(url: str, tmp_path: Path, *args: str) -> dict:  # type: ignore[type-arg]
    status, result = bench(url, tmp_path, *args)
    (level,) = result["levels"]
    assert (status, level["succeeded"], level["output_tokens"], len(level["errors"])) == (1, 0, 0, 1)
    return level["errors"][0]


def test_a_server_that_behaves(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, result = bench(stub.url, tmp_path)
    (level,) = result["levels"]
    assert (status, result["model"], level["concurrency"], level["errors"]) == (0, "good", 2, [])
    assert (level["requests"], level["succeeded"], level["output_tokens"]) == (4, 4, 4 * NUM_TOKENS)
    assert level["prompt_tokens_per_request"] == [12, 12] and level["tokens_per_event"] == 1.0
    prompts = [body["prompt"] for body in stub.streamed]
    assert len(prompts) == len(set(prompts)) == 5, "one warm-up and four measured ones"
    assert all(body["temperature"] == 0 and "ignore_eos" not in body for body in stub.bodies)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[3].split()[:3] == ["2", "4", "0"]
    assert stub.num_connections == 2, "connections are kept"


def test_connections_that_the_server_closes_are_opened_anew(stub: Stub, tmp_path: Path) -> None:
    status, _ = bench(stub.url, tmp_path, "--model", "closes")
    assert status == 0 and stub.num_connections == 5, "the warm-up has the calibration's"


@pytest.mark.parametrize(
    ("behaviour", "kind", "words"),
    [
        ("busy", "HTTP 429", "Model is overloaded"),
        ("error-event", "error event", "the model failed"),
        ("cut", "ended early", "finish reason"),
        ("nonsense", "malformed event", "{not json"),
        ("no-stream", "not an event stream", "all at once"),
        ("drops", "connection lost", "closed"),
    ],
)
def test_failures_are_named_and_counted(stub: Stub, tmp_path: Path, behaviour: str, kind: str, words: str) -> None:
    error = only_error(stub.url, tmp_path, "--model", behaviour)
    assert (error["kind"], error["count"]) == (kind, 4)
    assert words in error["example"]


def test_an_answer_that_never_ends(stub: Stub, tmp_path: Path) -> None:
    error = only_error(stub.url, tmp_path, "--model", "endless", "--timeout", "0.2")
    assert error == {"kind": "timeout", "count": 4, "example": "no complete answer within 0.2 s"}


def test_nothing_listens() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and nobody else can
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(StartupError, match=f"nothing listens on {url}"):
            run([url, *SMALL])


def test_no_usage_in_streams_is_said(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, result = bench(stub.url, tmp_path, "--model", "no-usage")
    (level,) = result["levels"]
    assert (status, level["tokens_counted_by"], level["output_tokens"]) == (0, "events", 4 * NUM_TOKENS)
    assert "no usage" in capsys.readouterr().out


def test_no_usage_at_all_needs_token_ids(stub: Stub, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="--token-ids"):
        run([stub.url, *SMALL, "--model", "uncounted"])
    status, _ = bench(stub.url, tmp_path, "--model", "uncounted", "--token-ids", "1000")
    assert status == 0 and all(len(body["prompt"]) == 12 for body in stub.streamed)


def test_packed_events_are_said(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, result = bench(stub.url, tmp_path, "--model", "packed")
    assert result["levels"][0]["tokens_per_event"] == 2.0
    assert "gaps between events" in capsys.readouterr().out


def test_short_answers_are_said(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(stub.url, tmp_path, "--output-tokens", "99", "--ignore-eos")
    assert "answers had 4 to 4 tokens, not 99" in capsys.readouterr().out
    assert all(body["ignore_eos"] is True for body in stub.bodies)


def test_keys() -> None:
    with stub_server.serving(key=KEY) as stub:
        with pytest.raises(StartupError, match=r"asks for a key .*--api-key"):
            run([stub.url, *SMALL])
        with pytest.raises(StartupError, match="refuses this key"):
            run([stub.url, *SMALL, "--api-key", "another"])
        assert run([stub.url, *SMALL, "--api-key", KEY]) == 0


def test_a_model_that_is_not_there(stub: Stub) -> None:
    with pytest.raises(StartupError, match="HTTP 404: no such model"):
        run([stub.url, *SMALL, "--model", "unknown"])


def test_a_server_that_names_no_model() -> None:
    with stub_server.serving(models=False) as stub:
        with pytest.raises(StartupError, match="--model"):
            run([stub.url, *SMALL])
        assert run([stub.url, *SMALL, "--model", "good"]) == 0


def test_the_warm_up_fails_before_anything_is_measured(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StartupError, match="warm-up request failed, timeout"):
        run([stub.url, *SMALL, "--model", "endless", "--timeout", "0.1", "--warmup", "2"])


def test_arrivals_in_place_of_clients(stub: Stub, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    args = ["--rate", "200,400", "--requests", "6", "--prompt-tokens", "12", "--output-tokens", "4", "--seed", "7"]
    assert run([stub.url, *args, "--json", str(path)]) == 0
    levels = json.loads(path.read_text())["levels"]
    assert [(level["rate"], level["concurrency"], level["succeeded"]) for level in levels] == [
        (200.0, None, 6),
        (400.0, None, 6),
    ]


def test_a_shared_prefix(stub: Stub, tmp_path: Path) -> None:
    bench(stub.url, tmp_path, "--shared-prefix-tokens", "30")
    words = [body["prompt"].split() for body in stub.streamed]
    assert len({tuple(prompt[:29]) for prompt in words}) == 1 and len({tuple(prompt) for prompt in words}) == 5
    assert {len(prompt) for prompt in words} == {41}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--concurrency", "0"], "'0' is not a whole number of at least 1"),
        (["--concurrency", "1,x"], "'x'"),
        (["--rate", "0"], "above 0"),
        (["--rate", "1", "--concurrency", "1"], "give one of them"),
        (["--requests", "1", "--seconds", "1"], "give one of them"),
        (["--token-ids", "1000", "--endpoint", "chat"], "--endpoint completions"),
        (["ftp://somewhere"], "ftp://somewhere"),
        (["http://host:99999"], "port"),
        (["--bogus"], "--bogus"),
        (["--json", "/no/such/folder/x.json"], "--json /no/such/folder/x.json"),
    ],
)
def test_wrong_arguments(args: list[str], words: str) -> None:
    with pytest.raises(StartupError) as caught:
        run(args)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_this_server(tiny_server: Server, tmp_path: Path, endpoint: str) -> None:
    status, result = bench(f"{tiny_server.url}/v1", tmp_path, "--endpoint", endpoint, "--prompt-tokens", "40")
    (level,) = result["levels"]
    assert (status, level["succeeded"], level["output_tokens"]) == (0, 4, 4 * NUM_TOKENS)
    assert level["prompt_tokens_per_request"] == [40, 40] and level["tokens_counted_by"] == "usage"


def cli(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "app.py", "bench", *args]
    return subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=60)


def without_import_times(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not line.startswith("import time:")]


def test_the_command(stub: Stub) -> None:
    done = cli(stub.url, *SMALL, "--json", "-")
    assert done.returncode == 0 and json.loads(done.stdout)["levels"][0]["succeeded"] == 4
    assert "TTFT" in done.stderr
    heavy = {"torch", "transformers", "gradio", "fastapi", "numpy", "httpx"}
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "h11" in imported and not imported & heavy


def test_exit_statuses(stub: Stub) -> None:
    assert cli(stub.url, *SMALL, "--model", "busy").returncode == 1
    done = cli(stub.url, "--bogus")
    assert done.returncode == 2 and without_import_times(done.stderr) == [
        "tgi-local: unrecognized arguments: --bogus; see bench --help"
    ]
    assert "--concurrency" in cli("--help").stdout
