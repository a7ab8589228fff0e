"""Thoughts and answers, however the text is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi_local.text.reasoning import GEMMA4, HARMONY, THINK, Channel, ReasoningParser, ThoughtFormat, find_thoughts


def run(text: str, size: int, starts_open: bool, format: ThoughtFormat = THINK) -> list[tuple[Channel, str]]:
    parser = ReasoningParser(format, starts_open=starts_open)
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
    parser = ReasoningParser(THINK, starts_open=False)
    assert parser.step("a") == [("content", "a")]
    assert parser.step(" <thi") == [("content", " <thi")]


MISTRAL = find_thoughts("[THINK]", ())
GRANITE = find_thoughts("<think> </think><response></response>", ())
GRANITE_WORDS = find_thoughts("'Here is my thought process:'", ())
APRIEL = find_thoughts("[BEGIN FINAL RESPONSE]", ())
ANALYSIS, FINAL, ASIDE = (f"<|channel|>{name}<|message|>" for name in ("analysis", "final", "commentary"))
NEXT = "<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}'


@pytest.mark.parametrize(
    ("format", "text", "starts_open", "expected"),
    [
        (HARMONY, "plain", False, [("content", "plain")]),
        (HARMONY, f"{FINAL}yes", False, [("content", "yes")]),
        (HARMONY, f"{ANALYSIS}hm{NEXT}{FINAL}yes", False, [("reasoning", "hm"), ("content", "yes")]),
        (HARMONY, f"hm{NEXT}{FINAL}yes", True, [("reasoning", "hm"), ("content", "yes")]),
        (HARMONY, f"{ANALYSIS}a{NEXT}{ANALYSIS}b{NEXT}{FINAL}c<|end|>", False, [("reasoning", "ab"), ("content", "c")]),
        (HARMONY, f"{ANALYSIS}a{NEXT}{ASIDE}So. {NEXT}{CALL}", False, [("reasoning", "a"), ("content", f"So. {CALL}")]),
        (HARMONY, f"{ANALYSIS}cut", False, [("reasoning", "cut")]),
        (GEMMA4, "<|channel>thought\nhm\n<channel|>yes", False, [("reasoning", "hm\n"), ("content", "yes")]),
        (MISTRAL, "[THINK]hm[/THINK]yes", False, [("reasoning", "hm"), ("content", "yes")]),
        (GRANITE, "<think>hm</think>\n<response>yes</response>", False, [("reasoning", "hm"), ("content", "yes")]),
        (GRANITE, "<think>hm</think>a </response> b", False, [("reasoning", "hm"), ("content", "a </response> b")]),
        (GRANITE, "<response>a</response>", False, [("content", "<response>a</response>")]),
        (
            GRANITE_WORDS,
            "Here is my thought process: hm\nHere is my response: yes",
            False,
            [("reasoning", "hm\n"), ("content", "yes")],
        ),
        (
            APRIEL,
            "hm\n[BEGIN FINAL RESPONSE]\nyes\n[END FINAL RESPONSE]\n",
            True,
            [("reasoning", "hm\n"), ("content", "yes")],
        ),
        (APRIEL, "yes [END", False, [("content", "yes [END")]),
    ],
)
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_each_family_s_marks(
    format: ThoughtFormat, text: str, starts_open: bool, expected: list[tuple[Channel, str]], size: int
) -> None:
    assert run(text, size, starts_open, format) == expected


@pytest.mark.parametrize(
    ("source", "tokens", "begin"),
    [
        ("<think>", (), "<think>"),
        ("", ("<think>",), "<think>"),
        ("", ("[THINK]", "[/THINK]"), "[THINK]"),
        ("'<|START_THINKING|>'", (), "<|START_THINKING|>"),
        ("'<seed:think>'", (), "<seed:think>"),
        ("◁think▷", (), "◁think▷"),
        ("'<|channel|>analysis<|message|>'", (), "<|channel|>analysis<|message|>"),
        ("'<|channel>thought\n'", (), "<|channel>thought\n"),
    ],
)
def test_the_marks_are_told_from_the_template_or_the_vocabulary(
    source: str, tokens: tuple[str, ...], begin: str
) -> None:
    found = find_thoughts(source, tokens)
    assert found is not None and found.begin == begin
    assert find_thoughts("{{ m.content }}", ("<s>",)) is None


def test_where_a_prompt_leaves_room_for_a_thought() -> None:
    assert THINK.starts_open("user: a\n<think>\n\n") and not THINK.starts_open("<think> b")
    assert THINK.starts_closed("<think>\n\n</think>\n\n") and not THINK.starts_closed("user: a")
    turn = "<|start|>user<|message|>a<|end|><|start|>assistant"
    assert not HARMONY.starts_closed(turn) and not HARMONY.starts_open(turn)
    assert HARMONY.starts_open(turn + ANALYSIS) and HARMONY.starts_closed(turn + FINAL + "an answer that goes on")


PIECES = ["<think>", "</think>", "<", "</", "think>", "a", " ", "\n"]


@settings(max_examples=300)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=10), size=st.integers(1, 9), starts_open=st.booleans())
def test_the_cut_does_not_matter(pieces: list[str], size: int, starts_open: bool) -> None:
    text = "".join(pieces)
    assert run(text, size, starts_open) == run(text, 1000, starts_open)


MARKS = [ANALYSIS, FINAL, ASIDE, NEXT, "<|end|>", "<|channel|>", "a", " ", "<|"]


@settings(max_examples=200)
@given(pieces=st.lists(st.sampled_from(MARKS), max_size=8), size=st.integers(1, 9), starts_open=st.booleans())
def test_the_cut_of_channels_does_not_matter(pieces: list[str], size: int, starts_open: bool) -> None:
    text = "".join(pieces)
    assert run(text, size, starts_open, HARMONY) == run(text, 1000, starts_open, HARMONY)
