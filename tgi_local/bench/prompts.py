"""Distinct prompts of an exact number of tokens, whatever the server's tokenizer.

As token ids a prompt has the length it has. As text it is made of words that are one token each: which words are, the
server's own count of prompt tokens tells. A group of words is sent once and then twice in a row; the difference is what
the group costs without whatever the server puts around it (a BOS token, a chat template), and a group that costs more
than one token a word is halved and asked again.
"""

import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tgi_local.bench.completions import Prompt
from tgi_local.errors import StartupError

MIN_WORDS = 4
ENOUGH_WORDS = 16
# Frequent words of many languages' tokenizers first; then single characters, for tokenizers of bytes or characters.
WORDS = tuple(
    f" {word}"
    for word in (
        "the of and to in is it for on as at by or an be we he no so do if my up go me us "
        "what over user system quick brown lazy dog fox count ten jumps "
        "was are his with that this from they have not but had her one all were there been when who will more "
        "new time can out other about two may first like has very how its after only some then most your than"
    ).split()
)
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")

CountTokens = Callable[[Prompt], Awaitable[int]]


class Prompts(Protocol):
    """A source of prompts, text or token ids."""

    @property
    def overhead(self) -> int:
        """How many tokens the server adds to what is sent."""

    def distinct(self, num_shared: int, num_tokens: int, rng: random.Random) -> Iterator[Prompt]:
        """Endless different prompts of `num_tokens` in all, of which the first `num_shared` are the same in each.

        What the server puts in front counts as the beginning of a prompt.
        """


@dataclass(frozen=True)
class TextPrompts:
    """Random words, each of one token, after a first one that is always the same: alone there, its cost may be another."""

    words: tuple[str, ...]
    overhead: int

    def distinct(self, num_shared: int, num_tokens: int, rng: random.Random) -> Iterator[str]:
        prefix_len = max(1, num_shared - self.overhead)
        own_len = num_tokens - self.overhead - prefix_len
        prefix = self.words[0] + "".join(rng.choices(self.words, k=prefix_len - 1))
        while True:
            yield prefix + "".join(rng.choices(self.words, k=own_len))


@dataclass(frozen=True)
class TokenPrompts:
    """Random ids from the middle of a vocabulary; special tokens stand at its ends."""

    vocab_size: int
    overhead: int = 0

    def distinct(self, num_shared: int, num_tokens: int, rng: random.Random) -> Iterator[list[int]]:
        prefix_len = max(0, num_shared - self.overhead)
        own_len = num_tokens - self.overhead - prefix_len
        ids = range(self.vocab_size // 8, self.vocab_size - self.vocab_size // 8)
        prefix = rng.choices(ids, k=prefix_len)
        while True:
            yield prefix + rng.choices(ids, k=own_len)


async def calibrated_text(count_tokens: CountTokens, num_tokens: int) -> TextPrompts:
    """Text prompts, exact at `num_tokens`. Raises StartupError where no four words are one token each, or the prompt is too short."""
    for candidates in (WORDS, LETTERS):
        words = await _single_tokens(count_tokens, candidates, ENOUGH_WORDS)
        if len(words) >= MIN_WORDS:
            break
    else:
        raise StartupError(
            "the server's tokenizer has no common words of one token, so no text has an exact length: "
            "use --token-ids with the size of its vocabulary"
        )
    overhead = await count_tokens("".join(words)) - len(words)
    # Measured once more as it will be sent, at the length that is asked for.
    return TextPrompts(words, overhead + await _excess(count_tokens, TextPrompts(words, overhead), num_tokens))


async def calibrated_ids(count_tokens: CountTokens, vocab_size: int, num_tokens: int) -> TokenPrompts:
    """Prompts of token ids, less what the server puts in front of them. Raises StartupError for too short a prompt."""
    return TokenPrompts(vocab_size, await _excess(count_tokens, TokenPrompts(vocab_size), num_tokens))


async def _excess(count_tokens: CountTokens, prompts: Prompts, num_tokens: int) -> int:
    """How many tokens too long a prompt of `num_tokens` turns out to be. Raises StartupError where it is nothing but overhead."""
    if num_tokens > prompts.overhead:
        found = await count_tokens(next(prompts.distinct(0, num_tokens, random.Random(0)))) - num_tokens
        if num_tokens > prompts.overhead + found:
            return found
    raise StartupError(
        f"prompts of {num_tokens} tokens are too short: the server itself puts {prompts.overhead} around them; "
        "raise --prompt-tokens"
    )


async def _single_tokens(count_tokens: CountTokens, words: tuple[str, ...], enough: int) -> tuple[str, ...]:
    """The first `enough` of `words` that are one token each after another word; none of `words` costs less than one."""
    once = "".join(words)
    cost = await count_tokens(once + once) - await count_tokens(once)
    if cost == len(words):
        return words[:enough]
    if len(words) == 1 or cost < len(words):
        return ()
    half = len(words) // 2
    found = await _single_tokens(count_tokens, words[:half], enough)
    if len(found) < enough:
        found += await _single_tokens(count_tokens, words[half:], enough - len(found))
    return found
