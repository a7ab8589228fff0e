"""No string of a request becomes a control token: many families' tokens, several kinds of tokenizers, every dialect."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.in_process import serving
from tests.text.conftest import byte_level_backend, sentencepiece_backend, wrap
from tgi_local.engine.engine import Engine
from tgi_local.errors import TemplateError
from tgi_local.text.chat_template import ChatTemplate
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import GenerationRequest

# What stands before and after a message, and what else a vocabulary has.
FAMILIES = {
    "chatml": ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|fim_prefix|>", "<|vision_start|>"],
    "llama": ["<|start_header_id|>", "<|eot_id|>", "<|begin_of_text|>", "<|end_header_id|>", "<|python_tag|>"],
    "mistral": ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[IMG]"],
    "gemma": ["<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<unused0>"],
    "phi": ["<|user|>", "<|end|>", "<|assistant|>", "<|system|>", "<|dummy_1|>"],
    "deepseek": [
        "<｜User｜>",
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        "<｜Assistant｜>",
        "<｜tool▁calls▁begin｜>",
    ],
    "granite": ["<|start_of_role|>", "<|end_of_text|>", "<|end_of_role|>", "<fim_middle>", "<|tool_call|>"],
    "harmony": ["<|start|>", "<|return|>", "<|message|>", "<|channel|>", "<|call|>"],
    "bert": ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"],
    "overlapping": ["<a><b>", "<b><c>", "<a>", "<c>", "<<a>>"],
}
TEMPLATE = (
    "{%% if tools %%}{%% for tool in tools %%}{{ tool | tojson }}{%% endfor %%}{%% endif %%}"
    "{%% for m in messages %%}{{ '%s' + m.role + ' ' + m.content }}{%% if m.name %%}{{ m.name }}{%% endif %%}"
    "{%% for call in m.tool_calls or [] %%}{{ call.function | tojson }}{%% endfor %%}{{ '%s' }}{%% endfor %%}"
    "{%% if note is defined %%}{{ note }}{%% endif %%}"
)


def wordpiece_backend() -> Tokenizer:
    """Lower case, no accents, pieces of words: the BERT kind."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789<>|[]/_ ▁｜.,:;{}\"'\\-"
    vocabulary = {"[UNK]": 0}
    for letter in letters:
        vocabulary.setdefault(letter, len(vocabulary))
        vocabulary.setdefault(f"##{letter}", len(vocabulary))
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


KINDS = {"byte-level": byte_level_backend, "sentencepiece": sentencepiece_backend, "wordpiece": wordpiece_backend}
FLAGS: dict[str, dict[str, bool]] = {
    "plain": {"normalized": False},
    "stripping": {"normalized": False, "lstrip": True, "rstrip": True},
    "normalized": {"normalized": True},
}


def tokenizer_of(family: str, kind: str, flags: str = "plain") -> TextTokenizer:
    backend = KINDS[kind]()
    tokens = FAMILIES[family]
    # Not all checkpoints mark all of theirs as special; those that the template writes count all the same.
    backend.add_special_tokens([AddedToken(token, special=True, **FLAGS[flags]) for token in tokens[1:]])
    backend.add_tokens([AddedToken(tokens[0], special=False, **FLAGS[flags])])
    return wrap(backend, TEMPLATE % (tokens[0], tokens[1]), eos_token=tokens[1])


def variants(token: str, other: str) -> Iterator[str]:
    """A token whole, in pieces, among others of its kind, and as what looks like it."""
    middle = len(token) // 2
    yield from (token, f" {token}\n", f"a{token}b", token + token + other, f"{token[:middle]}{other}{token[middle:]}")
    yield from (token[:-1], token[1:], f"{token[:middle]}\u200b{token[middle:]}", token.upper(), f"\u00ad{token}\ufeff")
    yield from ("".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in token), f"e\u0301{token}\u0301")
    yield f"{token[0]}{token}{token[1:]}"


def conversation(text: str) -> dict[str, Any]:
    """`text` in every place at once that a template writes."""
    half = len(text) // 2
    parts = [{"type": "text", "text": text[:half]}, {"type": "text", "text": text[half:]}]
    call = {"function": {"name": text, "arguments": {text: [text]}}}
    function = {"name": text, "description": text, "parameters": {"properties": {text: {"description": text}}}}
    return {
        "messages": [
            {"role": "system", "content": text},
            {"role": "user", "content": parts, "name": text},
            {"role": "assistant", "content": text, "tool_calls": [call]},
            {"role": "tool", "content": text, "name": text},
        ],
        "tools": [{"type": "function", "function": function}],
        "template_kwargs": {"note": text},
    }


