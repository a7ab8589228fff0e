"""Constrained rows in a batch: they obey their grammar, and their neighbours do not notice."""

import json
import random
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from tests.model.test_parity import make_engine, make_request, run, token_ids
from tgi_local.constraints import Grammar, JsonGrammar
from tgi_local.engine.engine import Engine
from tgi_local.model.loader import LoadedModel, LoadOptions, load
from tgi_local.text.grammar import GrammarCompiler
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import FinishReason, GenerationRequest, SamplingParams, StopParams, TokenEvent

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "ages": {"type": "array", "items": {"enum": [1, 22]}}},
    "required": ["name", "ages"],
}
FREE = [make_request(i, [3 + i, 50 + i, 90 + i] * (1 + 3 * i)) for i in range(4)]


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedModel:
    return load(tiny_folder, "tiny", None, False, LoadOptions(dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> TextTokenizer:
    return TextTokenizer.load(tiny_folder)


@pytest.fixture(scope="module")
def grammar(tokenizer: TextTokenizer, loaded: LoadedModel) -> Grammar:
    compiler = GrammarCompiler.load(tokenizer, frozenset(), loaded.vocab_size)
    return compiler.compile(JsonGrammar(SCHEMA, "grammar"))


def constrained(grammar: Grammar) -> list[GenerationRequest]:
    """With every rule that acts before or after the mask."""
    sampling = [
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=1, top_k=1),
        SamplingParams(temperature=1.5, seed=2, top_p=0.9, typical_p=0.9, top_n_tokens=2),
        SamplingParams(temperature=1.0, seed=3, min_p=0.1, repetition_penalty=1.3, frequency_penalty=1.0),
        SamplingParams(logit_bias=((40, 100.0), (4, -50.0))),
    ]
    stopping = StopParams(90)
    return [
        replace(make_request(10 + i, [60 + i] * 9, sampling=params), grammar=grammar, stopping=stopping)
        for i, params in enumerate(sampling)
    ]


def check(events: dict[str, list[TokenEvent]], tokenizer: TextTokenizer) -> dict[str, list[int]]:
    answers = {name: token_ids(mine) for name, mine in events.items() if int(name[1:]) >= 10}
    for name, ids in answers.items():
        if events[name][-1].finish_reason is FinishReason.EOS:
            jsonschema.validate(json.loads(tokenizer.decode(ids, skip_special_tokens=True)), SCHEMA)
    assert any(mine[-1].finish_reason is FinishReason.EOS for name, mine in events.items() if name in answers)
    return answers


def test_free_rows_beside_constrained_ones_are_exact(
    loaded: LoadedModel, tokenizer: TextTokenizer, grammar: Grammar
) -> None:
    alone = run(make_engine(loaded), FREE)
    mixed = run(make_engine(loaded), [*FREE, *constrained(grammar)], random.Random(1))
    for request in FREE:
        mine, other = alone[request.request_id], mixed[request.request_id]
        assert token_ids(mine) == token_ids(other)
        assert [e.token.logprob for e in mine if e.token] == pytest.approx([e.token.logprob for e in other if e.token])
    check(mixed, tokenizer)


def test_constrained_rows_are_the_same_alone_batched_and_preempted(
    loaded: LoadedModel, tokenizer: TextTokenizer, grammar: Grammar
) -> None:
    requests = constrained(grammar)
    alone = check({r.request_id: run(make_engine(loaded), [r])[r.request_id] for r in requests}, tokenizer)
    small: Engine = make_engine(loaded, num_tokens=128)
    assert check(run(small, [*requests, *FREE]), tokenizer) == alone
    assert small._scheduler.num_preempted > 0


class NothingAllowed:
    """A grammar that can not go on."""

    is_finished = False

    def start(self) -> "NothingAllowed":
        return self

    def allowed_tokens(self) -> bytes:
        return bytes(64)

    def advance(self, token_id: int) -> None:
        raise AssertionError("no token can have been chosen")


def test_a_row_without_an_allowed_token_ends_with_an_error_and_the_others_go_on(loaded: LoadedModel) -> None:
    alone = run(make_engine(loaded), FREE)
    engine = make_engine(loaded)
    stuck = replace(
        make_request(99, [5, 6], sampling=SamplingParams(temperature=1.0, top_k=5)), grammar=NothingAllowed()
    )
    for request in [stuck, *FREE]:
        engine.submit(request)
    events: dict[str, list[TokenEvent]] = {}
    while engine.has_work:
        for event in engine.step()[0]:
            events.setdefault(event.request_id, []).append(event)
    (failed,) = events.pop("r99")
    assert "grammar" in str(failed.error)
    assert {name: token_ids(mine) for name, mine in events.items()} == {n: token_ids(m) for n, m in alone.items()}
