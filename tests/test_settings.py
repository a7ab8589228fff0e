"""Flags and variables: TGI's names, the command line first, and one line for every mistake."""

import os
from pathlib import Path
from typing import Any

import pytest

from tgi_local.api.security import policy_for
from tgi_local.settings import PROGRAM, Settings, UsageError, load_settings, settings_or_exit
from tgi_local.tgi_flags import NO_EFFECT, NOT_SUPPORTED, PLATFORMS

SECRET = "sk-very-secret"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of whoever runs the tests are not ours."""
    for name in Settings.model_fields:
        for spelling in (name, name.upper()):
            monkeypatch.delenv(spelling, raising=False)


def problem(*args: str) -> str:
    """The one line that `args` must end in."""
    with pytest.raises(UsageError) as caught:
        load_settings(args)
    line = str(caught.value)
    assert line and len(line.splitlines()) == 1 and len(line) < 400
    return line


# Where values come from.


def test_defaults_are_safe_and_need_nothing() -> None:
    settings = load_settings([])
    assert (settings.model_id, settings.hostname, settings.port) == ("demo", "127.0.0.1", 8080)
    assert settings.is_loopback and not settings.is_space
    assert settings.api_key is None and settings.cors_allow_origin == []
    assert (settings.max_concurrent_requests, settings.max_best_of, settings.max_stop_sequences) == (128, 2, 4)
    assert (settings.max_top_n_tokens, settings.max_client_batch_size) == (5, 4)
    assert settings.payload_limit == 2_000_000


FROM_BOTH: list[tuple[str, str, Any]] = [
    ("model-id", "some/model", "some/model"),
    ("revision", "v1", "v1"),
    ("dtype", "bfloat16", "bfloat16"),
    ("quantize", "bitsandbytes-nf4", "bitsandbytes-nf4"),
    ("device", "cuda:1", "cuda:1"),
    ("port", "9000", 9000),
    ("hostname", "127.0.0.2", "127.0.0.2"),
    ("api-key", SECRET, SECRET),
    ("payload-limit", "123", 123),
    ("max-input-tokens", "100", 100),
    ("max-input-length", "100", 100),
    ("max-total-tokens", "200", 200),
    ("max-batch-prefill-tokens", "4096", 4096),
    ("max-batch-total-tokens", "9999", 9999),
    ("max-batch-size", "7", 7),
    ("watermark-gamma", "0.25", 0.25),
    ("watermark-delta", "1.5", 1.5),
    ("max-concurrent-requests", "3", 3),
    ("max-best-of", "4", 4),
    ("max-stop-sequences", "0", 0),
    ("max-top-n-tokens", "20", 20),
    ("max-client-batch-size", "8", 8),
    ("validation-workers", "1", 1),
    ("graceful-termination-timeout", "0", 0),
    ("stall-timeout", "2.5", 2.5),
    ("stall-timeout", "inf", float("inf")),
    ("huggingface-hub-cache", "/data", "/data"),
    ("log-level", "debug", "debug"),
    ("compute-type", "1-x", "1-x"),
    ("tokenizer-config-path", "/x.json", "/x.json"),
    ("cuda-memory-fraction", "0.5", 0.5),
    ("cuda-graphs", "1,2, 8", [1, 2, 8]),
    ("cuda-graphs", "0", [0]),
    ("aip-http-port", "7", 7),
]


@pytest.mark.parametrize(("flag", "text", "value"), FROM_BOTH, ids=[flag for flag, *_ in FROM_BOTH])
def test_every_setting_is_a_flag_and_a_variable(
    flag: str, text: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = flag.replace("-", "_")
    assert getattr(load_settings([f"--{flag}", text]), name) == value
    assert getattr(load_settings([f"--{flag}={text}"]), name) == value
    monkeypatch.setenv(name.upper(), text)
    assert getattr(load_settings([]), name) == value


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1111")
    monkeypatch.setenv("MODEL_ID", "from/environment")
    settings = load_settings(["--port", "2222"])
    assert (settings.port, settings.model_id) == (2222, "from/environment")


def test_empty_variables_are_as_if_they_were_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "API_KEY", "HOSTNAME", "SPACE_ID", "MAX_TOTAL_TOKENS", "CORS_ALLOW_ORIGIN"):
        monkeypatch.setenv(name, "")
    assert load_settings([]) == Settings()


def test_variables_of_other_programs_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_SOMETHING", "x")
    monkeypatch.setenv("TGI_LOCAL_PORT", "x")
    load_settings([])


def test_no_dotenv_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PORT=1\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings([]).port == 8080


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [(["-p", "81"], "port", 81), (["-g", "5"], "graceful_termination_timeout", 5)],
)
def test_short_flags_of_tgi(args: list[str], name: str, value: int) -> None:
    assert getattr(load_settings(args), name) == value


@pytest.mark.parametrize("name", ["disable_ui", "json_output", "messages_api_enabled", "oai_enabled"])
def test_switches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = name.replace("_", "-")
    assert getattr(load_settings([]), name) is False
    assert getattr(load_settings([f"--{flag}"]), name) is True
    monkeypatch.setenv(name.upper(), "true")
    assert getattr(load_settings([]), name) is True
    assert getattr(load_settings([f"--no-{flag}"]), name) is False


@pytest.mark.parametrize(
    ("args", "variable", "want"),
    [
        (["--cors-allow-origin", "https://a.example"], None, ["https://a.example"]),
        (["--cors-allow-origin", "https://a", "--cors-allow-origin", "https://b"], None, ["https://a", "https://b"]),
        (["--cors-allow-origin", "https://a,https://b"], None, ["https://a", "https://b"]),
        ([], "https://a", ["https://a"]),
        ([], "https://a, https://b,", ["https://a", "https://b"]),
        (["--cors-allow-origin", "https://a"], "https://b", ["https://a"]),
    ],
)
def test_lists(args: list[str], variable: str | None, want: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if variable is not None:
        monkeypatch.setenv("CORS_ALLOW_ORIGIN", variable)
    assert load_settings(args).cors_allow_origin == want


@pytest.mark.parametrize("origin", ["a.example", "https://a.example/", "https://a.example/app", "https://", "a b"])
def test_what_no_browser_sends_is_no_origin(origin: str) -> None:
    assert "https://app.example" in problem("--cors-allow-origin", origin)
    for known in ("*", "null", "http://localhost:3000", "chrome-extension://abc", "http://[::1]:80"):
        assert load_settings(["--cors-allow-origin", known]).cors_allow_origin == [known]


# Where it listens.


@pytest.mark.parametrize("name", ["a1b2c3d4e5f6", "my-laptop", "localhost", "my.host.example", "256.1.1.1"])
def test_a_hostname_that_is_no_address_does_not_break_the_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells and containers put the name of the machine into HOSTNAME."""
    monkeypatch.setenv("HOSTNAME", name)
    settings = load_settings([])
    assert settings.hostname == "127.0.0.1"
    said = [f"HOSTNAME {name} is no IP address: listening on 127.0.0.1"]
    assert settings.notes == ([] if name == "localhost" else said)
    assert load_settings(["--hostname", "127.0.0.1"]).notes == []


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5", "::", "2001:db8::1"])
def test_an_address_that_others_reach_needs_a_key(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--api-key" in problem("--hostname", address)
    monkeypatch.setenv("HOSTNAME", address)
    assert "--api-key" in problem()
    settings = load_settings(["--api-key", SECRET])
    assert settings.hostname == address and not settings.is_loopback


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_needs_none(address: str) -> None:
    assert load_settings(["--hostname", address]).is_loopback


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:99"),
        ("0.0.0.0", "http://127.0.0.1:99"),
        ("::", "http://[::1]:99"),
        ("::1", "http://[::1]:99"),
        ("192.168.1.5", "http://192.168.1.5:99"),
    ],
)
def test_local_url(address: str, url: str) -> None:
    assert load_settings(["--hostname", address, "--api-key", SECRET]).local_url(99) == url