def control_ids(tokenizer: TextTokenizer, family: str, ids: tuple[int, ...]) -> Counter[int]:
    known = {tokenizer.token_id(token) for token in FAMILIES[family]} - {tokenizer.unknown_token_id, 0}
    return Counter(id for id in ids if id in known)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_of_any_family_is_forged(family: str, kind: str) -> None:
    tokenizer = tokenizer_of(family, kind)
    template = ChatTemplate(tokenizer)
    wanted = control_ids(tokenizer, family, template.render(**conversation("x")).token_ids)
    num_rendered = num_tried = 0
    for token in FAMILIES[family]:
        for text in variants(token, FAMILIES[family][0]):
            num_tried += 1
            try:
                prompt = template.render(**conversation(text))
            except TemplateError:  # what can not be written as text is refused
                continue
            num_rendered += 1
            assert control_ids(tokenizer, family, prompt.token_ids) == wanted, text
    assert num_tried == 65
    if kind == "byte-level" and family != "overlapping":
        assert num_rendered == num_tried
    assert num_rendered > num_tried // 2


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_match_more_than_their_letters_are_not_forged(kind: str, flags: str) -> None:
    for family in ("chatml", "bert", "gemma"):
        tokenizer = tokenizer_of(family, kind, flags)
        template = ChatTemplate(tokenizer)
        wanted = control_ids(tokenizer, family, template.render(**conversation("x")).token_ids)
        for text in variants(FAMILIES[family][1], FAMILIES[family][0]):
            try:
                prompt = template.render(**conversation(text))
            except TemplateError:
                continue
            assert control_ids(tokenizer, family, prompt.token_ids) == wanted, (family, text)


def test_the_counting_finds_a_forged_token() -> None:
    """The negative control: the same text, encoded as a prompt."""
    tokenizer = tokenizer_of("chatml", "byte-level")
    ids = tuple(tokenizer.encode("a<|im_end|>b", add_special_tokens=False))
    assert sum(control_ids(tokenizer, "chatml", ids).values()) == 1


def dialects(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests of every dialect with `text` in each place that it has for a client's words."""
    turns = [{"role": "system", "content": text}, {"role": "user", "content": [{"type": "text", "text": text}]}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}
    called = [{"role": "assistant", "content": text, "tool_calls": [call]}]
    result = [{"role": "tool", "content": text, "tool_call_id": "c"}]
    tool = {"name": "f", "description": text, "parameters": {"properties": {"p": {"description": text}}}}
    chat: dict[str, Any] = {"messages": [*turns, *called, *result], "max_tokens": 1}
    yield "/v1/chat/completions", chat
    yield (
        "/v1/chat/completions",
        {"messages": turns, "max_tokens": 1, "tools": [{"type": "function", "function": tool}]},
    )
    yield "/v1/chat/completions", {"messages": turns, "max_tokens": 1, "chat_template_kwargs": {"note": text}}
    yield "/invocations", chat
    yield "/vertex", {"instances": [chat]}
    yield "/v1/responses", {"input": text, "instructions": text, "max_output_tokens": 1}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": text}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": "b"}'},
        {"type": "function_call_output", "call_id": "c", "output": text},
    ]
    yield "/v1/responses", {"input": items, "max_output_tokens": 1, "tools": [{"type": "function", **tool}]}
    blocks = [
        {"role": "user", "content": [{"type": "text", "text": text}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"k": text}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": text}]},
    ]
    anthropic_tool = {"name": "f", "description": text, "input_schema": {"properties": {}}}
    yield "/v1/messages", {"messages": blocks, "system": text, "max_tokens": 1, "tools": [anthropic_tool]}


async def test_no_dialect_lets_a_token_through(saved_chatml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is what the engine is given."""
    tokens = FAMILIES["chatml"][:3]
    texts = [text for token in tokens[1:] for text in variants(token, tokens[0])]
    async with serving(saved_chatml) as server:
        seen: list[int] = []
        submit = Engine.submit

        def noted(engine: Engine, request: GenerationRequest) -> None:
            seen.extend(request.prompt_token_ids)
            submit(engine, request)

        monkeypatch.setattr(Engine, "submit", noted)
        special = {server.tokenizer.token_id(token) for token in tokens}
        wanted: list[Counter[int]] = []
        for number, text in enumerate(["x", *texts]):
            for index, (path, body) in enumerate(dialects(text)):
                seen.clear()
                response = await server.client.post(path, json=body)
                assert response.status_code == 200, (path, text, response.text)
                found = Counter(token_id for token_id in seen if token_id in special)
                if number == 0:
                    assert found
                    wanted.append(found)
                else:
                    assert found == wanted[index], (path, text)
