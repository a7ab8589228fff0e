"""The whole server but the model and the sockets: service, engine thread and routes around a fake runner."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests import left_behind
from tests.fakes import FakeRunner
from tests.waiting import until
from tgi_local.api.context import ApiContext
from tgi_local.api.server import create_app
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.engine_thread import EngineThread
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.metrics import Metrics
from tgi_local.model_info import GenerationDefaults, ModelInfo
from tgi_local.service import ServedModel, Service
from tgi_local.text.chat_template import ChatTemplate
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import Limits

VOCAB_SIZE = 300
INFO = ModelInfo("fake", None, "float32", "cpu", None, "Fake", "cpu", 512, False, GenerationDefaults(), frozenset())
LIMITS = Limits(2, 4, 5, 511, 512, 4, 16, 1024, VOCAB_SIZE)


@dataclass
class InProcess:
    """A running service; `client` speaks to its routes without a socket."""

    service: Service
    runner: FakeRunner
    tokenizer: TextTokenizer
    client: httpx.AsyncClient
    api: ApiContext

    def client_at(self, address: str) -> httpx.AsyncClient:
        """A client that is at another address than the others."""
        transport = httpx.ASGITransport(create_app(self.api), client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://test")


@asynccontextmanager
async def serving(folder: Path, *, isolates_callers: bool = False) -> AsyncIterator[InProcess]:
    """`folder` holds a tokenizer of at least VOCAB_SIZE tokens. What happens here may leave nothing running."""
    tasks = asyncio.all_tasks()
    runner = FakeRunner(num_blocks=256, block_size=4, vocab_size=VOCAB_SIZE)
    service = Service(Metrics())
    scheduler = Scheduler(SchedulerLimits(16, 64), BlockManager(runner.num_blocks, runner.block_size))
    engine = EngineThread(Engine(scheduler, runner), service.metrics.step_done)
    tokenizer = TextTokenizer.load(folder)
    engine.start()
    service.attach(ServedModel(INFO, LIMITS, tokenizer, ChatTemplate(tokenizer), engine))
    api = ApiContext(service, 2, None, isolates_callers=isolates_callers)
    transport = httpx.ASGITransport(create_app(api))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        try:
            yield InProcess(service, runner, tokenizer, client, api)
            await _settle(lambda: left_behind.busy(engine._engine))
            await _settle(lambda: service._slots.open or service._slots.num_taken)
        finally:
            await service.close(0)
    await _settle(lambda: asyncio.all_tasks() - tasks - {asyncio.current_task()})


async def _settle(what: Callable[[], object]) -> None:
    """Wait until nothing is left of `what`."""
    told, patience_s = lambda: f"left behind: {what()}", left_behind.SETTLES_WITHIN_S
    await until(lambda: not what(), told, every_s=0.005, patience_s=patience_s)
