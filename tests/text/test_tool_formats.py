"""Every family's template gets what it needs, and what its model writes is constrained to calls and read as such."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.text.families import FAMILIES, WEATHER, Family
from tests.text.test_grammar import bits
from tgi_local.constraints import Grammar, JsonGrammar, ToolGrammar, ToolSignature
from tgi_local.text.chat_template import ChatTemplate
from tgi_local.text.grammar import GrammarCompiler
from tgi_local.text.loose_calls import LooseCallParser
from tgi_local.text.reasoning import ReasoningParser
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.text.tool_calls import Content, Item, ToolCallParser
from tgi_local.text.tool_formats import JSON, LLAMA
from tgi_local.text.tool_grammar import Thought
from tgi_local.types import Generation, TextEvent, ToolCall

TOOLS = (ToolSignature("get_weather", WEATHER), ToolSignature("stop", {"type": "object", "properties": {}}))
OFFERED: Any = [
    {"type": "function", "function": {"name": tool.name, "description": "", "parameters": tool.parameters}}
    for tool in TOOLS
]
SPELLINGS = {"special": True, "added": False, "letters": None}
ANSWER = JsonGrammar({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}, "f")
MAX_TOKENS = 1500

each_family = pytest.mark.parametrize("name", FAMILIES)


@cache
def tokenizer(name: str, spelling: str) -> TextTokenizer:
    return FAMILIES[name].tokenizer(special=SPELLINGS[spelling])


@cache
def compiler(name: str, spelling: str) -> GrammarCompiler:
    words = tokenizer(name, spelling)
    family = FAMILIES[name]
    return GrammarCompiler.load(words, frozenset(), words.vocab_size, format=family.format, thoughts=family.thoughts)


def fold(items: Iterator[Item] | list[Item]) -> tuple[str, list[ToolCall]]:
    """(content, calls) of what a parser gives."""
    generation = Generation(None)  # type: ignore[arg-type]
    for item in items:
        if isinstance(item, Content):
            generation.add(TextEvent(None, text=item.text))
        else:
            generation.add(TextEvent(None, tool_calls=(item,)))
    return generation.text, generation.tool_calls


def read(
    family: Family, text: str, size: int = 1000, *, loosely: bool = False, starts_open: bool = False
) -> tuple[str, list[ToolCall]]:
    """As in a stream: thoughts and marks of messages first, where there are any."""
    parser = LooseCallParser(family.format, TOOLS) if loosely else ToolCallParser(family.format, TOOLS)
    thoughts = ReasoningParser(family.thoughts, starts_open=starts_open)
    parts = [part for at in range(0, len(text), size) for part in thoughts.step(text[at : at + size])]
    items = [item for channel, said in parts + thoughts.flush() if channel == "content" for item in parser.step(said)]
    return fold(items + parser.flush())


@each_family
def test_the_format_is_told_from_the_template(name: str) -> None:
    template = ChatTemplate(tokenizer(name, "special"))
    assert template.tool_format is FAMILIES[name].format
    assert template.supports_tools is not name.startswith("no-")


def test_an_unknown_format_is_asked_for_json() -> None:
    backend = FAMILIES["llama"].tokenizer(special=None)
    assert ChatTemplate(backend).tool_format is LLAMA  # by its template
    unknown = Family("{% for tool in tools %}{{ tool.function.name }}{% endfor %}", JSON, "").tokenizer(special=None)
    unknown_template = ChatTemplate(unknown)
    assert unknown_template.supports_tools and unknown_template.tool_format.tokens == ("<tool_call>", "</tool_call>")


CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{at:024d}",
                "type": "function",
                "function": {"name": "get_weather", "arguments": json.dumps({"city": f"Bonn {at}", "days": 3})},
            }
            for at in (1, 2)
        ],
    },
    {"role": "tool", "tool_call_id": f"call_{1:024d}", "content": "rain-one"},
    {"role": "tool", "tool_call_id": f"call_{2:024d}", "content": [{"type": "text", "text": "sun-two"}]},
]


@each_family
def test_a_round_of_calls_reaches_the_model(name: str) -> None:
    """Several calls, their results, ids as this server makes them, no content: every template writes all of it."""
    prompt = ChatTemplate(tokenizer(name, "special")).render(CONVERSATION, tools=OFFERED).text
    places = [prompt.index(text) for text in ("Bonn 1", "Bonn 2", "rain-one", "sun-two")]
    one_by_one = name in ("llama", "gpt-oss")
    assert places == (sorted(places) if not one_by_one else places) and places[0] < places[2] < places[3]
    assert (places[1] > places[2]) is one_by_one
    assert "get_weather" in prompt and ("stop" in prompt or name == "qwen-coder")
    assert "{'city'" not in prompt and '\\"city' not in prompt
    assert "None" not in prompt


@each_family
def test_calls_without_ids_and_older_messages(name: str) -> None:
    call = {"type": "function", "function": {"name": "stop", "arguments": {}}}
    messages = [
        {"role": "user", "content": "stop"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "function", "name": "stop", "content": "stopped-it"},
    ]
    assert "stopped-it" in ChatTemplate(tokenizer(name, "added")).render(messages).text


def test_ids_of_nine_characters_stay_and_others_become_such() -> None:
    template = ChatTemplate(tokenizer("mistral", "special"))
    text = template.render(CONVERSATION, tools=OFFERED).text
    ids = [part.split('"')[0] for part in text.split('"id": "')[1:]]
    results = [part.split('"')[0] for part in text.split('"call_id": "')[1:]]
    assert len(set(ids)) == 2 and ids == results and all(len(id) == 9 and id.isalnum() for id in ids)
    kept = json.loads(json.dumps(CONVERSATION[:3]).replace(f"call_{1:024d}", "abcDEF123"))
    assert template.render(kept).text.count("abcDEF123") == 2


def test_tools_in_plain_words() -> None:
    system = {"role": "system", "content": "be brief"}
    with_system = ChatTemplate(tokenizer("no-tools", "special"))
    text = with_system.render([system, *CONVERSATION[:1]], tools=OFFERED).text
    assert text.index("be brief") < text.index('"get_weather"') < text.index("weather?") and "<tool_call>" in text
    assert "<tools>" not in with_system.render([system, *CONVERSATION[:1]]).text
    without = ChatTemplate(tokenizer("no-system", "special"))
    text = without.render(CONVERSATION, tools=OFFERED).text
    assert text.startswith("<|im_start|>user\nYou may call these functions") and text.count("<tool_response>") == 2


@each_family
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_the_model_was_trained_to_write_is_allowed(name: str, spelling: str) -> None:
    family, words = FAMILIES[name], tokenizer(name, spelling)
    before = "" if family.format.is_bare else family.says("Let me see. ")
    thought: Thought | None = "possible" if family.thoughts.answer_begin else None
    if thought is not None and spelling == "letters":
        pytest.skip("nothing tells such a model's messages from text where they are written in letters")
    for source, text, is_end in (
        (ToolGrammar(TOOLS, is_forced=True, max_calls=2), family.calls, True),
        (ToolGrammar(TOOLS, is_forced=False, max_calls=2), before + family.calls, True),
        (ToolGrammar(TOOLS, is_forced=False, max_calls=2, answer=ANSWER), family.calls, True),
        (ToolGrammar(TOOLS, is_forced=False, max_calls=2, answer=ANSWER), family.answers('{"ok": true}'), True),
        (ToolGrammar(TOOLS, is_forced=False, max_calls=2), family.answers("Plain { text ] <to [TO"), True),
        (ToolGrammar(TOOLS, is_forced=False, max_calls=8), before + family.calls[: family.calls.index("stop")], False),
        (ToolGrammar(TOOLS, is_forced=True, max_calls=1), "Plain", None),
        (ToolGrammar(TOOLS, is_forced=False, max_calls=8, answer=ANSWER), "Plain", None),
        (ToolGrammar(TOOLS, is_forced=True, max_calls=8), family.calls.replace("get_weather", "get_money"), None),
    ):
        assert ends(compiler(name, spelling).compile(source, thought), words, text) is is_end, (text, source)


def ends(grammar: Grammar, words: TextTokenizer, text: str) -> bool | None:
    """Whether `text` is a whole answer; None when it is not even the beginning of one."""
    state = grammar.start()
    for token_id in words.encode(text):
        if token_id not in bits(state.allowed_tokens()):
            return None
        state.advance(token_id)
    return words.eos_token_ids[0] in bits(state.allowed_tokens())


@each_family
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_read_as_they_grow(name: str, size: int) -> None:
    family = FAMILIES[name]
    expected = [("get_weather", {"city": "Bonn", "days": 3}), ("stop", {})]
    for before in ("", "Let me see. ") if not family.format.is_bare else ("",):
        for loosely in (False, True):
            said = family.says(before) if before else ""
            content, calls = read(family, said + family.calls, size, loosely=loosely)
            assert content == before.rstrip()
            assert [(call.name, json.loads(call.arguments)) for call in calls] == expected
            assert all(call.is_complete for call in calls)


@each_family
def test_a_call_that_is_cut_shows_how_far_it_came(name: str) -> None:
    family = FAMILIES[name]
    whole = read(family, family.calls)[1]
    seen = 0
    for length in range(len(family.calls)):
        text = family.calls[:length]
        content, calls = read(family, text, 2)
        assert text.endswith(content) and (calls or content == text)
        loose_content, loose_calls = read(family, text, 2, loosely=True)
        assert all(call.is_complete for call in loose_calls)
        assert loose_calls or loose_content == text or family.thoughts.repeats  # whose marks are in no content
        for call, same in zip(calls, whole, strict=False):
            assert call.name == same.name and same.arguments.startswith(call.arguments)
            assert call.is_complete is (call.arguments == same.arguments)
        assert len(calls) >= seen
        seen = len(calls)


@each_family
def test_the_first_piece_brings_the_name_and_the_others_the_arguments(name: str) -> None:
    family = FAMILIES[name]
    parser = ToolCallParser(family.format, TOOLS)
    thoughts = ReasoningParser(family.thoughts, starts_open=False)
    parts = [said for letter in family.calls for _, said in thoughts.step(letter)]
    pieces = [item for part in parts for item in parser.step(part)]
    assert not any(isinstance(piece, Content) for piece in pieces)
    first = [piece for piece in pieces if not isinstance(piece, Content) and piece.index == 0]
    assert first[0].name == "get_weather" and first[0].arguments in ("", "{")
    assert all(piece.name is None for piece in first[1:]) and len(first) > 8
    assert [piece.is_last for piece in first].count(True) == 1 and first[-1].is_last


@each_family
@pytest.mark.parametrize("thought", [None, "open", "possible"])
@pytest.mark.parametrize("mode", ["forced", "auto", "answer"])
def test_whatever_a_model_prefers_its_calls_are_valid(name: str, thought: Thought | None, mode: str) -> None:
    family = FAMILIES[name]
    source = ToolGrammar(TOOLS, mode == "forced", 3, ANSWER if mode == "answer" else None)
    if family.thoughts.answer_begin and thought is None:
        pytest.skip("such a model begins every answer with a mark")
    # One way to spell the marks for each case: all three come with each mode.
    place = ["forced", "auto", "answer"].index(mode) + [None, "open", "possible"].index(thought)
    spelling = list(SPELLINGS)[(place + len(name)) % len(SPELLINGS)]
    words = tokenizer(name, spelling)
    grammar = compiler(name, spelling).compile(source, thought)
    text = walk(grammar, words, family, seed=len(name) + len(spelling))
    content, calls = read(family, text, 3, starts_open=thought == "open")
    if mode == "forced":
        assert calls and not content, text
    if mode == "answer" and not calls:
        jsonschema.validate(json.loads(content), ANSWER.schema)
    for call in calls:
        assert call.is_complete
        jsonschema.validate(json.loads(call.arguments), {tool.name: tool.parameters for tool in TOOLS}[call.name])


def walk(grammar: Grammar, words: TextTokenizer, family: Family, seed: int) -> str:
    """A model with random preferences; after a while rather one that closes what is open, in free text as well."""
    rng = np.random.default_rng(seed)
    tags = family.format.parameters
    closing = [family.thoughts.end, *(filter(None, (tags.end, *tags.quotes)) if tags else ())]
    closers = [id for text in '"}]' if (id := words.token_id(text)) is not None] + list(words.eos_token_ids)
    state, ids = grammar.start(), [0][:0]
    while not state.is_finished:
        allowed = bits(state.allowed_tokens())
        assert allowed.size and len(ids) < MAX_TOKENS, words.decode(ids, skip_special_tokens=False)[-300:]
        is_late, planned = len(ids) > 20, [0][:0]
        if is_late and allowed.size > 150 and rng.random() < 0.5 and not np.isin(allowed, words.eos_token_ids).any():
            planned = words.encode(closing[rng.integers(len(closing))])
        if not planned or planned[0] not in allowed:
            late = allowed[np.isin(allowed, closers)] if is_late else allowed[:0]
            planned = [int(rng.choice(late if late.size else allowed))]
        for token_id in planned:
            if token_id not in bits(state.allowed_tokens()):
                break
            state.advance(token_id)
            ids.append(token_id)
    return words.decode(ids[:-1], skip_special_tokens=False)


def test_what_only_looks_like_a_call_is_content() -> None:
    family = FAMILIES["llama"]
    for text in ('{"name": "Bob", "parameters": 3}', '{"name": "get_weather", "x": 1}', '{"a": 1}', "{", "a {"):
        assert read(family, text, 2) == (text, [])
        assert read(family, text, 2, loosely=True) == (text, [])
    tagged = FAMILIES["hermes"]
    for text in ("<tool_call>\nno", "a <tool_call> b <tool_call> c", '<tool_call>\n{"name": "other"'):
        assert read(tagged, text, 2)[0] == text and not read(tagged, text, 2)[1]


def test_python_s_tag_opens_calls_of_llama() -> None:
    family = FAMILIES["llama"]
    text = "I look. <|python_tag|>" + family.calls
    for spelling in SPELLINGS:
        grammar = compiler("llama", spelling).compile(ToolGrammar(TOOLS, is_forced=False, max_calls=2))
        assert ends(grammar, tokenizer("llama", spelling), text) is True
        assert ends(grammar, tokenizer("llama", spelling), "I look. <|python_tag|>no") is None
    content, calls = read(family, text, 2)
    assert content == "I look." and len(calls) == 2


def test_values_without_quotes_are_strings_where_the_schema_says_so() -> None:
    family = FAMILIES["qwen-coder"]

    def arguments(**values: str) -> Any:
        written = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
        text = f"<tool_call>\n<function=get_weather>\n{written}</function>\n</tool_call>"
        for loosely in (False, True):
            (call,) = read(family, text, 2, loosely=loosely)[1]
            yield json.loads(call.arguments)

    for found in arguments(city='12 "q"\n\\n', days="3", unit="c", note="null", place="[1, 2]"):
        assert found == {"city": '12 "q"\n\\n', "days": 3, "unit": "c", "note": None, "place": [1, 2]}
    for found in arguments(city="</parameter> <", note="12"):
        assert found == {"city": "</parameter> <", "note": "12"}


@each_family
def test_a_later_system_message_is_said_where_it_stands(name: str) -> None:
    """Agents add some as they go; where a template takes none there, the user says it."""
    template = ChatTemplate(tokenizer(name, "special"))
    messages = [
        {"role": "user", "content": "first-words"},
        {"role": "system", "content": "later-rules"},
        {"role": "developer", "content": "more-rules"},
        {"role": "user", "content": "second-words"},
        {"role": "assistant", "content": "an-answer"},
        {"role": "system", "content": "last-rules"},
    ]
    text = template.render(messages).text
    said = ("first-words", "later-rules", "more-rules", "second-words", "an-answer", "last-rules")
    places = [text.index(words) for words in said]
    assert places == sorted(places)
    if name == "no-system":  # whose template also wants user and assistant in turn
        assert text.count("<|im_start|>user") == 2 and "system" not in text


def test_system_messages_at_the_beginning_are_one_where_a_template_takes_one() -> None:
    words = FAMILIES["no-tools"].tokenizer(special=True)
    words._transformers_tokenizer.chat_template = (
        "{%- for m in messages %}{%- if m.role == 'system' and not loop.first %}{{ raise_exception('only first') }}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    )
    messages = [
        {"role": "system", "content": "a"},
        {"role": "developer", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    text = ChatTemplate(words).render(messages).text
    assert text.startswith("<|im_start|>system\na\n\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>")
