"""The corpus of the demo chat model: deterministic, complete, and free of the held-out prompts."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools" / "demo_model"
SAMPLE = 30_000


@pytest.fixture(scope="module")
def modules():
    """The generator and the held-out set; they are scripts beside the package, not a part of it."""
    sys.path.insert(0, str(TOOLS))
    try:
        import corpus
        import heldout

        yield corpus, heldout
    finally:
        sys.path.remove(str(TOOLS))
        for name in [name for name in sys.modules if name.partition(".")[0] in ("corpus", "heldout")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def sample(modules):
    corpus, _ = modules
    return list(corpus.build(SAMPLE, seed=1))


def user_prompts(dialogue) -> list[str]:
    if dialogue.text is not None:
        return [dialogue.text.partition("\n")[0]]
    return [m["content"] for m in dialogue.messages if m["role"] == "user"]


def test_same_seed_same_corpus(modules):
    corpus, _ = modules
    assert list(corpus.build(300, seed=5)) == list(corpus.build(300, seed=5))
    assert list(corpus.build(300, seed=5)) != list(corpus.build(300, seed=6))


def test_every_skill_is_represented(modules, sample):
    corpus, _ = modules
    counts = Counter(dialogue.skill for dialogue in sample)
    assert all(counts[skill] >= 20 for skill in corpus.SKILLS), counts


def test_every_sum_and_every_count_is_taught(sample):
    answers = {m["content"] for d in sample for m in d.messages if m["role"] == "assistant" and m.get("content")}
    assert all(f"{a} + {b} = {a + b}" in answers for a in range(21) for b in range(21))
    assert all(", ".join(map(str, range(1, n + 1))) in answers for n in range(1, 21))


def test_no_heldout_prompt_is_trained(modules, sample):
    corpus, heldout = modules
    trained = {corpus.base.normal(prompt) for dialogue in sample for prompt in user_prompts(dialogue)}
    leaked = [case.prompt for case in heldout.heldout_cases() if is_heldout_wording(case, heldout)]
    leaked = [prompt for prompt in leaked if corpus.base.normal(prompt) in trained]
    assert not leaked


def is_heldout_wording(case, heldout) -> bool:
    """For these two skills the system prompt and the tool result are held out, not the question."""
    return case.skill not in ("system: end with", "tool result")


def test_heldout_words_are_not_trained(modules, sample):
    _, heldout = modules
    systems = {m["content"] for d in sample for m in d.messages if m["role"] == "system"}
    rules = {wording.format(x=word) for wording in heldout.END_WITH for word in heldout.LAST_WORDS} | set(
        heldout.ONE_WORD
    )
    assert not rules & systems
    text = "\n".join(prompt for dialogue in sample for prompt in user_prompts(dialogue))
    assert not [word for word in heldout.NAMES + heldout.CITIES if f" {word}" in text]


def test_heldout_set_covers_every_skill(modules):
    _, heldout = modules
    counts = Counter(case.skill for case in heldout.heldout_cases())
    assert len(counts) >= 12
    assert min(counts.values()) >= 6
