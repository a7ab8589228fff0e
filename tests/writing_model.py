"""The whole server around a model that writes what the test says, as far as the grammar lets it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import httpx
import numpy as np

from tests.in_process import INFO, LIMITS
from tgi_local.api.context import ApiContext
from tgi_local.api.server import create_app
from tgi_local.engine.block_manager import BlockManager
from tgi_local.engine.engine import Engine
from tgi_local.engine.engine_thread import EngineThread
from tgi_local.engine.scheduler import Scheduler, SchedulerLimits
from tgi_local.engine.step import RowResult, StepPlan, StepResult, StepRow
from tgi_local.metrics import Metrics
from tgi_local.service import ServedModel, Service
from tgi_local.text.chat_template import ChatTemplate
from tgi_local.text.grammar import GrammarCompiler
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.types import SampledToken

MAX_TOKENS = 8192


class WritingRunner:
    """Chooses the next token of `token_ids`, then `end_id`; where a grammar forbids it, the first that is allowed."""

    def __init__(self, end_id: int, vocab_size: int) -> None:
        self.num_blocks, self.block_size, self.vocab_size = 1024, 16, vocab_size
        self.token_ids: list[int] = []
        self._end_id = end_id

    def run(self, plan: StepPlan) -> StepResult:
        return StepResult(tuple(RowResult(self._token(row) if row.is_sampling else None) for row in plan.rows))

    def _token(self, row: StepRow) -> SampledToken:
        wanted = self.token_ids[row.step_index] if row.step_index < len(self.token_ids) else self._end_id
        if row.constraint is not None:
            mask = np.frombuffer(row.constraint.allowed_tokens(), np.uint8)
            allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
            if wanted not in allowed:
                wanted = self._end_id if self._end_id in allowed else int(allowed[0])
        return SampledToken(wanted, -1.0)


@dataclass
class Writing:
    """`client` speaks to the routes; `writes` is what the model wants to say next time."""

    client: httpx.AsyncClient
    tokenizer: TextTokenizer
    runner: WritingRunner
    service: Service

    def says(self, text: str) -> None:
        self.runner.token_ids = self.tokenizer.encode(text)


@asynccontextmanager
async def writing(tokenizer: TextTokenizer, *, with_grammars: bool = True) -> AsyncIterator[Writing]:
    template = ChatTemplate(tokenizer)
    ends = frozenset(tokenizer.eos_token_ids)
    runner = WritingRunner(min(ends), tokenizer.vocab_size)
    service = Service(Metrics())
    scheduler = Scheduler(SchedulerLimits(16, 4096), BlockManager(runner.num_blocks, runner.block_size))
    engine = EngineThread(Engine(scheduler, runner), service.metrics.step_done)
    engine.start()
    grammars = GrammarCompiler.load(
        tokenizer,
        ends,
        tokenizer.vocab_size,
        format=template.tool_format,
        thoughts=template.thoughts,
        constrains_auto=template.response_template is None,
    )
    limits = replace(
        LIMITS, max_input_tokens=MAX_TOKENS - 1, max_total_tokens=MAX_TOKENS, vocab_size=tokenizer.vocab_size
    )
    info = replace(INFO, eos_token_ids=ends)
    service.attach(ServedModel(info, limits, tokenizer, template, engine, grammars if with_grammars else None))
    transport = httpx.ASGITransport(create_app(ApiContext(service, 2, None)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        try:
            yield Writing(client, tokenizer, runner, service)
        finally:
            await service.close(0)
