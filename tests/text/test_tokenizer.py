"""Text to ids and back, from any thread, with special tokens only where they are meant."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from tests.text.conftest import byte_level_backend, wrap
from tgi_local.errors import StartupError, ValidationError
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import TokenSpan

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def test_importing_the_module_loads_no_transformers() -> None:
    code = (
        "import sys, tgi_local.text.tokenizer, tgi_local.text.chat_template; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_load_reads_a_folder(saved_chatml: Path) -> None:
    tokenizer = TextTokenizer.load(saved_chatml)
    assert tokenizer.eos_token_ids == (2,)
    assert tokenizer.special_tokens == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert tokenizer.vocab_size == max(tokenizer.encode("<tool_call></tool_call>")) + 1
    assert tokenizer.chat_template is not None and tokenizer.max_length is None


def test_load_names_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="tokenizer"):
        TextTokenizer.load(tmp_path)


@pytest.mark.parametrize("body", ["", "{", "[]", "{}", '{"model": {"type": "X"}}', "\x00"])
def test_load_names_a_damaged_tokenizer(saved_chatml: Path, tmp_path: Path, body: str) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes((saved_chatml / "tokenizer_config.json").read_bytes())
    (tmp_path / "tokenizer.json").write_text(body)
    with pytest.raises(StartupError, match="tokenizer"):
        TextTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("template", "plain", "with_tools"),
    [
        ("mine", "mine", "mine"),
        ([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}], "a", "b"),
    ],
)
def test_a_template_of_the_users_own(
    template: object, plain: str, with_tools: str, saved_chatml: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": template}))
    tokenizer = TextTokenizer.load(saved_chatml, path)
    assert (tokenizer.chat_template, tokenizer.chat_template_for([{}])) == (plain, with_tools)


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"chat_template": 5}', '{"chat_template": [{"name": "x"}]}']
)
def test_a_file_without_a_template_is_named(content: str | None, saved_chatml: Path, tmp_path: Path) -> None:
    path = tmp_path / "my_config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StartupError, match=r"--tokenizer-config-path .*my_config\.json"):
        TextTokenizer.load(saved_chatml, path)


def test_special_tokens_are_parsed_unless_literal(chatml: TextTokenizer) -> None:
    text = "a<|im_end|>b<tool_call>"
    assert 2 in chatml.encode(text)
    literal = chatml.encode(text, literal=True)
    assert 2 not in literal and chatml.token_id("<tool_call>") not in literal
    assert chatml.decode(literal, skip_special_tokens=True) == text


@given(text=TEXT)
def test_literal_ids_decode_to_the_text(chatml: TextTokenizer, text: str) -> None:
    ids = chatml.encode(text, literal=True, add_special_tokens=False)
    assert not any(map(chatml.is_special, ids))
    assert chatml.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc00\ud800"])
def test_lone_surrogates_are_the_callers_fault(chatml: TextTokenizer, text: str) -> None:
    with pytest.raises(ValidationError):
        chatml.encode(text)
    with pytest.raises(ValidationError):
        chatml.encode_spans(text, add_special_tokens=True)


def test_spans_are_utf8_bytes() -> None:
    backend = byte_level_backend()
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer = wrap(backend)
    spans = list(tokenizer.encode_spans("é 😀 ok", add_special_tokens=True))
    assert spans[0] == TokenSpan(0, "", 0, 0)
    assert [span.id for span in tokenizer.encode_spans("é 😀 ok", add_special_tokens=False)] == [
        s.id for s in spans[1:]
    ]
    raw = "é 😀 ok".encode()
    assert all(raw[span.start : span.stop].decode(errors="replace") == span.text for span in spans)
    assert spans[-1].stop == len(raw)


@given(text=TEXT)
def test_spans_slice_the_text(tokenizer: TextTokenizer, text: str) -> None:
    raw = text.encode()
    for span in tokenizer.encode_spans(text, add_special_tokens=True):
        assert raw[span.start : span.stop].decode(errors="replace") == span.text


def test_token_text_keeps_the_leading_space(sentencepiece: TextTokenizer, chatml: TextTokenizer) -> None:
    the = sentencepiece.token_id("▁the")
    assert the is not None and sentencepiece.token_text(the) == " the"
    assert chatml.token_text(2) == "<|im_end|>"
    assert sentencepiece.token_text(3 + 0xE2) == "\ufffd"


def test_continuations_have_no_prefix_space(sentencepiece: TextTokenizer) -> None:
    ids = sentencepiece.encode("the", add_special_tokens=False) + sentencepiece.encode_continuation("lo")
    assert sentencepiece.decode(ids, skip_special_tokens=False) == "thelo"


def test_unknown_ids_are_known_to_be_unknown(chatml: TextTokenizer) -> None:
    assert chatml.is_known(0) and not chatml.is_known(chatml.vocab_size)


def test_threads_share_one_tokenizer(chatml: TextTokenizer) -> None:
    texts = [f"text {n} <|im_end|> 😀" * 20 for n in range(64)]

    def round_trip(text: str) -> str:
        literal = chatml.encode(text, literal=True)
        assert chatml.encode(text) != literal
        return chatml.decode(literal, skip_special_tokens=False)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(round_trip, texts)) == texts


def test_the_number_of_tokens_before_every_text(chatml: TextTokenizer) -> None:
    backend = byte_level_backend()
    special = [("<|endoftext|>", 0), ("<|im_end|>", 2)]
    for single, number in (("<|endoftext|> $A", 1), ("$A <|im_end|>", 0), ("<|endoftext|> <|endoftext|> $A", 2)):
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
        assert wrap(backend).num_leading_ids == number
    assert chatml.num_leading_ids == 0
