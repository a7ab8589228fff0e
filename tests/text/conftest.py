"""Tiny tokenizers, built in memory: a byte-level one with chat tokens, and one as SentencePiece models have."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tgi_local.text.tokenizer import TextTokenizer

CORPUS = ["Hello world, this is a small text about the weather and 42 other things.", "def f(x):\n    return x < 3\n"]
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = """\
{%- if tools %}{{- '<|im_start|>system\\n<tools>' }}{% for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}\
{{- '</tools> Answer with <tool_call>{...}</tool_call><|im_end|>\\n' }}{% endif -%}
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}{{- raise_exception('Unknown role ' ~ message.role) }}{% endif -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content | trim }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) + '\\n</tool_call>' }}
{%- endfor -%}
{{- '<|im_end|>\\n' }}
{%- endfor -%}
{%- if note is defined %}{{- note }}{% endif -%}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif -%}
"""
# Glues the parts of a conversation together, as no good template does.
GLUE = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '<|im_end|>' }}"


def byte_level_backend(**trainer_arguments: Any) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **trainer_arguments,
    )
    backend.train_from_iterator(CORPUS * 5, trainer)
    backend.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("</tool_call>", special=False)])
    return backend


def sentencepiece_backend() -> Tokenizer:
    """BPE over `▁` pieces with byte fallback, and a space before the text: the Llama 2 kind."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyzHTIS0123456789.,!?<>/|_:;()'\"\n-", "▁a", "▁t", "he", "▁the", "lo"]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "t"), ("h", "e"), ("▁t", "he"), ("l", "o")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return backend


def unigram_backend() -> Tokenizer:
    """Holds its special token as an ordinary piece too, and folds full-width characters: the T5 kind."""
    pieces = [("<unk>", 0.0), ("</s>", -1.0), ("▁", -2.0), *((letter, -3.0) for letter in "abcdefghx</>s|im_ 12")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<unk>", AddedToken("</s>", special=True, normalized=True)])
    return backend


def wrap(backend: Tokenizer, chat_template: Any = None, **special_tokens: str) -> TextTokenizer:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special_tokens)
    tokenizer.chat_template = chat_template
    return TextTokenizer(tokenizer)


@pytest.fixture(scope="session")
def chatml() -> TextTokenizer:
    return wrap(byte_level_backend(), CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def sentencepiece() -> TextTokenizer:
    template = "{% for m in messages %}{{ '<s>[' + m.role + '] ' + m.content + '</s>' }}{% endfor %}"
    return wrap(sentencepiece_backend(), template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def unigram() -> TextTokenizer:
    template = "{% for m in messages %}{{ m.content + '</s>' }}{% endfor %}"
    return wrap(unigram_backend(), template, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session", params=["chatml", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def saved_chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chatml")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_backend(), eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder
