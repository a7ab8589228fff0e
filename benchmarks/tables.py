"""The comparison's tables: medians per server, and ours against each peer, paired by round."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cells import CELLS, Cell

MAX_OTHER_SHARE = 0.04  # above this part of the machine, what others used spoils a run
CACHED_SHARE = 0.05  # what prompts of random words have in common by chance is far less
Run = dict[str, Any]


def print_tables(runs: Sequence[Run], max_other_share: float = MAX_OTHER_SHARE) -> None:
    for model in dict.fromkeys(run["model"] for run in runs):
        Comparison([run for run in runs if run["model"] == model], max_other_share).print(model)


@dataclass(frozen=True)
class Comparison:
    """All runs of one model. A run is clean when others used at most `max_other_share` of the machine meanwhile."""

    runs: Sequence[Run]
    max_other_share: float = MAX_OTHER_SHARE

    @property
    def servers(self) -> list[str]:
        """Ours first, else as they ran."""
        found = dict.fromkeys(run["server"] for run in self.runs)
        return [*filter(is_ours, found), *(server for server in found if not is_ours(server))]

    @property
    def cells(self) -> list[Cell]:
        found = {run["cell"] for run in self.runs}
        return [cell for name, cell in CELLS.items() if name in found]

    def print(self, model: str) -> None:
        titles = [cell.title for cell in self.cells]
        share = f"others' CPU use at most {self.max_other_share:.0%}"
        print(f"\n{model}: medians of clean rounds ({share}; * none was clean; ! not what was asked for)\n")
        print_rows(["server", *titles, "RSS MiB", "rounds"], self.median_rows())
        peers = [server for server in self.servers if not is_ours(server)]
        for variant in filter(is_ours, self.servers if peers else ()):
            print(
                f"\n{model}: {variant} against each peer, median (range) of paired clean rounds; above 1 it is better\n"
            )
            print_rows(["peer", *titles], [self.ratio_row(variant, peer) for peer in peers])

    def median_rows(self) -> list[list[str]]:
        rows = []
        for server in self.servers:
            own = [run for run in self.runs if run["server"] == server]
            cells = [self.median_text(server, cell) for cell in self.cells]
            rows.append(
                [server, *cells, str(max(run["rss_mib"] for run in own)), str(len({run["round"] for run in own}))]
            )
        return rows

    def median_text(self, server: str, cell: Cell) -> str:
        found = self._of(server, cell)
        clean = [run for run in found if self.is_clean(run)]
        values = [value for run in clean or found if (value := cell.value(run["measures"])) is not None]
        if not values:
            return "-"
        marks = ("" if clean else "*") + ("" if all(map(is_as_asked, found)) else "!")
        return f"{statistics.median(values):.1f}{marks}"

    def ratio_row(self, variant: str, peer: str) -> list[str]:
        return [peer, *(ratio_text(self.ratios(variant, peer, cell)) for cell in self.cells)]

    def ratios(self, variant: str, peer: str, cell: Cell) -> list[float]:
        """Ours over the peer's, or the other way round for latencies, in every round that is clean for both."""
        mine, theirs = self._values(variant, cell), self._values(peer, cell)
        both = sorted(mine.keys() & theirs.keys())
        return [mine[number] / theirs[number] if cell.is_rate else theirs[number] / mine[number] for number in both]

    def is_clean(self, run: Run) -> bool:
        return bool(run["other_cpu_share"] <= self.max_other_share)

    def _values(self, server: str, cell: Cell) -> dict[int, float]:
        """By round."""
        clean = [run for run in self._of(server, cell) if self.is_clean(run) and is_as_asked(run)]
        return {run["round"]: value for run in clean if (value := cell.value(run["measures"]))}

    def _of(self, server: str, cell: Cell) -> list[Run]:
        return [run for run in self.runs if run["server"] == server and run["cell"] == cell.name]


def ratio_text(found: Sequence[float]) -> str:
    if not found:
        return "-"
    spread = f" ({min(found):.2f}..{max(found):.2f})" if len(found) > 1 else ""
    return f"{statistics.median(found):.2f}{spread}"


def is_as_asked(run: Run) -> bool:
    """Whether every answer came, with as many tokens as were asked for, from prompts that were in no cache already."""
    measures, cell = run["measures"], CELLS[run["cell"]]
    if cell.is_long:
        return not measures["errors"] and not measures["streams_ended_early"]
    is_cold = (
        bool(cell.shared_prefix_tokens) or measures["cached_input_tokens"] <= CACHED_SHARE * measures["input_tokens"]
    )
    return not measures["errors"] and is_cold and measures["output_tokens_per_request"] == [cell.output_tokens] * 2


def is_ours(server: str) -> bool:
    return server.partition(":")[0] == "ours"


def print_rows(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        first, *others = (
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]))
