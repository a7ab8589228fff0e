"""lm-eval's requests, and lm-eval itself: its numbers are those of Transformers on the same checkpoint."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.clients.test_python_clients import PROGRAMS, interpreter, run
from tests.serving import ROOT, Server

LM_EVAL = Path(f"{sys.prefix}-lm-eval")
DEMO = ROOT / "tgi_local" / "demo_model"
QUESTIONS = [json.loads(line) for line in (PROGRAMS / "lm_eval_tasks" / "choices.jsonl").read_text().splitlines()]

# The number of context tokens, and all tokens, of one choice of one question.
Case = tuple[int, list[int]]
# The log-likelihood of a choice, and whether greedy decoding would write it.
Score = tuple[float, bool]


def cases(folder: Path) -> list[Case]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [(question["question"], choice) for question in QUESTIONS for choice in question["choices"]]
    return [(len(tokenizer(context).input_ids), tokenizer(context + choice).input_ids) for context, choice in pairs]


def expected(folder: Path) -> list[Score]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for num_context, ids in cases(folder):
        with torch.inference_mode():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)[num_context - 1 : -1]
        continuation = torch.tensor(ids[num_context:])
        is_greedy = bool((logprobs.argmax(-1) == continuation).all())
        scores.append((logprobs.gather(1, continuation[:, None]).sum().item(), is_greedy))
    return scores


def check(scores: list[Score], folder: Path) -> None:
    want = expected(folder)
    assert [value for value, _ in scores] == pytest.approx([value for value, _ in want], abs=1e-3)
    assert [is_greedy for _, is_greedy in scores] == [is_greedy for _, is_greedy in want]


def parsed(answer: dict[str, Any], nums_context: list[int]) -> list[Score]:
    """As lm-eval reads it: without the one token that was generated; greedy when no token had a likelier one."""
    scores = []
    for choice, num_context in zip(sorted(answer["choices"], key=lambda c: c["index"]), nums_context, strict=True):
        values = choice["logprobs"]["token_logprobs"][num_context:-1]
        tops = choice["logprobs"]["top_logprobs"][num_context:-1]
        scores.append((sum(values), all(value == max(top.values()) for value, top in zip(values, tops, strict=True))))
    return scores


@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_requests_of_lm_eval(
    demo_server: Server, tiny_server: Server, tiny_folder: Path, model: str, batch_size: int = 4
) -> None:
    server, folder = (demo_server, DEMO) if model == "demo" else (tiny_server, tiny_folder)
    scores: list[Score] = []
    all_cases = cases(folder)
    for start in range(0, len(all_cases), batch_size):
        batch = all_cases[start : start + batch_size]
        fields = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
        body = {"model": "tgi", "prompt": [ids for _, ids in batch], **fields}
        answer = server.client.post(f"{server.url}/v1/completions", json=body).json()
        scores += parsed(answer, [num_context for num_context, _ in batch])
    check(scores, folder)
    assert {is_greedy for _, is_greedy in scores} == ({True, False} if model == "demo" else {False})


def evaluate(server: Server, folder: Path, tmp_path: Path, task: str, kind: str, **arguments: Any) -> dict[str, Any]:
    python = interpreter(LM_EVAL, "make lm-eval")
    further = json.dumps(arguments)
    printed = run(python, "lm_eval_client", server.url, str(folder), task, kind, further, HF_HOME=str(tmp_path))
    results: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return results


@pytest.mark.long
@pytest.mark.parametrize("as_ids", [True, False], ids=["token ids", "strings"])
@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_loglikelihoods(
    demo_server: Server, tiny_server: Server, tiny_folder: Path, tmp_path: Path, model: str, as_ids: bool
) -> None:
    server, folder = (demo_server, DEMO) if model == "demo" else (tiny_server, tiny_folder)
    results = evaluate(
        server, folder, tmp_path, "choices", "local-completions", tokenized_requests=as_ids, batch_size=4
    )
    check([(value, is_greedy) for sample in results["samples"] for [[value, is_greedy]] in sample], folder)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "before"), [("local-completions", "\n"), ("local-chat-completions", "")])
def test_generated_until(demo_server: Server, tmp_path: Path, kind: str, before: str) -> None:
    results = evaluate(demo_server, DEMO, tmp_path, "counting", kind, num_concurrent=2)
    assert [text for [[text]] in results["samples"]] == [before + "1, 2, 3, 4, 5", before + "1, 2, 3, 4, 5, 6, "]
