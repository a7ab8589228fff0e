"""What is measured of every server: the cells of the comparison."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One load. `shown` is the measure that stands in the table, `is_rate` whether more of it is better."""

    name: str
    title: str
    shown: tuple[str, ...]
    is_rate: bool
    concurrency: int
    requests: int
    prompt_tokens: int = 128
    shared_prefix_tokens: int = 0
    output_tokens: int = 64

    @property
    def is_long(self) -> bool:
        """Whether it needs contexts of thousands of tokens, and a script of its own."""
        return self.name == "long"

    def bench_args(self) -> list[str]:
        """The load as flags of `tgi-local bench`."""
        return [
            *("--concurrency", str(self.concurrency), "--requests", str(self.requests)),
            *("--prompt-tokens", str(self.prompt_tokens), "--output-tokens", str(self.output_tokens)),
            *("--shared-prefix-tokens", str(self.shared_prefix_tokens)),
        ]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def value(self, measures: dict[str, Any]) -> float | None:
        """The shown measure; None where nothing succeeded."""
        found: Any = measures
        for key in self.shown:
            found = None if found is None else found[key]
        return found


THROUGHPUT = ("output_tokens_per_s",)
CELLS = {
    cell.name: cell
    for cell in (
        Cell("c1", "1 user, out tok/s", THROUGHPUT, True, 1, 5),
        Cell("c8", "8 users, out tok/s", THROUGHPUT, True, 8, 24),
        Cell("c32", "32 users, out tok/s", THROUGHPUT, True, 32, 64),
        Cell("pf", "prefill, in tok/s", ("input_tokens_per_s",), True, 8, 24, output_tokens=1),
        Cell("sp", "512 shared + 128, TTFT p50 ms", ("ttft_ms", "p50"), False, 8, 16, shared_prefix_tokens=512),
        # 8 answers are being written while a prompt of 4096 tokens is read: how long do their tokens stay away?
        Cell(
            "long",
            "8 streams beside a 4k prompt, gap p99 ms",
            ("loaded_ms", "p99"),
            False,
            concurrency=8,
            requests=8,
            shared_prefix_tokens=0,
            output_tokens=1024,
        ),
    )
}
LONG_PROMPT_TOKENS = 4096
QUIET_TOKENS = 16  # tokens of each stream by which all of them are running, and again as many measured in quiet
