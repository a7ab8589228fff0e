"""Increments joined are the text that the generated ids add to a full decode."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi_local.text.detokenizer import Detokenizer
from tgi_local.text.tokenizer import TextTokenizer

EMOJI = ["👩‍👩‍👧‍👦", "🏳️‍🌈", "😀", "é", "e\u0301", "日本", "\ufeff", "\x00", "  ", "\n\n", "<|im_end|>", " the", "the"]
TEXT = st.lists(
    st.sampled_from(EMOJI) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=12
).map("".join)


def stream(tokenizer: TextTokenizer, prompt_ids: list[int], ids: list[int], skip: bool = False) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt_ids, skip)
    return [*(detokenizer.step(id) for id in ids), detokenizer.flush()]


@settings(max_examples=300)
@given(text=TEXT, prompt=TEXT, skip=st.booleans())
def test_increments_join_to_the_full_decode(tokenizer: TextTokenizer, text: str, prompt: str, skip: bool) -> None:
    prompt_ids = tokenizer.encode(prompt)
    ids = tokenizer.encode_continuation(text)
    whole = tokenizer.decode(prompt_ids + ids, skip_special_tokens=skip)
    start = tokenizer.decode(prompt_ids, skip_special_tokens=skip)
    assert start + "".join(stream(tokenizer, prompt_ids, ids, skip)) == whole


@settings(max_examples=300)
@given(data=st.data(), skip=st.booleans())
def test_any_byte_level_ids_join_to_the_full_decode(chatml: TextTokenizer, data: st.DataObject, skip: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, chatml.vocab_size + 3), max_size=120))
    assert "".join(stream(chatml, [], ids, skip)) == chatml.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200)
@given(data=st.data())
def test_invalid_bytes_join_to_the_full_decode(chatml: TextTokenizer, data: st.DataObject) -> None:
    byte_ids = [chatml.encode("é")[0], chatml.encode("é")[1], *chatml.encode("😀"), *chatml.encode("日")]
    ids = data.draw(st.lists(st.sampled_from(byte_ids), min_size=30, max_size=150))
    assert "".join(stream(chatml, chatml.encode("x"), ids)) == chatml.decode(ids, skip_special_tokens=False)


def test_a_character_comes_whole(chatml: TextTokenizer) -> None:
    ids = chatml.encode("😀")
    assert stream(chatml, [], ids) == ["", "", "", "😀", ""]


def test_an_incomplete_character_is_flushed(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode_continuation("😀")[:-2]
    increments = stream(tokenizer, tokenizer.encode("a"), ids)
    assert "".join(increments[:-1]) == "" and set(increments[-1]) == {"\ufffd"}


@pytest.mark.parametrize("skip", [True, False])
def test_sentencepiece_spaces(sentencepiece: TextTokenizer, skip: bool) -> None:
    the = sentencepiece.encode("the")
    assert "".join(stream(sentencepiece, [], the + the)) == "the the"
    # The last ids before the answer are all skipped; the space must still be decided by what precedes them.
    prompt_ids = [*sentencepiece.encode("a"), *[2] * 8]
    assert "".join(stream(sentencepiece, prompt_ids, the, skip)) == " the"


def test_a_prompt_that_ends_in_split_characters(sentencepiece: TextTokenizer) -> None:
    prompt_ids = sentencepiece.encode("a😀😀")
    assert "".join(stream(sentencepiece, prompt_ids, sentencepiece.encode_continuation("😀"))) == "😀"


def test_flush_ends_what_was_pending(chatml: TextTokenizer) -> None:
    detokenizer = Detokenizer(chatml, [], False)
    detokenizer.step(chatml.encode("😀")[0])
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_what_is_held_back_is_bounded(chatml: TextTokenizer) -> None:
    detokenizer = Detokenizer(chatml, [], False)
    first = chatml.encode("😀")[0]
    assert len("".join(detokenizer.step(first) for _ in range(1000))) >= 960
