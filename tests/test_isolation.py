"""Two people on one server at the same time: nothing that one of them writes ever reaches the other.

The model repeats its prompt from what it finds in its cache, so that whatever it is shown by mistake would be said.
"""

import asyncio
import json
import logging
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import in_process
from tests.fakes import FakeRunner
from tests.in_process import InProcess, serving
from tgi_local.engine.step import RowResult, StepPlan, StepResult, StepRow
from tgi_local.types import SampledToken

ADDRESSES = {"alice": "203.0.113.5", "bob": "198.51.100.7"}
NUM_TURNS = 30


class Parrot(FakeRunner):
    """Says what stands at the beginning of its context, token by token, and over again."""

    def _run_row(self, row: StepRow) -> RowResult:
        result = super()._run_row(row)
        if result.token is None:
            return result
        return replace(
            result, token=SampledToken(self._read(row.block_table, row.step_index % row.num_prompt_tokens), -1.0)
        )

    def _read(self, block_table: Sequence[int], position: int) -> int:
        token_id, _ = self._cache[block_table[position // self.block_size], position % self.block_size]
        return token_id


class Mixing(Parrot):
    """For some time answers each row with what was meant for another."""

    def run(self, plan: StepPlan) -> StepResult:
        rows = super().run(plan).rows
        if self.num_steps % 200 > 100 or any(row.token is None for row in rows):
            return StepResult(rows)
        return StepResult(tuple(replace(row, token=other.token) for row, other in zip(rows, rows[::-1], strict=True)))


class Peeking(Parrot):
    """Reads the blocks of the first row in the step, when they are enough."""

    def run(self, plan: StepPlan) -> StepResult:
        self._first = plan.rows[0].block_table
        return super().run(plan)

    def _read(self, block_table: Sequence[int], position: int) -> int:
        try:
            return super()._read(self._first, position)
        except (IndexError, KeyError):
            return super()._read(block_table, position)


class Person:
    """Talks, remembers every byte that came back, and has words that nobody else knows."""

    def __init__(self, name: str, client: httpx.AsyncClient, seed: int) -> None:
        self._client = client
        self._rng = random.Random(f"{name} {seed}")
        self.secrets: list[str] = []
        self.received = ""
        self._messages: list[dict[str, str]] = []

    def _secret(self) -> str:
        secret = "".join(self._rng.choice("bcdfghjklmnpqrstvwxz") for _ in range(8))
        self.secrets.append(secret)
        return secret

    async def talk(self, num_turns: int) -> None:
        ways = [self._chat, self._chat, self._complete, self._generate, self._look_around]
        for _ in range(num_turns):
            await self._rng.choice(ways)()
            await asyncio.sleep(0)

    async def _send(self, path: str, body: dict[str, Any]) -> str:
        text = (await self._client.post(path, json=body)).text
        self.received += text
        if body.get("stream"):  # a word comes in pieces
            self.received += "".join(json.loads(piece) for piece in re.findall(r'"content":("(?:[^"\\]|\\.)*")', text))
        return text

    async def _chat(self) -> None:
        if len(self._messages) > 4:
            self._messages = []
        self._messages.append({"role": "user", "content": f"my word is {self._secret()}"})
        body = {"messages": self._messages, "max_tokens": 150, "stream": self._rng.random() < 0.5}
        await self._send("/v1/chat/completions", body)
        self._messages.append({"role": "assistant", "content": "noted"})

    async def _complete(self) -> None:
        body = {"prompt": f"the word {self._secret()} is mine", "max_tokens": 30, "n": 2, "echo": True, "logprobs": 1}
        await self._send("/v1/completions", body)

    async def _generate(self) -> None:
        parameters = {"max_new_tokens": 30, "details": True, "decoder_input_details": True}
        await self._send("/generate", {"inputs": f"remember {self._secret()}", "parameters": parameters})

    async def _look_around(self) -> None:
        for path in ("/info", "/metrics", "/health", "/v1/models", "/v1/responses/resp_0"):
            self.received += (await self._client.get(path)).text


async def check_isolation(server: InProcess, seed: int, num_turns: int) -> list[Person]:
    """Both talk at once; raises AssertionError when one has received a word of the other's."""
    async with server.client_at(ADDRESSES["alice"]) as one, server.client_at(ADDRESSES["bob"]) as two:
        people = [Person("alice", one, seed), Person("bob", two, seed)]
        await asyncio.gather(*(person.talk(num_turns) for person in people))
    for person, other in (people, people[::-1]):
        leaked = [secret for secret in other.secrets if secret in person.received]
        assert not leaked, f"{len(leaked)} of {len(other.secrets)} secrets of the other reached somebody"
    return people


async def run(
    folder: Path, runner: Callable[..., FakeRunner], isolates: bool, seed: int, num_turns: int = NUM_TURNS
) -> list[Person]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_process, "FakeRunner", runner)
        async with serving(folder, isolates_callers=isolates) as server:
            return await check_isolation(server, seed, num_turns)


@pytest.mark.parametrize("isolates", [False, True], ids=["one prefix cache", "a prefix cache each"])
async def test_no_word_of_one_reaches_the_other(
    tiny_folder: Path, isolates: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="tgi_local"):
        people = await run(tiny_folder, Parrot, isolates, seed=1)
    for person in people:
        heard = sum(secret in person.received for secret in person.secrets)
        assert heard == len(person.secrets) > 15, "what is one's own does come back"
        assert not any(secret in caplog.text for secret in person.secrets), "nor does the log know any"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 12))
async def test_no_word_of_one_reaches_the_other_in_200_turns(tiny_folder: Path, seed: int) -> None:
    await run(tiny_folder, Parrot, bool(seed % 2), seed, num_turns=200)


@pytest.mark.parametrize("runner", [Mixing, Peeking])
async def test_the_check_notices_a_model_that_mixes_them_up(tiny_folder: Path, runner: type[FakeRunner]) -> None:
    with pytest.raises(AssertionError, match="reached somebody"):
        await run(tiny_folder, runner, False, seed=1)
