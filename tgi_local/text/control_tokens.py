"""Keeps the strings of a request from becoming control tokens of its prompt."""

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

# A template writes these around plain text and reads them back from an assistant's content (to drop old thoughts, for
# example), so as long as a tokenizer does not call them special they count as content.
_CONTENT_TAGS = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"})
_NEUTRAL = "x"


def find_control_tokens(special_tokens: Iterable[str], added_tokens: Iterable[str], template: str) -> tuple[str, ...]:
    """Special tokens, and the added tokens the template itself writes: some checkpoints do not mark theirs special."""
    written = {token for token in added_tokens if token in template} - _CONTENT_TAGS
    control_tokens = {token for token in written.union(special_tokens) if token.strip()}
    return tuple(sorted(control_tokens, key=lambda token: (-len(token), token)))


class ControlTokenShield:
    """Owns the control tokens of one tokenizer and template. Immutable, so any thread may call it."""

    def __init__(self, control_tokens: tuple[str, ...], *, is_normalized: bool) -> None:
        self._control_tokens = control_tokens
        self._indexes = {token: index for index, token in enumerate(control_tokens)}
        self._index_width = len(str(len(control_tokens)))
        self._pattern = re.compile("|".join(map(re.escape, control_tokens)) or r"(?!)")
        edges = {token[0] for token in control_tokens} | {token[-1] for token in control_tokens}
        # Letters and digits are left out: without them no template could be told from another.
        classes = [re.escape(edge) for edge in sorted(edges) if not (edge.isalnum() or edge.isspace() or edge == "_")]
        if is_normalized:  # such a token also matches text that only becomes equal to it later, like `＜s＞`
            classes.append("\\u0080-\\U0010ffff")
        self._suspicious = re.compile(f"[{''.join(classes)}]" if classes else r"(?!)")

    def contains_token(self, value: Any) -> bool:
        """Whether any string in the value spells a control token."""
        return any(self._pattern.search(text) for text in iter_strings(value))

    def is_suspicious(self, value: Any) -> bool:
        """Whether any string could become part of a control token together with text around it."""
        return any(self._suspicious.search(text) for text in iter_strings(value) if not text.isidentifier())

    def neutralize(self, value: Any) -> Any:
        """The same value with nothing left that could be an end of a control token."""
        # Identifiers (roles, field names, types) steer the template, and have no such end.
        return map_strings(value, lambda text: text if text.isidentifier() else self._suspicious.sub(_NEUTRAL, text))

    def new_marking(self) -> "Marking":
        """A marking no client can foresee, for one rendering."""
        return Marking(self._pattern, self._control_tokens, self._indexes, self._index_width)


class Marking:
    """Owns the markers of one rendering: each stands for one control token in the client's strings."""

    def __init__(
        self, pattern: re.Pattern[str], control_tokens: tuple[str, ...], indexes: Mapping[str, int], index_width: int
    ) -> None:
        self._control_tokens = control_tokens
        self._indexes = indexes
        self._index_width = index_width
        self._token_pattern = pattern
        self._nonce = secrets.token_hex(8)
        self._marker_pattern = re.compile(f"{self._nonce}([0-9]{{{index_width}}})")

    def apply(self, value: Any) -> Any:
        """The same value with a marker in place of each control token, keys included."""
        return map_strings(value, lambda text: self._token_pattern.sub(self._marker, text))

    def split(self, rendered: str) -> list[tuple[str, bool]]:
        """Pieces of a rendered prompt: (text, whether it came from a marker). A damaged marker stays text."""
        pieces = self._marker_pattern.split(rendered)
        return [
            (self._control_tokens[int(piece)], True) if position % 2 else (piece, False)
            for position, piece in enumerate(pieces)
            if piece
        ]

    def _marker(self, match: re.Match[str]) -> str:
        return f"{self._nonce}{self._indexes[match[0]]:0{self._index_width}}"


def iter_strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from iter_strings(key)
            yield from iter_strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from iter_strings(item)


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a JSON value with every string changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {map_strings(key, change): map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change) for item in value]
    return value
