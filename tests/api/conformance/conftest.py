"""Servers with other settings than the shared ones; each serves all the tests that can live with its settings."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.checkpoints import make_checkpoint
from tests.faulty_server import Fault
from tests.serving import Server, running

KEY = "Conformance-Key"
BOS = "<|endoftext|>"
# What a container of TGI would be started with; the port is the one thing the tests must know.
VARIABLES = {
    "HOSTNAME": "a1b2c3d4e5f6",
    "API_KEY": KEY,
    "CORS_ALLOW_ORIGIN": "https://a.example,https://b.example",
    "MAX_CONCURRENT_REQUESTS": "2",
    "MAX_BEST_OF": "1",
    "MAX_STOP_SEQUENCES": "1",
    "MAX_TOP_N_TOKENS": "2",
    "MAX_INPUT_TOKENS": "32",
    "MAX_TOTAL_TOKENS": "64",
    "MAX_CLIENT_BATCH_SIZE": "1",
    "PAYLOAD_LIMIT": "1000",
    "VALIDATION_WORKERS": "1",
    "COMPUTE_TYPE": "2-test-gpu",
    "DISABLE_GRAMMAR_SUPPORT": "true",
    "MESSAGES_API_ENABLED": "true",
    "DTYPE": "float32",
    "JSON_OUTPUT": "true",
    "WAITING_SERVED_RATIO": "1.2",
    "PROMETHEUS_PORT": "9000",
    "USAGE_STATS": "off",
}
KEEP_ALIVE_S = 0.2


@pytest.fixture(scope="session")
def bos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose tokenizer begins every text with a token, and that has no chat template."""
    folder = make_checkpoint(tmp_path_factory.mktemp("bos"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (bos_id,) = [token["id"] for token in tokenizer["added_tokens"] if token["content"] == BOS]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [bos_id], "tokens": [BOS]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="session")
def _limited_server(bos_folder: Path) -> Iterator[Server]:
    variables = {**VARIABLES, "HF_MODEL_ID": str(bos_folder)}
    with running("--disable-ui", env=variables) as server:
        server.client.headers["x-api-key"] = KEY
        yield server


@pytest.fixture
def limited_server(_limited_server: Server) -> Iterator[Server]:
    """Set up by variables alone, with every limit as low as it goes, and a key."""
    with _limited_server.undisturbed():
        yield _limited_server


def fault_text(fault: Fault, num_before: int) -> str:
    """A prompt that brings `fault` after `num_before` tokens."""
    return f"<{fault.name}>{NUMBERS[num_before]}"


# What the tokenizer of the slow server writes as tokens 3, 4, 5 ...
NUMBERS = {3: "!", 4: '"', 5: "#"}


@pytest.fixture(scope="session")
def fault_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer has a token for each fault."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("faults") / "model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    padding = [f"<unused {id}>" for id in range(tokenizer.get_vocab_size(), min(Fault))]
    tokenizer.add_tokens([*padding, *(f"<{fault.name}>" for fault in Fault)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert tokenizer.encode(fault_text(Fault.NAN, 3)).ids == [Fault.NAN, 3]
    return folder


@pytest.fixture(scope="session")
def _slow_server(fault_folder: Path) -> Iterator[Server]:
    """In a platform's container: others reach it, and nobody sends a key."""
    variables = {
        "KEEP_ALIVE_S": str(KEEP_ALIVE_S),
        "SM_NUM_GPUS": "4",
        "MAX_CONCURRENT_REQUESTS": "3",
        "AIP_PREDICT_ROUTE": "/predict",
        "AIP_HEALTH_ROUTE": "/healthy",
        "HOSTNAME": "ip-10-0-0-1.ec2.internal",
    }
    program = ("-m", "tests.faulty_server")
    with running("--model-id", str(fault_folder), "--disable-ui", env=variables, program=program) as s:
        yield s


@pytest.fixture
def slow_server(_slow_server: Server) -> Iterator[Server]:
    """A model that does what prompts tell it (see tests/faulty_server.py), and signs of life in quick succession."""
    yield _slow_server
    _slow_server.wait_idle()
