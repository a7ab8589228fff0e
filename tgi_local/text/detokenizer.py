"""Token ids to text increments, one token at a time."""

from collections.abc import Sequence

from tgi_local.text.tokenizer import TextTokenizer

_REPLACEMENT = "\ufffd"
# Enough for a leading space to be decided; grown when they are all skipped, or begin inside a character.
_NUM_CONTEXT_IDS = 6
_MAX_CONTEXT_IDS = 64
_MAX_PENDING_IDS = 32
# A UTF-8 character has at most four bytes, hence four tokens.
_MAX_CHARACTER_IDS = 4


class Detokenizer:
    """Owns the text position of one sequence; one thread at a time.

    The increments joined equal the text the generated ids add to a full decode. One exception: where a tokenizer
    writes bytes as tokens of their own (SentencePiece), an invalid byte can not take back valid ones already emitted.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        prompt_ids: Sequence[int],
        skip_special_tokens: bool,
        shown_ids: frozenset[int] = frozenset(),
    ) -> None:
        """`shown_ids` are special tokens that are text all the same."""
        self._tokenizer = tokenizer
        self._shown_ids = shown_ids
        self._skip_special_tokens = skip_special_tokens
        self._skipped_ids = tokenizer.special_ids if skip_special_tokens else frozenset()
        # Emitted ids that give the pending ones their context, then the ids that are not emitted yet.
        self._context_ids = self._seed(prompt_ids)
        self._context_text = self._decode(self._context_ids)
        self._pending_ids: list[int] = []

    def step(self, token_id: int) -> str:
        """The text this token completes; empty while a character is incomplete."""
        if token_id in self._shown_ids:  # what it follows stays the context: it is not decoded with others
            return self.flush() + self._tokenizer.token_text(token_id)
        if self._is_silent(token_id):
            return ""
        self._pending_ids.append(token_id)
        text = self._decode(self._context_ids + self._pending_ids)
        if len(text) > len(self._context_text) and not text.endswith(_REPLACEMENT):
            return self._emit(text, len(self._pending_ids))
        if len(self._pending_ids) < _MAX_PENDING_IDS:
            return ""
        return self._emit_settled(text)

    def flush(self) -> str:
        """The text still held back; an incomplete character becomes U+FFFD."""
        return self._emit(self._decode(self._context_ids + self._pending_ids), len(self._pending_ids))

    def _seed(self, prompt_ids: Sequence[int]) -> list[int]:
        num_ids = _NUM_CONTEXT_IDS
        while num_ids < min(len(prompt_ids), _MAX_CONTEXT_IDS):
            text = self._decode(prompt_ids[-num_ids:])
            if text and not text.startswith(_REPLACEMENT):
                break
            num_ids *= 2
        return list(prompt_ids[-num_ids:])

    def _is_silent(self, token_id: int) -> bool:
        return token_id in self._skipped_ids or not self._tokenizer.is_known(token_id)

    def _emit(self, text: str, num_ids: int) -> str:
        increment = text[len(self._context_text) :]
        if num_ids:
            self._context_ids, self._pending_ids = self._pending_ids[:num_ids], self._pending_ids[num_ids:]
            self._context_text = self._decode(self._context_ids)
        return increment

    def _emit_settled(self, text: str) -> str:
        """Bound what a stream of invalid bytes holds back: emit up to a place no later byte can change."""
        for num_ids in range(len(self._pending_ids) - 1, len(self._pending_ids) - 2 * _MAX_CHARACTER_IDS, -1):
            head = self._decode(self._context_ids + self._pending_ids[:num_ids])
            if head + self._decode(self._pending_ids[num_ids:]) == text:
                return self._emit(head, num_ids)
        return self._emit(text, len(self._pending_ids))

    def _decode(self, ids: Sequence[int]) -> str:
        if len(ids) == 1:
            return self._tokenizer.decode_one(ids[0], skip_special_tokens=self._skip_special_tokens)
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
