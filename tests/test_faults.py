"""The real server around a model that fails, hangs or dies: who is told what, and how the process ends."""

import asyncio
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faulty_server import LITTLE_MEMORY, Fault
from tests.serving import Server
from tests.waiting import PATIENCE_S, until, wait_until

PROGRAM = ("-m", "tests.faulty_server")
NUM_SLOTS, NUM_ROWS = 48, 16


def start(folder: Path, *args: str) -> Server:
    options = ("--max-concurrent-requests", str(NUM_SLOTS), "--max-batch-size", str(NUM_ROWS))
    return Server("--model-id", str(folder), "--disable-ui", *options, *args, program=PROGRAM)


@pytest.fixture(scope="module")
def servers(tiny_folder: Path) -> Iterator[list[Server]]:
    """One for each end, and the first for what a server survives; they start side by side."""
    started = [start(tiny_folder, "--stall-timeout", "2"), start(tiny_folder), start(tiny_folder)]
    yield started
    for server in started:
        server.stop()


@pytest.fixture
def server(servers: list[Server]) -> Iterator[Server]:
    yield servers[0].wait_ready()
    servers[0].wait_idle()


def body(prompt: list[int], max_tokens: int = 20, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **fields}


async def post(client: httpx.AsyncClient, prompt: list[int], max_tokens: int = 20) -> httpx.Response:
    return await client.post("/v1/completions", json=body(prompt, max_tokens))


