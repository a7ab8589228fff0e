"""Stop strings against an oracle that reads one character at a time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi_local.text.stop_strings import StopStrings, partial_match_len

LETTERS = st.text("ab", min_size=0, max_size=12)


def oracle(text: str, stops: list[str], keep: bool, num_early: int = 0) -> tuple[str, str | None]:
    """`num_early` characters must have come before anything ends the text."""
    for end in range(num_early + 1, len(text) + 1):
        matched = [stop for stop in stops if text[:end].endswith(stop)]
        if matched:
            stop = max(matched, key=len)
            return text[:end] if keep else text[: end - len(stop)], stop
    return text, None


def run(increments: list[str], stops: list[str], keep: bool, num_early: int = 0) -> tuple[str, str | None]:
    machine = StopStrings(stops, keep)
    emitted = ""
    for number, increment in enumerate(increments):
        text, matched = machine.step(increment, may_end=number >= num_early)
        emitted += text
        if keep and matched is None:
            assert text == increment, "nothing is withheld where the stop string stays"
        if matched is not None:
            assert machine.step("more") == ("", matched)
            return emitted + machine.flush(), matched
    return emitted + machine.flush(), None


@settings(max_examples=500)
@given(
    increments=st.lists(LETTERS, max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
    keep=st.booleans(),
    num_early=st.integers(0, 4),
)
def test_any_cut_gives_the_oracles_answer(increments: list[str], stops: list[str], keep: bool, num_early: int) -> None:
    early = len("".join(increments[:num_early]))
    assert run(increments, stops, keep, num_early) == oracle("".join(increments), stops, keep, early)


@settings(max_examples=200)
@given(text=LETTERS, stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4))
def test_withheld_text_is_only_what_may_begin_a_stop(text: str, stops: list[str]) -> None:
    emitted, matched = StopStrings(stops, keep=False).step(text)
    if matched is None:
        held = text[len(emitted) :]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize("stop", [".*", "[a", "\\", "😀", "\n\n", "User:", "a" * 256])
def test_stops_are_plain_text(stop: str) -> None:
    assert run([f"x{stop}", "y"], [stop], keep=False) == ("x", stop)
    assert run([*f"x{stop}y"], [stop], keep=True) == (f"x{stop}", stop)


def test_text_after_the_stop_is_cut() -> None:
    assert StopStrings(["END"], keep=True).step("one END two") == ("one END", "END")
    assert StopStrings(["END"], keep=False).step("one END two") == ("one ", "END")


def test_an_unfinished_stop_is_flushed() -> None:
    machine = StopStrings(["</s>"], keep=False)
    assert machine.step("a</") == ("a", None)
    assert machine.flush() == "</"
    assert machine.flush() == ""


def test_no_stops_pass_everything() -> None:
    assert run(["a", "b"], [], keep=False) == ("ab", None)


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""], keep=True)


def test_partial_match_len() -> None:
    assert partial_match_len("x<to", "<tool>", "</s>") == 3
    assert partial_match_len("x<tool>", "<tool>") == 0
    assert partial_match_len("", "a") == partial_match_len("a") == 0


def test_a_megabyte_is_scanned_in_linear_time() -> None:
    machine = StopStrings(["a" * 255 + "b"] * 4, keep=False)
    machine.step("a" * 1_000_000)  # some ms; a quadratic scan takes minutes, and is ended by the limit
