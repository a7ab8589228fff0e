"""A sequence's constraint hears each of its tokens once, and its failure is its own."""

from dataclasses import dataclass, field, replace

import pytest

from tests.engine.test_simulation import make_engine, make_request, run_to_end, tokens
from tests.fakes import expected_output
from tgi_local.types import FinishReason, GenerationRequest


@dataclass
class Recorder:
    """Allows everything, is finished after `limit` tokens and fails at the `fault`-th."""

    limit: int = 1000
    fault: int = 1000
    heard: list[int] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        return len(self.heard) >= self.limit

    def allowed_tokens(self) -> bytes:
        return b"\xff" * 125

    def advance(self, token_id: int) -> None:
        self.heard.append(token_id)
        if len(self.heard) == self.fault:
            raise ValueError("the grammar can not be followed further")


@dataclass
class Grammar:
    limit: int = 1000
    fault: int = 1000
    started: list[Recorder] = field(default_factory=list)

    def start(self) -> Recorder:
        self.started.append(Recorder(self.limit, self.fault))
        return self.started[-1]


def constrained(grammar: Grammar, i: int, num_new: int = 20) -> GenerationRequest:
    return replace(make_request(f"r{i}", [i + 1] * 6, num_new), grammar=grammar)


def test_each_token_is_heard_once_also_when_preempted() -> None:
    engine, _ = make_engine(num_blocks=12)
    grammar = Grammar()
    for i in range(5):
        engine.submit(constrained(grammar, i))
    events = run_to_end(engine)
    assert engine._scheduler.num_preempted > 0
    for i, recorder in enumerate(grammar.started):
        assert recorder.heard == tokens(events[f"r{i}"]) == expected_output([i + 1] * 6, 20)


def test_the_end_of_the_grammar_is_the_end_of_the_answer() -> None:
    engine, _ = make_engine()
    engine.submit(constrained(Grammar(limit=7), 0))
    engine.submit(constrained(Grammar(limit=20), 1))
    events = run_to_end(engine)
    assert len(events["r0"]) == 7 and events["r0"][-1].finish_reason is FinishReason.EOS
    assert events["r1"][-1].finish_reason is FinishReason.LENGTH  # the limit comes first


@pytest.mark.parametrize("fault", [1, 5, 20])
def test_a_grammar_that_fails_ends_its_row_only(fault: int) -> None:
    engine, _ = make_engine()
    engine.submit(constrained(Grammar(fault=fault), 0))
    engine.submit(constrained(Grammar(), 1))
    events = run_to_end(engine)
    assert len(events["r0"]) == fault and "grammar" in str(events["r0"][-1].error)
    assert tokens(events["r1"]) == expected_output([2] * 6, 20)
