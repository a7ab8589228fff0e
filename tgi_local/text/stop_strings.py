"""Text increments to emitted text, ended by a stop string."""

from collections.abc import Sequence


class StopStrings:
    """Owns the stop strings of one sequence; one thread at a time.

    The match that is completed first wins, the longest of those completed at the same character, so the answer does
    not depend on how the text is cut into increments. `keep`: the stop string stays in the output and nothing is held
    back (TGI); otherwise it is left out and text that may begin one is held back (OpenAI).
    """

    def __init__(self, stops: Sequence[str], keep: bool) -> None:
        if not all(stops):
            raise ValueError("a stop string can not be empty")
        self._stops = tuple(dict.fromkeys(stops))
        self._keep = keep
        # The longest end of the text so far that begins a stop string: any match to come starts here or later.
        self._tail = ""
        self._matched: str | None = None

    def step(self, text: str, *, may_end: bool = True) -> tuple[str, str | None]:
        """Text safe to emit, and the stop string once one is matched; everything after it is cut.

        Not `may_end`: what is completed in this text does not count.
        """
        if not self._stops:
            return text, None
        if self._matched is not None:
            return "", self._matched
        buffer = self._tail + text
        num_emitted = len(self._tail) if self._keep else 0
        match = self._find(buffer) if may_end else None
        if match is None:
            self._tail = self._open_tail(buffer)
            return buffer[num_emitted : len(buffer) if self._keep else len(buffer) - len(self._tail)], None
        start, self._matched = match
        self._tail = ""
        return buffer[num_emitted : start + len(self._matched) if self._keep else start], self._matched

    def flush(self) -> str:
        """The text held back, now that no more can follow."""
        held, self._tail = self._tail, ""
        return "" if self._keep else held

    def _find(self, buffer: str) -> tuple[int, str] | None:
        """Start and string of the match that ends first, of those that end after the tail."""
        held = len(self._tail)
        matches = [
            (start, stop) for stop in self._stops if (start := buffer.find(stop, max(0, held + 1 - len(stop)))) >= 0
        ]
        return min(matches, key=lambda match: (match[0] + len(match[1]), match[0]), default=None)

    def _open_tail(self, buffer: str) -> str:
        return buffer[len(buffer) - partial_match_len(buffer, *self._stops) :]


def partial_match_len(text: str, *targets: str) -> int:
    """Length of the longest end of `text` that begins, but does not complete, one of the targets."""
    longest = min(max(map(len, targets), default=1) - 1, len(text))
    for length in range(longest, 0, -1):
        end = text[-length:]
        if any(len(target) > length and target.startswith(end) for target in targets):
            return length
    return 0