def test_a_space_serves_everyone_on_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACE_ID", "someone/space")
    monkeypatch.setenv("HOSTNAME", "r-someone-space-abc")
    settings = load_settings([])
    assert settings.is_space and (settings.hostname, settings.port, settings.api_key) == ("0.0.0.0", 7860, None)
    monkeypatch.setenv("HOSTNAME", "127.0.0.1")
    assert load_settings([]).hostname == "0.0.0.0"
    assert load_settings(["--port", "9000"]).port == 9000
    monkeypatch.setenv("PORT", "9001")
    assert load_settings([]).port == 9001


# TGI's flags that mean nothing here.


IGNORED: dict[str, str] = {
    "waiting-served-ratio": "0.3",
    "max-waiting-tokens": "20",
    "prometheus-port": "9000",
    "weights-cache-override": "/weights",
    "otlp-endpoint": "localhost:4317",
    "otlp-service-name": "x",
    "usage-stats": "no-stack",
    "shard-uds-path": "/tmp/x",
    "master-addr": "localhost",
    "master-port": "29500",
    "sharded": "false",
    "num-shard": "1",
    "max-image-fetch-size": "1",
}
SWITCHES = ["disable-custom-kernels", "enable-prefill-logprobs"]


@pytest.mark.parametrize("flag", [*IGNORED, *SWITCHES])
def test_a_flag_without_effect_is_accepted_and_noted(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = flag.replace("-", "_").upper()
    assert load_settings([]).notes == []
    [note] = load_settings([f"--{flag}", *([IGNORED[flag]] if flag in IGNORED else [])]).notes
    assert f"--{flag} ({variable}) has no effect here: " in note
    monkeypatch.setenv(variable, IGNORED.get(flag, "true"))
    assert load_settings([]).notes == [note]


def test_all_of_them_are_tested() -> None:
    assert {name.replace("_", "-") for name in NO_EFFECT} == {*IGNORED, *SWITCHES}


@pytest.mark.parametrize("name", sorted(set(NO_EFFECT) - set(NOT_SUPPORTED)))
def test_no_variable_without_effect_breaks_the_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("garbage", "-1", "\t", "x" * 9000, "{}", "[1]"):
        monkeypatch.setenv(name.upper(), value)
        load_settings([])


REFUSED = [
    ["--sharded", "true"],
    ["--num-shard", "2"],
    ["--trust-remote-code"],
    ["--kv-cache-dtype", "fp8_e4m3fn"],
    ["--speculate", "2"],
    ["--rope-scaling", "linear"],
    ["--rope-factor", "2.0"],
    ["--lora-adapters", "a,b"],
]


@pytest.mark.parametrize("args", REFUSED, ids=[args[0] for args in REFUSED])
def test_what_can_not_be_honoured_is_refused_by_name(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = args[0].removeprefix("--").replace("-", "_").upper()
    line = problem(*args)
    assert line.startswith(f"{args[0]} ({name}) is not supported: ") and line.endswith("leave it out")
    monkeypatch.setenv(name, args[1] if len(args) > 1 else "true")
    assert problem() == line


def test_all_refusals_are_tested() -> None:
    assert {args[0].removeprefix("--").replace("-", "_") for args in REFUSED} == set(NOT_SUPPORTED)


def test_neutral_values_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    load_settings("--sharded False --num-shard 1 --speculate 0 --no-trust-remote-code".split())
    monkeypatch.setenv("TRUST_REMOTE_CODE", "false")
    load_settings([])


# What platforms say in variables of their own.


def test_the_variables_of_a_sagemaker_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODEL_ID", "owner/name")
    monkeypatch.setenv("HF_MODEL_REVISION", "v2")
    monkeypatch.setenv("HF_MODEL_QUANTIZE", "bitsandbytes")
    monkeypatch.setenv("HF_MODEL_TRUST_REMOTE_CODE", "false")
    settings = load_settings([])
    assert (settings.model_id, settings.revision, settings.quantize) == ("owner/name", "v2", "bitsandbytes")
    monkeypatch.setenv("MODEL_ID", "other/name")
    assert load_settings([]).model_id == "other/name"
    assert load_settings(["--model-id", "third/name"]).model_id == "third/name"
    monkeypatch.setenv("HF_MODEL_TRUST_REMOTE_CODE", "true")
    assert "is never run here" in problem()


def test_a_quantization_that_only_tgi_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODEL_QUANTIZE", "gptq")
    line = problem()
    assert "'gptq'" in line and "bitsandbytes-nf4" in line


def test_vertex_ai_names_port_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings([]).route_aliases == {}
    monkeypatch.setenv("AIP_HTTP_PORT", "7080")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/healthy")
    settings = load_settings(["--port", "1"])
    assert settings.port == 7080
    assert settings.route_aliases == {"/predict": "/vertex", "/healthy": "/health"}
    monkeypatch.setenv("AIP_HTTP_PORT", "x")
    assert "AIP_HTTP_PORT" in problem()


PLATFORM_VARIABLES = [(name, variable) for name, variables in PLATFORMS.items() for variable in variables]


@pytest.mark.parametrize(("platform", "variable"), PLATFORM_VARIABLES, ids=[name for _, name in PLATFORM_VARIABLES])
def test_a_platform_that_guards_its_containers_is_served_without_a_key(
    platform: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable.upper(), "/8080" if "route" in variable else "8080")
    for hostname in (None, "a1b2c3d4e5f6", "0.0.0.0"):
        if hostname is not None:
            monkeypatch.setenv("HOSTNAME", hostname)
        settings = load_settings([])
        assert (settings.platform, settings.hostname, settings.api_key) == (platform, "0.0.0.0", None)
        assert any(platform in note and "without an API key" in note for note in settings.notes)
        assert policy_for(settings).allowed_hosts is None, "the platform asks by a Host of its own"
    for hostname in ("127.0.0.1", "localhost"):
        settings = load_settings(["--hostname", hostname])
        assert settings.is_loopback and policy_for(settings).allowed_hosts
        assert not any("without an API key" in note for note in settings.notes)
    assert not any("without an API key" in note for note in load_settings(["--api-key", SECRET]).notes)


@pytest.mark.parametrize("variable", ["HF_MODEL_ID", "SAGEMAKER_DOMAIN_ID", "AIP_MODEL_DIR", "AWS_REGION"])
def test_what_people_set_on_machines_of_their_own_opens_nothing(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "x")
    assert load_settings([]).platform is None and load_settings([]).is_loopback
    assert "--api-key" in problem("--hostname", "0.0.0.0")


def test_how_sagemaker_starts_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "9090")
    assert load_settings(["serve"]).port == 9090
    monkeypatch.setenv("SM_NUM_GPUS", "4")
    assert any("SM_NUM_GPUS 4" in note for note in load_settings([]).notes)
    assert load_settings(["serve", "--port", "1"]).port == 9090
    assert "flag" in problem("serve", "serve")


def test_env_is_a_flag_and_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENV", "production")
    assert load_settings([]).env is False
    assert load_settings(["--env"]).env is True and load_settings(["-e"]).env is True


# What is wrong.


WRONG: list[tuple[list[str], list[str]]] = [
    (["--port", "x"], ["--port (PORT)", "'x'"]),
    (["--port", "65536"], ["--port (PORT)", "65535"]),
    (["--port", "-1"], ["--port"]),
    (["--dtype", "int3"], ["--dtype (DTYPE)", "bfloat16", "'int3'"]),
    (["--quantize", "awq"], ["--quantize (QUANTIZE)", "bitsandbytes-nf4"]),
    (["--log-level", "loud"], ["--log-level (LOG_LEVEL)", "debug"]),
    (["--max-concurrent-requests", "0"], ["--max-concurrent-requests", "1"]),
    (["--validation-workers", "0"], ["--validation-workers"]),
    (["--max-total-tokens", "1"], ["--max-total-tokens"]),
    (["--disable-ui=perhaps"], ["--disable-ui"]),
    (["--max-input-tokens", "5", "--max-input-length", "5"], ["max-input-tokens", "max-input-length"]),
    (["--max-input-tokens", "10", "--max-total-tokens", "10"], ["10 must be less than max-total-tokens 10"]),
    (["--max-total-tokens", "2000", "--max-batch-total-tokens", "1999"], ["2000", "max-batch-total-tokens 1999"]),
    (["--max-input-length", "10", "--max-total-tokens", "9"], ["less than"]),
    (["--max-batch-size", "100", "--max-batch-prefill-tokens", "99"], ["max-batch-size 100", "99"]),
    (["--port"], ["--port", "expected one argument"]),
    (["--bogus"], ["--bogus", "--help"]),
    (["--cuda-memory-fraction", "1.5"], ["--cuda-memory-fraction (CUDA_MEMORY_FRACTION)", "1"]),
    (["--cuda-memory-fraction", "0"], ["--cuda-memory-fraction"]),
    (["--stall-timeout", "0"], ["--stall-timeout (STALL_TIMEOUT)", "greater than 0"]),
    (["--stall-timeout", "nan"], ["--stall-timeout"]),
    (["--watermark-gamma", "1"], ["--watermark-gamma (WATERMARK_GAMMA)", "1"]),
    (["--watermark-gamma", "0"], ["--watermark-gamma"]),
    (["--watermark-delta", "-1"], ["--watermark-delta", "0"]),
    (["print-schema", "--port", "1"], ["--help"]),
    (["--max-total-token", "5", "--bogus"], ["did you mean --max-total-tokens?"]),
    (["--max-input-tokens", "64", "--max-total-tokens", "64"], ["max-input-tokens 64", "max-total-tokens 64"]),
    (
        ["--max-batch-prefill-tokens", "256", "--max-batch-total-tokens", "128"],
        ["max-batch-prefill-tokens 256", "max-batch-total-tokens 128"],
    ),
    (["--modelid", "x"], ["--modelid", "did you mean --model-id?"]),
    (["--max_total_tokens=5"], ["did you mean --max-total-tokens?"]),
    (["--hostnam=::"], ["--hostname"]),
    (["gpt2"], ["--model-id", "--help"]),
    (["--bo\ngus"], ["--bo"]),
    (["--bogus" * 1000], ["--bogus"]),
    (["--dtype", "x" * 5000], ["--dtype"]),
    (["--dtype", "two\nlines"], ["--dtype"]),
]


@pytest.mark.parametrize(("args", "words"), WRONG, ids=[" ".join(args)[:60] for args, _ in WRONG])
def test_a_wrong_flag_is_one_line_that_names_it(args: list[str], words: list[str]) -> None:
    line = problem(*args)
    assert all(word in line for word in words), line


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_BEST_OF", "many")
    line = problem()
    assert "MAX_BEST_OF" in line and "'many'" in line


@pytest.mark.parametrize("key", ["two words", "schlüssel", "tab\there", "line\nbreak", "null\0"])
def test_a_key_that_no_header_can_carry(key: str) -> None:
    line = problem("--api-key", key)
    assert "--api-key (API_KEY)" in line
    assert key not in line


def test_an_empty_key_is_no_key() -> None:
    assert load_settings(["--api-key", ""]).api_key is None
    assert "--api-key" in problem("--api-key", "", "--hostname", "0.0.0.0")


@pytest.mark.parametrize(
    "args",
    [
        ["--api-key", f"{SECRET} x"],
        ["--apikey", SECRET],
        [f"--apikey={SECRET}"],
        [f"--api_key={SECRET}"],
        ["--api_key", SECRET],
        ["--api-key", SECRET, "--bogus"],
        ["--api-key", SECRET, "--port", "x"],
        ["--api-key", SECRET, "--max-input-tokens", "5", "--max-input-length", "5"],
        ["--api-key", SECRET, SECRET],
    ],
    ids=" ".join,
)
def test_the_key_is_never_echoed(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert SECRET not in problem(*args)
    with pytest.raises(SystemExit):
        settings_or_exit(args)
    captured = capsys.readouterr()
    assert SECRET not in captured.err + captured.out


def test_the_key_is_not_in_a_log_of_the_settings() -> None:
    settings = load_settings(["--api-key", SECRET])
    assert SECRET not in repr(settings) and SECRET not in str(settings)


def test_exit_status_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        settings_or_exit(["--bogus"])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"{PROGRAM}: ") and captured.err.count("\n") == 1


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(["--help"])
    assert caught.value.code == 0
    text = "".join(capsys.readouterr().out.split())
    hidden = set(NOT_SUPPORTED) - set(NO_EFFECT)  # and what cloud platforms set by variables
    for name, field in Settings.model_fields.items():
        is_hidden = name in hidden or name.startswith(("aip_", "hf_", "sagemaker_", "sm_"))
        assert (f"--{name.replace('_', '-')}" in text) != is_hidden and field.description
    assert SECRET not in text and str(os.getpid()) not in text


def test_settings_can_not_change() -> None:
    with pytest.raises(Exception, match="frozen"):
        load_settings([]).port = 1  # type: ignore[misc]


def test_a_loopback_address_of_ones_own_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    for hostname, name in (("127.0.0.2", "127.0.0.2"), ("::1", "[::1]"), ("127.0.0.1", "127.0.0.1")):
        settings = load_settings(["--hostname", hostname])
        assert settings.local_host == name and name in (policy_for(settings).allowed_hosts or ())


def test_a_header_must_be_sendable() -> None:
    with pytest.raises(UsageError, match="compute-type"):
        load_settings(["--compute-type", "gpü"])
