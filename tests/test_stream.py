"""Tokens of one request to text events: what is content, reasoning and a tool call, and how it ends."""

from pathlib import Path

import pytest

from tgi_local.stream import TextStream
from tgi_local.text.reasoning import THINK
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import (
    FinishReason,
    Generation,
    GenerationRequest,
    SampledToken,
    SamplingParams,
    StopParams,
    TextOptions,
    TokenEvent,
    ToolCall,
)

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> TextTokenizer:
    return TextTokenizer.load(tiny_folder)


def play(
    tokenizer: TextTokenizer,
    text: str,
    options: TextOptions,
    *,
    prompt: str = "x",
    stops: tuple[str, ...] = (),
    reason: FinishReason = FinishReason.LENGTH,
    min_new_tokens: int = 0,
) -> Generation:
    """The fold of the stream of `text`; stops at the first event that says so, as the service does."""
    ids = tokenizer.encode(text)
    request = GenerationRequest(
        "r",
        prompt,
        (5, 6),
        SamplingParams(min_new_tokens=min_new_tokens),
        StopParams(len(ids), stop_strings=stops),
        text=options,
    )
    stream = TextStream(request, tokenizer, THINK, submitted_s=1.0)
    generation = Generation(request)
    for position, token_id in enumerate(ids, 1):
        finish = reason if position == len(ids) else None
        event = stream.step(TokenEvent("r", SampledToken(token_id, -1.0), finish, started_s=2.0, emitted_s=5.0))
        generation.add(event)
        if event.finish is not None:
            break
    return generation


def test_plain_text_is_passed_on_whole(tokenizer: TextTokenizer) -> None:
    text = "héllo 😀 <think>not parsed</think> " + CALL
    generation = play(tokenizer, text, TextOptions())
    assert generation.text == text and not generation.reasoning and not generation.tool_calls
    assert "".join(token.text for token in generation.tokens) == text


def test_reasoning_and_tool_calls_are_taken_out(tokenizer: TextTokenizer) -> None:
    options = TextOptions(keep_stop_string=False, parse_chat=True, parse_tool_calls=True)
    generation = play(tokenizer, "<think>\nhm</think>\n\nLet me see." + CALL, options)
    assert generation.reasoning.strip() == "hm"
    assert generation.finish is not None and 0 < generation.finish.num_reasoning_tokens < generation.finish.num_tokens
    assert generation.text.strip() == "Let me see."
    assert generation.tool_calls == [ToolCall(0, "add", '{"a":1}')]


def test_a_prompt_that_opens_the_thought(tokenizer: TextTokenizer) -> None:
    options = TextOptions(keep_stop_string=False, parse_chat=True)
    generation = play(tokenizer, "hm</think>yes", options, prompt="...assistant\n<think>\n")
    assert (generation.reasoning, generation.text) == ("hm", "yes")


def test_tool_calls_are_text_when_no_tools_were_offered(tokenizer: TextTokenizer) -> None:
    generation = play(tokenizer, CALL, TextOptions(keep_stop_string=False, parse_chat=True))
    assert generation.text == CALL and not generation.tool_calls


@pytest.mark.parametrize(("keep", "text"), [(True, "one, two, three"), (False, "one, two, ")])
def test_stop_strings(tokenizer: TextTokenizer, keep: bool, text: str) -> None:
    generation = play(tokenizer, "one, two, three, four", TextOptions(keep_stop_string=keep), stops=("three", "never"))
    assert generation.text == text
    assert generation.finish is not None and generation.finish.reason is FinishReason.STOP_SEQUENCE
    assert generation.finish.stop_string == "three"
    assert generation.finish.num_tokens == len(generation.tokens)


def test_a_held_back_beginning_of_a_stop_string_is_not_lost(tokenizer: TextTokenizer) -> None:
    generation = play(tokenizer, "one, two, thr", TextOptions(keep_stop_string=False), stops=("three",))
    assert generation.text == "one, two, thr"
    assert generation.finish is not None and generation.finish.reason is FinishReason.LENGTH


def test_special_tokens_show_in_tokens_and_not_in_text(tokenizer: TextTokenizer) -> None:
    generation = play(tokenizer, "bye<|im_end|>", TextOptions(), reason=FinishReason.EOS)
    assert generation.text == "bye" and generation.tokens[-1].text == "<|im_end|>"
    assert generation.tokens[-1].special and not generation.tokens[0].special


def test_timings(tokenizer: TextTokenizer) -> None:
    generation = play(tokenizer, "bye", TextOptions())
    assert generation.finish is not None
    timings = generation.finish.timings
    assert (timings.validation_s, timings.queue_s, timings.inference_s, timings.total_s) == (1.0, 1.0, 3.0, 5.0)


def test_an_error_event_is_raised(tokenizer: TextTokenizer) -> None:
    request = GenerationRequest("r", "x", (5,), SamplingParams(), StopParams(3))
    stream = TextStream(request, tokenizer, None, 0.0)
    with pytest.raises(RuntimeError, match="boom"):
        stream.step(TokenEvent("r", error=RuntimeError("boom")))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("stop", ["ab", "abc", "c a", "xyz"])
def test_stop_strings_wait_for_enough_tokens(tokenizer: TextTokenizer, stop: str, keep: bool) -> None:
    text = "abc abd abe abc xyz"
    ids = tokenizer.encode(text)
    ends = [i + len(stop) for i in range(len(text)) if text.startswith(stop, i)]
    for min_new_tokens in range(len(ids) + 1):
        early = tokenizer.decode(ids[:min_new_tokens], skip_special_tokens=True)
        end = next((end for end in ends if end > len(early)), None)
        want = text if end is None else text[: end if keep else end - len(stop)]
        options = TextOptions(keep_stop_string=keep)
        generation = play(tokenizer, text, options, stops=(stop,), min_new_tokens=min_new_tokens)
        assert generation.text == want
        assert len(generation.tokens) > min_new_tokens or end is None
