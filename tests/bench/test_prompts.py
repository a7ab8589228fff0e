"""Prompts have the length they say, by the count of tokenizers that are quite different."""

import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.checkpoints import make_tokenizer
from tgi_local.bench.completions import Prompt
from tgi_local.bench.prompts import LETTERS, calibrated_ids, calibrated_text
from tgi_local.errors import StartupError

DEMO = Path(__file__).parents[2] / "tgi_local" / "demo_model" / "tokenizer.json"
Encode = Callable[[str], int]


def counting(encode: Encode, overhead: int = 0) -> Callable[[Prompt], object]:
    async def count(prompt: Prompt) -> int:
        return overhead + (len(prompt) if isinstance(prompt, list) else encode(prompt))

    return count


def bpe(path: Path) -> Encode:
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def encodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encode]:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return {
        "demo": bpe(DEMO),
        "tiny": bpe(folder / "tokenizer.json"),
        "bytes": lambda text: len(text.encode()),
        # A chat template strips the message; the first word then stands without its space.
        "stripped": lambda text: bpe(DEMO)(text.strip()),
    }


@pytest.mark.parametrize("overhead", [0, 9])
@pytest.mark.parametrize("name", ["demo", "tiny", "bytes", "stripped"])
async def test_text_has_the_length_that_was_asked_for(encodes: dict[str, Encode], name: str, overhead: int) -> None:
    prompts = await calibrated_text(counting(encodes[name], overhead), 50)  # type: ignore[arg-type]
    found = list(islice(prompts.distinct(0, 50, random.Random(1)), 20))
    assert len(set(found)) == 20
    assert {encodes[name](text) + overhead for text in found} == {50}


async def test_a_shared_prefix_counts_what_the_server_puts_in_front(encodes: dict[str, Encode]) -> None:
    prompts = await calibrated_text(counting(encodes["demo"], 9), 50)  # type: ignore[arg-type]
    first, second = islice(prompts.distinct(30, 50, random.Random(1)), 2)
    words = [text.split() for text in (first, second)]
    assert words[0][:21] == words[1][:21] and words[0][21:] != words[1][21:]
    assert encodes["demo"](first) + 9 == 50


async def test_ids_are_sent_as_they_are() -> None:
    prompts = await calibrated_ids(counting(len, overhead=1), 1000, 20)  # type: ignore[arg-type]
    first, second = islice(prompts.distinct(5, 20, random.Random(1)), 2)
    assert len(first) == len(second) == 19 and first[:4] == second[:4] and first[4:] != second[4:]
    assert all(125 <= token_id < 875 for token_id in first)


async def test_a_prompt_of_nothing_but_template_is_refused(encodes: dict[str, Encode]) -> None:
    with pytest.raises(StartupError, match=r"9 .*--prompt-tokens"):
        await calibrated_text(counting(encodes["demo"], 9), 9)  # type: ignore[arg-type]


async def test_a_tokenizer_without_one_token_words_is_named() -> None:
    async def two_per_letter(prompt: Prompt) -> int:
        return 2 * len(prompt)

    with pytest.raises(StartupError, match="--token-ids"):
        await calibrated_text(two_per_letter, 50)


async def test_letters_that_merge_are_not_taken_for_tokens() -> None:
    """A tokenizer that makes one token of any two letters, and two of every space."""

    async def pairs(prompt: Prompt) -> int:
        assert isinstance(prompt, str)
        return (len(prompt) + 1) // 2 if prompt.isalpha() else 3 * len(prompt)

    assert await pairs("".join(LETTERS)) < len(LETTERS)
    with pytest.raises(StartupError, match="--token-ids"):
        await calibrated_text(pairs, 50)