async def crowd(server: Server, prompts: list[list[int]], max_tokens: int = 20) -> list[httpx.Response]:
    """All at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        return await asyncio.gather(*(post(client, prompt, max_tokens) for prompt in prompts))


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def prompts(first: int, count: int) -> list[list[int]]:
    return [[first + i, i + 1, 2 * i + 1] for i in range(count)]


async def alone(server: Server, wanted: list[list[int]]) -> list[str]:
    return [text_of((await crowd(server, [prompt]))[0]) for prompt in wanted]


@pytest.mark.parametrize("fault", [Fault.RAISE, Fault.NAN])
async def test_one_request_that_can_not_be_computed_fails_alone(server: Server, fault: Fault) -> None:
    wanted = prompts(10 if fault is Fault.RAISE else 100, 45)
    bad: list[int] = [fault, 3, 2]
    *good, failed = await crowd(server, [*wanted, bad])
    assert failed.status_code == 500 and failed.json()["error"]["type"] == "server_error"
    few = wanted[::9]
    assert [text_of(response) for response in good][::9] == await alone(server, few)
    assert all(response.status_code == 200 for response in good)
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_client_that_tries_again_and_again_does_not_end_the_server(server: Server) -> None:
    failures = server.metric("tgi_request_failure", err="generation")
    for _ in range(7):
        assert httpx.post(f"{server.url}/v1/completions", json=body([Fault.RAISE])).status_code == 500
    assert server.metric("tgi_request_failure", err="generation") == failures + 7
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.process.poll() is None


async def test_overload_is_refused_at_once_and_leaves_no_trace(server: Server) -> None:
    """Four times what the server takes: as many as it has slots are served, the others are told to come again."""
    limits = httpx.Limits(max_connections=None)
    refusals = server.metric("tgi_request_failure", err="overloaded")
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:

        async def open_stream(i: int) -> httpx.Response:
            slow = body([Fault.SLOW, 0, i % 300, i // 300], 2000, stream=True)
            return await client.send(client.build_request("POST", "/v1/completions", json=slow), stream=True)

        responses = await asyncio.gather(*(open_stream(i) for i in range(4 * NUM_SLOTS)))
        refused = [response for response in responses if response.status_code == 429]
        assert len(responses) - len(refused) == NUM_SLOTS == sum(r.status_code == 200 for r in responses)
        for response in refused:
            assert int(response.headers["retry-after"]) >= 1
            assert (await response.aread()) and response.json()["error_type"] == "overloaded"
        assert server.metric("tgi_request_failure", err="overloaded") == refusals + 3 * NUM_SLOTS
        assert httpx.get(f"{server.url}/health").status_code == 200
        for response in responses:
            await response.aclose()
    server.wait_idle()
    assert len(await alone(server, [[5, 6, 7]])) == 1


def can_bind(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


@pytest.mark.skipif(not can_bind("127.0.0.2"), reason="this machine has one loopback address only")
@pytest.mark.long  # who is read first on a busy machine says little; tests/engine/test_fairness.py has the order itself
@pytest.mark.parametrize("address", ["127.0.0.2", "127.0.0.1"])
async def test_who_sends_one_request_does_not_wait_for_all_of_another_client(server: Server, address: str) -> None:
    """The second address is the negative control: one's own requests are served as they came."""
    started: list[str] = []

    async def stream(client: httpx.AsyncClient, name: str, prompt: list[int]) -> None:
        request = body([Fault.SLOW, 0, *prompt], 30, stream=True)
        async with client.stream("POST", "/v1/completions", json=request) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {") and name not in started:
                    started.append(name)

    def client_at(address: str) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(local_address=address, limits=httpx.Limits(max_connections=None))
        return httpx.AsyncClient(base_url=server.url, timeout=60, transport=transport)

    num_greedy = 2 * NUM_ROWS + NUM_ROWS // 2
    async with client_at("127.0.0.1") as greedy, client_at(address) as modest:
        crowd = [asyncio.ensure_future(stream(greedy, f"greedy {i}", [i, 5])) for i in range(num_greedy)]
        await until(lambda: server.metric("tgi_queue_size") == num_greedy - NUM_ROWS)
        await stream(modest, "modest", [3, 3])
        await asyncio.gather(*crowd)
    # One batch runs when it comes, and it is in the next one; first come first served would be the one after that.
    assert (started.index("modest") < 2 * NUM_ROWS) == (address == "127.0.0.2")


async def test_want_of_memory_makes_steps_smaller_and_fails_nobody(server: Server) -> None:
    """From here on this server has little memory."""
    wanted = prompts(200, 40)
    before = await alone(server, wanted[::8])
    responses = await crowd(server, [[Fault.LITTLE_MEMORY, 0], *wanted])
    assert all(response.status_code == 200 for response in responses)
    assert [text_of(response) for response in responses[1::8]] == before
    assert 1 <= server.metric("tgi_batch_max_step_tokens") <= LITTLE_MEMORY
    assert httpx.get(f"{server.url}/health").status_code == 200


def health_of(server: Server) -> str:
    """The state that /health tells, `gone` when the process is, and `silent` when it does not answer."""
    try:
        response = httpx.get(f"{server.url}/health", timeout=5)
    except httpx.TransportError:
        return "silent" if server.process.poll() is None else "gone"
    return "ready" if response.status_code == 200 else str(response.json()["state"])


def states_until_gone(server: Server) -> list[str]:
    """Each state that /health passes through."""
    states = ["ready"]

    def is_gone() -> bool:
        state = health_of(server)
        if state not in (states[-1], "silent"):
            states.append(state)
        return state == "gone"

    wait_until(is_gone, lambda: f"still there: {states}")
    return states


@pytest.mark.parametrize(("number", "fault"), [(0, Fault.HANG), (1, Fault.EXIT), (2, Fault.BREAK)])
async def test_the_end_is_told_to_everyone_and_the_process_ends_with_an_error(
    servers: list[Server], number: int, fault: Fault
) -> None:
    """A model that hangs, a thread that dies, and a model that fails every step, while requests run and wait."""
    server = servers[number].wait_ready()
    fatal = asyncio.ensure_future(crowd(server, [[fault, 399]], 400))
    await until(lambda: server.metric("tgi_batch_current_size") == 1)  # it runs, lest it has to wait
    others = asyncio.ensure_future(crowd(server, [[Fault.SLOW, 0, i] for i in range(2 * NUM_ROWS)], 400))
    await until(lambda: server.metric("tgi_batch_current_size") + server.metric("tgi_queue_size") == 2 * NUM_ROWS + 1)
    server.process.send_signal(signal.SIGUSR1)
    states = await asyncio.to_thread(states_until_gone, server)
    statuses = [response.status_code for response in [*await fatal, *await others]]
    # Those whose steps failed before the model was given up have an error of their own.
    num_failed = 2 * NUM_ROWS if fault is Fault.BREAK else 0
    assert sorted(statuses) == [500] * num_failed + [503] * (2 * NUM_ROWS + 1 - num_failed)
    assert server.process.wait(PATIENCE_S) == 1
    assert set(states[1:]) <= {"stalled", "dead", "draining", "gone"}
    assert ("stalled" in states) == ("the engine is given up" in server.log) == (fault is Fault.HANG)
