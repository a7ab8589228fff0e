"""Thoughts and answers, however the text is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi_local.text.reasoning import Channel, ReasoningParser


def run(text: str, size: int, starts_open: bool) -> list[tuple[Channel, str]]:
    parser = ReasoningParser("<think>", "</think>", starts_open)
    joined: list[tuple[Channel, str]] = []
    increments = [text[start : start + size] for start in range(0, len(text), size)]
    for channel, part in [item for increment in increments for item in parser.step(increment)] + parser.flush():
        assert part
        if joined and joined[-1][0] == channel:
            joined[-1] = (channel, joined[-1][1] + part)
        else:
            joined.append((channel, part))
    return joined


@pytest.mark.parametrize(
    ("text", "starts_open", "expected"),
    [
        ("", False, []),
        ("plain", False, [("content", "plain")]),
        ("  plain", False, [("content", "  plain")]),
        ("<think>\nhm\n</think>\n\nyes", False, [("reasoning", "hm\n"), ("content", "yes")]),
        ("\n<think>hm</think>yes", False, [("reasoning", "hm"), ("content", "yes")]),
        ("<think>\n\n</think>\n\nyes", False, [("content", "yes")]),
        ("<think>hm</think>yes <think>no</think>", False, [("reasoning", "hm"), ("content", "yes <think>no</think>")]),
        ("Use <think> tags", False, [("content", "Use <think> tags")]),
        ("\nhm</think>\nyes", True, [("reasoning", "hm"), ("content", "yes")]),
        ("<think>hm</think>yes", True, [("reasoning", "hm"), ("content", "yes")]),
        ("hm </thin", True, [("reasoning", "hm </thin")]),
        ("<think>cut off", False, [("reasoning", "cut off")]),
        ("<thi", False, [("content", "<thi")]),
        ("<thi", True, [("reasoning", "<thi")]),
        ("</think>yes", True, [("content", "yes")]),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_channels(text: str, starts_open: bool, expected: list[tuple[Channel, str]], size: int) -> None:
    assert run(text, size, starts_open) == expected


def test_content_without_a_thought_is_not_held_back() -> None:
    parser = ReasoningParser("<think>", "</think>", False)
    assert parser.step("a") == [("content", "a")]
    assert parser.step(" <thi") == [("content", " <thi")]


PIECES = ["<think>", "</think>", "<", "</", "think>", "a", " ", "\n"]


@settings(max_examples=300)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=10), size=st.integers(1, 9), starts_open=st.booleans())
def test_the_cut_does_not_matter(pieces: list[str], size: int, starts_open: bool) -> None:
    text = "".join(pieces)
    assert run(text, size, starts_open) == run(text, 1000, starts_open)
