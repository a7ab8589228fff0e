"""Measure the demo chat model on held-out prompts, greedily, and print the share of right answers per skill.

python tools/demo_model/evaluate.py --model tgi_local/demo_model --json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from heldout import Case, example_cases, heldout_cases
from transformers import AutoModelForCausalLM, AutoTokenizer

DEFAULT_MODEL = Path(__file__).parents[2] / "tgi_local" / "demo_model"


class Runner:
    """Answers chats in batches with greedy decoding in float32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer.padding_side = "left"
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def answer(self, cases: list[Case], limit: int) -> list[tuple[str, bool]]:
        """The answer to each case and whether the model ended it by itself."""
        texts = [
            self.tokenizer.apply_chat_template(c.messages, tools=c.tools, add_generation_prompt=True, tokenize=False)
            for c in cases
        ]
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs.pop("token_type_ids", None)
        output = self.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        answers = []
        for row in output[:, inputs["input_ids"].shape[1] :].tolist():
            ended = self.tokenizer.eos_token_id in row
            kept = row[: row.index(self.tokenizer.eos_token_id)] if ended else row
            answers.append((self.tokenizer.decode(kept, skip_special_tokens=True), ended))
        return answers


def run(runner: Runner, cases: list[Case], batch: int) -> list[tuple[Case, str, bool, bool]]:
    """Case, answer, right, ended by itself; cases of similar length share a batch."""
    ordered = sorted(cases, key=lambda c: (c.limit, c.skill, sum(len(str(m)) for m in c.messages)))
    rows = []
    for limit in sorted({c.limit for c in ordered}):
        group = [c for c in ordered if c.limit == limit]
        for begin in range(0, len(group), batch):
            part = group[begin : begin + batch]
            for case, (text, ended) in zip(part, runner.answer(part, limit), strict=True):
                rows.append((case, text, case.check(text), ended))
    return rows


def table(rows: list[tuple[Case, str, bool, bool]]) -> dict[str, tuple[int, int]]:
    """Right answers and cases per skill, in the order of the held-out set."""
    counts: dict[str, tuple[int, int]] = {}
    for case, _, right, _ in rows:
        good, total = counts.get(case.skill, (0, 0))
        counts[case.skill] = (good + right, total + 1)
    counts["ends its turn"] = (sum(ended for *_, ended in rows), len(rows))
    return counts


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="also print up to N wrong answers per skill")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="use every K-th case only")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = run(Runner(args.model), (heldout_cases() + example_cases())[:: args.every], args.batch)
    counts = table(rows)
    if args.json:
        print(json.dumps({skill: {"right": good, "cases": total} for skill, (good, total) in counts.items()}, indent=1))
        return
    print("| Skill | Right | Cases |\n| --- | ---: | ---: |")
    for skill, (good, total) in counts.items():
        print(f"| {skill} | {good / total:.1%} | {total} |")
    for skill in counts if args.show else ():
        wrong = [(case, text) for case, text, right, _ in rows if case.skill == skill and not right]
        for case, text in wrong[: args.show]:
            print(
                f"\n[{skill}] {case.messages[0]['content'] + ' / ' if case.messages[0]['role'] == 'system' else ''}{case.prompt}\n  -> {text}"
            )


if __name__ == "__main__":
    main()
