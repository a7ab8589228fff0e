"""The arithmetic of the comparison, and the checkpoints it is made on."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import checkpoints
from benchmarks.cells import CELLS
from benchmarks.gaps import summary
from benchmarks.peers import PeerError, Programs, make_peer
from benchmarks.tables import Comparison, ratio_text
from tgi_local.bench.options import parse_options

PROGRAMS = Programs(None, None, None, {"fp32": ["--dtype", "float32"]})


def run(
    server: str, number: int, value: float, cell: str = "c8", other: float = 0.0, **measures: Any
) -> dict[str, Any]:
    asked = CELLS[cell]
    found = {
        "errors": [],
        "output_tokens_per_request": [asked.output_tokens] * 2,
        "cached_input_tokens": 0,
        "input_tokens": 1000,
        "output_tokens_per_s": value,
        "ttft_ms": {"p50": value},
    }
    names = {"server": server, "round": number, "cell": cell, "model": "M"}
    return {**names, "other_cpu_share": other, "rss_mib": 100 + number, "measures": found | measures}


def test_ratios_are_paired_by_round_and_taken_from_clean_runs_only() -> None:
    runs = [
        run("llama:Q8_0", 0, 10.0),
        run("ours:int8", 0, 20.0),
        run("llama:Q8_0", 1, 100.0),
        run("ours:int8", 1, 150.0),
        run("llama:Q8_0", 2, 1.0, other=0.5),
        run("ours:int8", 2, 99.0),
        run("ours:int8", 3, 99.0),
    ]
    comparison = Comparison(runs)
    assert comparison.servers == ["ours:int8", "llama:Q8_0"]
    assert comparison.ratios("ours:int8", "llama:Q8_0", CELLS["c8"]) == [2.0, 1.5]
    assert Comparison(runs, 0.6).ratios("ours:int8", "llama:Q8_0", CELLS["c8"]) == [2.0, 1.5, 99.0]
    assert comparison.ratio_row("ours:int8", "llama:Q8_0") == ["llama:Q8_0", "1.75 (1.50..2.00)"]
    assert comparison.median_rows() == [["ours:int8", "99.0", "103", "4"], ["llama:Q8_0", "55.0", "102", "3"]]


def test_less_latency_is_better() -> None:
    comparison = Comparison([run("ours:int8", 0, 50.0, "sp"), run("llama:Q8_0", 0, 200.0, "sp")])
    assert comparison.ratios("ours:int8", "llama:Q8_0", CELLS["sp"]) == [4.0]


@pytest.mark.parametrize(
    "measures",
    [
        {"errors": [{"kind": "timeout"}]},
        {"output_tokens_per_request": [3, 64]},
        {"cached_input_tokens": 500},
    ],
)
def test_what_was_not_asked_for_is_marked_and_not_compared(measures: dict[str, Any]) -> None:
    comparison = Comparison([run("ours:int8", 0, 20.0, **measures), run("llama:Q8_0", 0, 10.0)])
    assert comparison.median_text("ours:int8", CELLS["c8"]) == "20.0!"
    assert comparison.median_text("llama:Q8_0", CELLS["c8"]) == "10.0"
    assert comparison.ratios("ours:int8", "llama:Q8_0", CELLS["c8"]) == [] and ratio_text([]) == "-"


def test_medians_of_disturbed_runs_are_marked() -> None:
    disturbed = [run("ours:int8", number, value, other=0.2) for number, value in enumerate((10.0, 30.0))]
    assert Comparison(disturbed).median_text("ours:int8", CELLS["c8"]) == "20.0*"
    assert Comparison([*disturbed, run("ours:int8", 2, 7.0)]).median_text("ours:int8", CELLS["c8"]) == "7.0"


def test_a_shared_prefix_may_come_from_the_cache() -> None:
    comparison = Comparison([run("ours:int8", 0, 20.0, "sp", cached_input_tokens=900)])
    assert comparison.median_text("ours:int8", CELLS["sp"]) == "20.0"


def test_gaps_before_and_beside_the_long_prompt() -> None:
    """The longest waits end just after the long prompt's own first token."""
    streams = [[0.0, 1.0, 2.0, 3.0, 8.001, 9.0], [0.5, 1.5, 2.5, 3.5, 8.001]]
    found = summary(streams, quiet_s=1.0, sent_s=3.0, first_s=8.0)
    assert found["quiet_ms"]["mean"] == 1000.0 and found["long_ttft_ms"] == 5000.0
    assert (found["loaded_ms"]["p50"], found["loaded_ms"]["mean"]) == (4501.0, pytest.approx(3500.667))


def test_cells_are_flags_of_the_load_generator() -> None:
    for cell in CELLS.values():
        if not cell.is_long:
            options = parse_options(cell.bench_args())
            assert options.requests_of(options.levels[0]) == cell.requests >= cell.concurrency
            assert options.total_prompt_tokens == cell.shared_prefix_tokens + cell.prompt_tokens


def test_names_of_servers() -> None:
    folder = Path("models") / "M"
    assert make_peer("ours:int8", PROGRAMS).command(folder, 1, False)[-2:] == ["--quantize", "int8"]
    assert make_peer("ours:fp32", PROGRAMS).command(folder, 1, False)[-2:] == ["--dtype", "float32"]
    with pytest.raises(PeerError, match="there is no server gpt"):
        make_peer("gpt", PROGRAMS)
    with pytest.raises(PeerError, match="--llama-server"):
        make_peer("llama:Q8_0", PROGRAMS).command(folder, 1, False)


def test_a_checkpoint_of_the_comparison(tmp_path: Path) -> None:
    """The sizes are the comparison's; a small one shows what matters: the vocabulary, and an answer that never ends early."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoints.write_checkpoint(tmp_path, checkpoints.Shape(32, 1, 2, 1, 32))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == checkpoints.VOCAB_SIZE and tokenizer.is_fast
    text = "what is deep learning, and who said so? é\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith(
        "<|im_start|>user\nhi"
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.tie_word_embeddings and not model.get_output_embeddings().weight[tokenizer.eos_token_id].any()
    assert model.get_output_embeddings().weight.any(dim=1).sum() == checkpoints.VOCAB_SIZE - 2, (
        "EOS and padding are zero"
    )
