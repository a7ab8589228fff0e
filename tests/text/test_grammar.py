"""Whatever a model prefers, what it may write matches the grammar; what can not be a grammar is refused by name."""

import json
import re
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.text.conftest import byte_level_backend, wrap
from tests.text.real_schemas import DECIMAL, EMAIL, FREE, SMALL
from tests.text.schemas import SCHEMAS
from tgi_local.constraints import (
    Grammar,
    GrammarSource,
    JsonGrammar,
    RegexGrammar,
    TextGrammar,
    ToolGrammar,
    ToolSignature,
)
from tgi_local.errors import ValidationError
from tgi_local.text import json_schema
from tgi_local.text.grammar import GrammarCompiler
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.text.tool_formats import HERMES, ToolFormat

MAX_TOKENS = 1500
HURRY_AFTER = 30


@cache
def tokenizer() -> TextTokenizer:
    return wrap(byte_level_backend(), eos_token="<|im_end|>")


@cache
def compiler(format: ToolFormat = HERMES) -> GrammarCompiler:
    return GrammarCompiler.load(tokenizer(), frozenset(), tokenizer().vocab_size + 30, format=format)


def bits(mask: bytes) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))


def walk(grammar: Grammar, seed: int) -> tuple[str, list[int]]:
    """A model with random preferences: any allowed token; after a while, rather one that closes something."""
    rng = np.random.default_rng(seed)
    state, ids = grammar.start(), []
    while not state.is_finished:
        candidates = bits(state.allowed_tokens())
        text = tokenizer().decode(ids, skip_special_tokens=True)
        assert candidates.size and len(ids) < MAX_TOKENS, text[-200:]
        if len(ids) > HURRY_AFTER and rng.random() < 0.9:
            closing = candidates[np.isin(candidates, closers())]
            candidates = closing if closing.size else candidates
        ids.append(int(rng.choice(candidates)))
        state.advance(ids[-1])
    return tokenizer().decode(ids, skip_special_tokens=True), ids


@cache
def closers() -> tuple[int, ...]:
    return (*tokenizer().eos_token_ids, *(id for text in '"}]@' if (id := tokenizer().token_id(text)) is not None))


def test_there_are_enough_schemas() -> None:
    assert len({json.dumps(schema) for schema in SCHEMAS}) >= 200


@pytest.mark.parametrize("index", range(len(SCHEMAS)))
def test_what_may_be_written_matches_the_schema(index: int) -> None:
    schema = SCHEMAS[index]
    grammar = compiler().compile(JsonGrammar(schema, "grammar"))
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    checked = validator(schema, format_checker=validator.FORMAT_CHECKER)
    for seed in range(3):
        text, ids = walk(grammar, 1000 * seed + index)
        assert ids[-1] in tokenizer().eos_token_ids
        checked.validate(json.loads(text))


@pytest.mark.parametrize(
    "pattern", [r"\d{3}-\d{4}", "^abc$", "(yes|no)", "[a-c]*x", "(?i)hello", "ü{2}", r"[^\n]{3}", 'a/b"c\\\\']
)
def test_what_may_be_written_matches_the_expression(pattern: str) -> None:
    grammar = compiler().compile(RegexGrammar(pattern, "grammar"))
    for seed in range(5):
        text, _ = walk(grammar, seed)
        assert re.fullmatch(pattern, text), text


REFUSED: list[tuple[Any, str]] = [
    ({"type": "objec"}, "$.type breaks the rule `anyOf`"),
    ({"properties": {"a": {"minLength": "x"}}}, "$.properties.a.minLength breaks the rule `type`"),
    ({"type": "array", "uniqueItems": True}, "`uniqueItems` at $ is not supported"),
    ({"not": {"pattern": "x"}}, "`not` at $ is"),
    ({"not": {}}, "allows no value"),
    ({"properties": {"not": {"anyOf": [True, {"not": {"pattern": "x"}}]}}}, "`not` at $.properties.not.anyOf[1] is"),
    (
        {"$defs": {"d": {"contains": {}, "maxContains": 1}}, "items": {"$ref": "#/$defs/d"}},
        "`contains` at $.$defs.d is",
    ),
    ({"type": "object", "if": {"minProperties": 2}, "then": {"required": ["a"]}}, "`if` at $ is"),
    ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "`uniqueItems` at $ is"),
    ({"$ref": "#/$defs/none"}, "/$defs/none"),
    ({"$ref": "http://127.0.0.1:9/schema.json"}, "does not fetch"),
    ({"type": "string", "pattern": "("}, "unclosed group"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"enum": []}, "empty"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum (3) is greater"),
    ({"type": "integer", "multipleOf": 999999937}, "fuel exhausted"),
    ({"allOf": [{"type": "string", "pattern": f"(a|b)*.{{{i}}}c"} for i in range(30)]}, "at most 8 different patterns"),
    ({"enum": ["x" * 70_000]}, "at most 65536 bytes"),
    ("[" * 30_000, "not JSON"),
    ('{"a"', "not JSON"),
    ("[]", "must be an object"),
    (json.loads('{"items":' * 70 + "{}" + "}" * 70), "nested too deeply"),
]


