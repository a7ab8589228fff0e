"""Text to token ids and back, through one fast tokenizer that any thread may use."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Self

from tokenizers import Encoding, Tokenizer

from tgi_local.errors import StartupError, ValidationError
from tgi_local.types import TokenSpan

# transformers writes 1e30 where a checkpoint names no limit.
_MAX_SANE_LENGTH = 10**9
_ANCHOR = "\n"
# From here on as a batch of one: `tokenizers` lets other threads run only while it works on a batch.
_BATCH_CHARACTERS = 4096
_BATCH_TOKENS = 1024
# Streams ask for the text of the same tokens over and over.
_KEPT_TEXTS = 16384


class TextTokenizer:
    """Owns one fast tokenizer. Immutable after loading, so any thread may call it.

    Every encode raises `ValidationError` for text that is not valid Unicode (a lone surrogate).
    """

    def __init__(self, transformers_tokenizer: Any) -> None:
        self._transformers_tokenizer = transformers_tokenizer
        backend: Tokenizer = transformers_tokenizer.backend_tokenizer
        # Set once, here: changing these while another thread encodes is an error inside `tokenizers`.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        self._backend = backend
        self._literal_backend = _without_added_tokens(backend)
        added_tokens = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(id for id, token in added_tokens.items() if token.special)
        self._added_tokens = tuple(token.content for token in added_tokens.values())
        self.special_tokens: tuple[str, ...] = tuple(token.content for token in added_tokens.values() if token.special)
        # These match the text after normalization, so other spellings of them match too.
        self.normalized_tokens: frozenset[str] = frozenset(
            token.content for token in added_tokens.values() if token.normalized and backend.normalizer is not None
        )
        known_ids = set(backend.get_vocab(with_added_tokens=True).values())
        self.vocab_size: int = max(known_ids) + 1
        self._is_known = bytes(token_id in known_ids for token_id in range(self.vocab_size))
        self.eos_token_ids: tuple[int, ...] = _as_ids(transformers_tokenizer.eos_token_id)
        # Those that the tokenizer puts before every text, such as BOS.
        self.num_leading_ids = _place(self._encode("a", False, False), self._encode("a", True, False))
        self._anchor_ids = self._encode(_ANCHOR, False, False)
        self._prefixes_text = self._encode("a", False, False) != self._encode_after_anchor("a", literal=False)
        self._anchor_text: str = backend.decode(self._anchor_ids, skip_special_tokens=False)
        self._lone_text = lru_cache(_KEPT_TEXTS)(self._decode_lone)

    @classmethod
    def load(cls, folder: Path, config_path: Path | None = None) -> Self:
        """Load from local files only, running none of the checkpoint's code. Raises `StartupError`.

        The chat template of a tokenizer_config.json at `config_path` replaces the checkpoint's own.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # what `tokenizers` raises for a damaged file has no class of its own
            raise StartupError(f"the tokenizer of this model can not be loaded ({type(error).__name__})") from error
        if not getattr(tokenizer, "is_fast", False):
            raise StartupError("this model has only a slow tokenizer; a tokenizer.json file is needed")
        if config_path is not None:
            tokenizer.chat_template = _read_template(config_path)
        return cls(tokenizer)

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Every string matched before the model's own vocabulary, special or not."""
        return self._added_tokens

    @property
    def description(self) -> str:
        """The whole tokenizer as JSON, in the format of tokenizer.json."""
        description: str = self._backend.to_str()
        return description

    @property
    def chat_template(self) -> str | None:
        """The Jinja source used without tools; None when the checkpoint has none."""
        return self.chat_template_for(tools=None)

    def chat_template_for(self, tools: Sequence[Any] | None) -> str | None:
        """The Jinja source used with these tools; some checkpoints have one template for each case."""
        if not self._transformers_tokenizer.chat_template:
            return None
        try:
            template: str = self._transformers_tokenizer.get_chat_template(tools=tools)
        except ValueError:  # several named templates, none of them the default
            return None
        return template

    @property
    def response_template(self) -> Any:
        """How the checkpoint says its answers are to be read; None when it says nothing."""
        return getattr(self._transformers_tokenizer, "response_template", None)

    @property
    def special_ids(self) -> frozenset[int]:
        return self._special_ids

    @property
    def max_length(self) -> int | None:
        """The most tokens the checkpoint says it can take."""
        max_length = self._transformers_tokenizer.model_max_length
        return int(max_length) if max_length and max_length < _MAX_SANE_LENGTH else None

    def encode(self, text: str, *, add_special_tokens: bool = True, literal: bool = False) -> list[int]:
        """Token ids of a whole text. `literal`: strings that spell a special token stay text."""
        return self._encode(text, add_special_tokens, literal)

    def encode_continuation(self, text: str, *, literal: bool = False) -> list[int]:
        """Token ids of text that follows other text: without the space some tokenizers put before a text."""
        if not self._prefixes_text:
            return self._encode(text, False, literal)
        return self._encode_after_anchor(text, literal=literal)

    def encode_spans(self, text: str, *, add_special_tokens: bool) -> Iterator[TokenSpan]:
        """The tokens of a text with the bytes they came from; there may be very many, so that they come one by one."""
        encoding = self._run(self._backend, text, add_special_tokens)
        return _spans(text, encoding, range(len(encoding)))

    def continuation_spans(self, text: str, *, literal: bool) -> Iterator[TokenSpan]:
        """The same for the tokens of `encode_continuation`."""
        backend = self._literal_backend if literal else self._backend
        if self._prefixes_text:
            encoding = self._run(backend, _ANCHOR + text, False)
            num_anchor = len(self._anchor_ids)
            if encoding.ids[:num_anchor] == self._anchor_ids:
                return _spans(text, encoding, range(num_anchor, len(encoding)), num_before=len(_ANCHOR))
        encoding = self._run(backend, text, False)
        return _spans(text, encoding, range(len(encoding)))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of token ids; incomplete UTF-8 becomes U+FFFD."""
        ids = list(ids)
        if len(ids) < _BATCH_TOKENS:
            text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        else:
            (text,) = self._backend.decode_batch([ids], skip_special_tokens=skip_special_tokens)
        return text

    def decode_one(self, token_id: int, *, skip_special_tokens: bool) -> str:
        """The text of one token id that begins a text."""
        return self._lone_text(token_id, skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """Text of one token as it reads in the middle of a text, its leading space included."""
        text = self.decode([*self._anchor_ids, token_id], skip_special_tokens=False)
        if text.startswith(self._anchor_text):
            return text[len(self._anchor_text) :]
        return self.decode([token_id], skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        """The id of one vocabulary entry."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def is_known(self, token_id: int) -> bool:
        """Whether the id has a vocabulary entry: models pad their vocabulary beyond the tokenizer's."""
        return 0 <= token_id < self.vocab_size and bool(self._is_known[token_id])

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **arguments: Any) -> str:
        """The chat template's text for a conversation. Raises whatever the template raises."""
        rendered: str = self._transformers_tokenizer.apply_chat_template(list(messages), tokenize=False, **arguments)
        return rendered

    @property
    def unknown_token_id(self) -> int | None:
        """The id of text outside the vocabulary, where it has one of its own."""
        unknown_id: int | None = self._transformers_tokenizer.unk_token_id
        return None if unknown_id in (self._transformers_tokenizer.bos_token_id, *self.eos_token_ids) else unknown_id

    @property
    def template_variables(self) -> frozenset[str]:
        """Names the template gets from the tokenizer (`bos_token`, ...)."""
        return frozenset(self._transformers_tokenizer.special_tokens_map)

    def _decode_lone(self, token_id: int, skip_special_tokens: bool) -> str:
        return self.decode((token_id,), skip_special_tokens=skip_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool, literal: bool) -> list[int]:
        ids: list[int] = self._run(self._literal_backend if literal else self._backend, text, add_special_tokens).ids
        return ids

    def _encode_after_anchor(self, text: str, *, literal: bool) -> list[int]:
        ids = self._encode(_ANCHOR + text, False, literal)
        if ids[: len(self._anchor_ids)] == self._anchor_ids:
            return ids[len(self._anchor_ids) :]
        return self._encode(text, False, literal)

    @staticmethod
    def _run(backend: Tokenizer, text: str, add_special_tokens: bool) -> Any:
        try:
            if len(text) < _BATCH_CHARACTERS:
                return backend.encode(text, add_special_tokens=add_special_tokens)
            return backend.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        except TypeError as error:  # how `tokenizers` reports a string it can not turn into UTF-8
            raise ValidationError("text must be valid Unicode") from error