@pytest.mark.parametrize(("schema", "fault"), REFUSED, ids=[fault for _, fault in REFUSED])
def test_a_schema_that_can_not_be_enforced_is_refused_by_name(schema: Any, fault: str) -> None:
    with pytest.raises(ValidationError) as refused:
        compiler().compile(JsonGrammar(schema, "response_format"))
    message = refused.value.message
    assert message.startswith("Input validation error: grammar is not valid: ") and fault in message
    assert len(message) < 300 and refused.value.param == "response_format"


@pytest.mark.parametrize(
    "pattern", ["(", "[a-", "a{2,1}", "(?=a)", r"(a)\1", "(" * 9000 + ")" * 9000, "x" * 20_000, "\ud800", r"\b"]
)
def test_a_bad_expression_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match="grammar is not valid: ") as refused:
        compiler().compile(RegexGrammar(pattern, "grammar"))
    assert len(refused.value.message) < 300


JSON_GBNF = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws # with escapes
number ::= "-"? ([0-9] | [1-9] [0-9]{0,5}) ("." [0-9]+)? ws
ws     ::= | " " | "\n" [ \t]{0,2}
"""


def test_grammars_as_text() -> None:
    json_text = compiler().compile(TextGrammar(JSON_GBNF, "grammar"))
    for seed in range(3):
        assert isinstance(json.loads(walk(json_text, seed)[0]), dict)
    for text, written in (
        ('root ::= "a/b" [/"}] end\nend ::= "." | "!"', "a/b}!"),
        ('?start: greeting " " NAME\ngreeting: "hi" | "ho"\nNAME: /[a-z}]+/', "ho x}y"),
        ('%llguidance {}\nstart: "{" %json {"type": "integer", "minimum": 7, "maximum": 8} "}"', "{7}"),
        ('# moves\nroot ::= (move " ")+\nmove ::= [a-h] [1-8] | "O-O" "-O"?', "e4 O-O-O "),
    ):
        assert accepted(TextGrammar(text, "grammar"), written) == written + "<end>"
        assert accepted(TextGrammar(text, "grammar"), "~" + written) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        'root ::= "a',
        "root ::= x",
        'other ::= "a"',
        "start: x",
        "start: /(/",
        "(" * 20_000,
        "root ::= " + "(" * 9000,
    ],
)
def test_a_bad_text_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="grammar is not valid: ") as refused:
        compiler().compile(TextGrammar(text, "grammar"))
    assert len(refused.value.message) < 300


def test_not_strict_ignores_what_can_not_be_enforced(caplog: pytest.LogCaptureFixture) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 2}
    text, _ = walk(compiler().compile(JsonGrammar(schema, "grammar", strict=False)), 1)
    assert all(isinstance(value, int) for value in json.loads(text))
    assert "uniqueItems" in caplog.text
    caplog.clear()
    compiler().compile(JsonGrammar({**schema, "uniqueItems": False}, "grammar", strict=False))
    assert not caplog.text


def test_older_drafts_are_understood_without_their_name() -> None:
    """Tuples and exclusive bounds as draft 4 to 7 wrote them, which libraries send with `$schema` left out."""
    schema = {
        "type": "array",
        "items": [{"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 2}, {"enum": ["a"]}],
        "additionalItems": False,
        "minItems": 2,
    }
    for seed in range(3):
        number, letter = json.loads(walk(compiler().compile(JsonGrammar(schema, "grammar")), seed)[0])
        assert number in (1, 2) and letter == "a"


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (EMAIL, ["john.doe+x@mail.example.com", "o'neil@example.org"]),
        (DECIMAL, ["1", "-0.5", "+12.", ".5"]),
        ({"type": "string", "not": {"enum": ["a", "abc"]}}, ["", "ab", "abcd", "b", "a\n"]),
        ({"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True}, [[], ["c", "a"], ["b", "a", "c"]]),
        (
            {"type": "array", "items": {"enum": list("abcdefg")}, "uniqueItems": True},
            [["a", "d", "g"], list("abcdefg")],
        ),
        ({**FREE, "minProperties": 1}, [{"c": True}, {"a": 1, "b": 2}]),
        ({**FREE, "dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 2}]),
        ({"items": SMALL, "type": "array", "contains": {"const": 3}}, [[3], [3, 1, 2]]),
    ],
)
def test_what_is_said_in_other_words_still_allows_what_matters(schema: Any, values: list[Any]) -> None:
    for value in values:
        jsonschema.validate(value, schema)
        text = json.dumps(value)
        assert accepted(JsonGrammar(schema, "grammar"), text) == text + "<end>"


def test_not_strict_leaves_out_patterns_that_look_around() -> None:
    schema = {"type": "string", "pattern": "^(?=a)[a-z]+$", "maxLength": 4}
    text, _ = walk(compiler().compile(JsonGrammar(schema, "grammar", strict=False)), 1)
    assert len(json.loads(text)) <= 4
    with pytest.raises(ValidationError, match="look-around"):
        compiler().compile(JsonGrammar(schema, "grammar"))


def test_a_schema_is_named_as_one_likes_unless_its_references_need_the_name() -> None:
    fruit = {"type": "object", "properties": {"name": {"$ref": "#/$defs/name"}}, "required": ["name"]}
    named = {"$id": "Output Format", **fruit, "$defs": {"name": {"enum": ["apple", "pear"]}}}  # as griptape names it
    text, _ = walk(compiler().compile(JsonGrammar(named, "grammar", strict=True)), 1)
    assert json.loads(text)["name"] in ("apple", "pear")
    referred = json.dumps({"$id": "http://x/a", "$ref": "http://x/a#/$defs/b", "$defs": {"b": {}}}).encode()
    assert json_schema.prepare(referred, strict=True)["$id"] == "http://x/a"


def test_objects_take_no_other_properties_unless_the_schema_needs_them() -> None:
    prepared = json_schema.prepare(b'{"properties":{"a":{"properties":{}}}}', strict=True)
    assert prepared["additionalProperties"] is False
    assert prepared["properties"]["a"]["additionalProperties"] is False
    for kept in (
        b'{"properties":{"a":true},"required":["b"]}',
        b'{"properties":{"a":true},"additionalProperties":true}',
        b'{"allOf":[{"properties":{"a":true}},{"properties":{"b":true}}]}',
        b'{"$ref":"#/$defs/x","properties":{"a":true},"$defs":{"x":{"properties":{"b":true}}}}',
    ):
        assert b'"additionalProperties":false' not in json.dumps(json_schema.prepare(kept, strict=True)).encode()


def test_compiled_grammars_are_kept() -> None:
    source = JsonGrammar({"type": "object", "properties": {"kept": {"type": "string"}}}, "grammar")
    same = JsonGrammar(json.dumps(source.schema), "response_format")
    assert compiler().compile(source) is compiler().compile(same)


def test_copies_are_independent_and_errors_stay_in_theirs() -> None:
    grammar = compiler().compile(RegexGrammar("ab|cd", "grammar"))
    one, two, broken = grammar.start(), grammar.start(), grammar.start()
    a, c, x = (tokenizer().encode(letter)[0] for letter in "acx")
    one.advance(a)
    with pytest.raises(ValueError, match="can not be followed"):
        broken.advance(x)
    assert not any(broken.allowed_tokens())
    assert a in bits(two.allowed_tokens()) and c in bits(two.allowed_tokens())
    assert c not in bits(one.allowed_tokens())


def test_without_an_end_token_an_answer_ends_where_nothing_can_follow() -> None:
    words = wrap(byte_level_backend())
    grammar = GrammarCompiler.load(words, frozenset(), words.vocab_size).compile(RegexGrammar("ab", "grammar"))
    state = grammar.start()
    for letter in "ab":
        assert not state.is_finished
        state.advance(words.encode(letter)[0])
    assert state.is_finished and not any(state.allowed_tokens())


def test_other_kinds_of_tokenizers(sentencepiece: TextTokenizer, unigram: TextTokenizer) -> None:
    grammars = GrammarCompiler.load(sentencepiece, frozenset(), sentencepiece.vocab_size)
    state = grammars.compile(RegexGrammar("[abc]{3} ü", "grammar")).start()
    ids: list[int] = []
    while not state.is_finished:
        ids.append(int(bits(state.allowed_tokens())[-1]))
        state.advance(ids[-1])
    assert re.fullmatch("[abc]{3} ü", sentencepiece.decode(ids, skip_special_tokens=True))
    with pytest.raises(ValueError, match="decoder"):  # llguidance knows no Metaspace decoder
        GrammarCompiler.load(unigram, frozenset(), unigram.vocab_size)


@pytest.mark.parametrize("text", ["<tool_call>", "<|im_end|>", "a </tool_call> b"])
def test_text_that_a_grammar_forces_is_never_a_control_token(text: str) -> None:
    written, ids = walk(compiler().compile(JsonGrammar({"const": text}, "grammar")), 0)
    assert json.loads(written) == text
    control = {tokenizer().token_id(token) for token in tokenizer().added_tokens}
    assert control.isdisjoint(ids[:-1])


WEATHER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "$defs": {"city": {"type": "string", "maxLength": 5}},
}
TOOLS = (
    ToolSignature("get_weather", WEATHER),
    ToolSignature('ünü"\\', {"enum": [{}]}),
    ToolSignature("odd", {"not": {}}),
)


def accepted(source: GrammarSource, text: str) -> str:
    """The longest beginning of `text` that the grammar lets a model write."""
    state, ids = compiler().compile(source).start(), tokenizer().encode(text)
    for count, token_id in enumerate(ids):
        if token_id not in bits(state.allowed_tokens()):
            return tokenizer().decode(ids[:count], skip_special_tokens=False)
        state.advance(token_id)
    is_complete = not set(tokenizer().eos_token_ids).isdisjoint(bits(state.allowed_tokens()).tolist())
    return text + ("<end>" if is_complete else "")


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}\n</tool_call>'


def test_text_is_free_until_a_call_opens() -> None:
    auto = ToolGrammar(TOOLS, is_forced=False, max_calls=8)
    for text in ("Plain { text ] < tool", "", f"Look: {CALL}", f"{CALL}\n{CALL} Done.", "ünï 🙂"):
        assert accepted(auto, text) == text + "<end>"
    assert accepted(auto, 'Hm <tool_call>\n{"name": "unknown"') == 'Hm <tool_call>\n{"name": "'
    assert not accepted(auto, CALL[:-20]).endswith("<end>")
    single = ToolGrammar(TOOLS, is_forced=False, max_calls=1)
    assert accepted(single, CALL) == CALL + "<end>" and accepted(single, f"{CALL} more") == CALL


def test_tags_without_tokens_of_their_own_are_written_letter_by_letter() -> None:
    backend = Tokenizer.from_str(byte_level_backend().to_str().replace("tool_call>", "another>"))
    words = wrap(backend, eos_token="<|im_end|>")
    grammars = GrammarCompiler.load(words, frozenset(), words.vocab_size)
    for is_forced, text in ((False, f"Hm <another> {CALL} bye"), (True, CALL)):
        state = grammars.compile(ToolGrammar(TOOLS, is_forced, max_calls=2)).start()
        for token_id in words.encode(text):
            assert token_id in bits(state.allowed_tokens())
            state.advance(token_id)
        assert words.eos_token_ids[0] in bits(state.allowed_tokens())
    state = grammars.compile(ToolGrammar(TOOLS, is_forced=False, max_calls=2)).start()
    for token_id in words.encode("Hm <tool_call>"):
        state.advance(token_id)
    assert bits(state.allowed_tokens()).tolist() == words.encode("\n")


def test_a_strict_tool_is_followed_exactly_or_refused() -> None:
    strict = ToolSignature("f", {"type": "object", "properties": {"a": {"not": {"pattern": "x"}}}}, strict=True)
    with pytest.raises(ValidationError, match=r"`not` at \$\.properties\.a is not supported"):
        compiler().compile(ToolGrammar((strict,), is_forced=True, max_calls=1))