def _without_added_tokens(backend: Tokenizer) -> Tokenizer:
    """A copy that never matches an added token. Runs of white space stay tokens: they carry no meaning but text."""
    description = json.loads(backend.to_str())
    for token in description["added_tokens"]:
        token["special"] = token["special"] or not token["content"].isspace()
    literal: Tokenizer = Tokenizer.from_str(json.dumps(description))
    literal.encode_special_tokens = True
    return literal


def _spans(text: str, encoding: Encoding, places: range, *, num_before: int = 0) -> Iterator[TokenSpan]:
    """The tokens at `places` of an encoding of `text`, which has `num_before` other characters in front of it."""
    # One by one, for `encoding.offsets` holds up every thread until it has made them all. A token that has none was not
    # in the text.
    offsets = (encoding.token_to_chars(place) or (num_before, num_before) for place in places)
    # `tokenizers` counts characters and never splits one, so character bounds are byte bounds.
    to_byte: Sequence[int] = range(len(text) + 1)
    if not text.isascii():
        to_byte = list(accumulate((len(character.encode()) for character in text), initial=0))
    return (
        TokenSpan(
            id, text[start - num_before : stop - num_before], to_byte[start - num_before], to_byte[stop - num_before]
        )
        for id, (start, stop) in zip(islice(encoding.ids, places.start, None), offsets, strict=True)
    )


def _place(part: Sequence[int], whole: Sequence[int]) -> int:
    """Where `part` begins in `whole`; 0 when it is not there."""
    places = (start for start in range(len(whole)) if whole[start : start + len(part)] == part)
    return next(places, 0)


def _as_ids(token_id: int | Sequence[int] | None) -> tuple[int, ...]:
    if token_id is None:
        return ()
    return (token_id,) if isinstance(token_id, int) else tuple(token_id)


def _read_template(path: Path) -> str | dict[str, str]:
    """The chat template of a tokenizer_config.json, or its templates by name. Raises `StartupError`."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        template = config.get("chat_template")
        if isinstance(template, str):
            return template
        return {str(entry["name"]): str(entry["template"]) for entry in template}
    except OSError as error:
        raise StartupError(f"--tokenizer-config-path {path} can not be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StartupError(f"--tokenizer-config-path {path} holds no chat_template") from error
