"""The same checkpoint, the same load, one server at a time: ours against its peers.

    python benchmarks/compare.py --models M --servers ours:none,llama:Q8_0 --cells c1,c8 --rounds 3 --json FILE
    python benchmarks/compare.py --report FILE

Rounds are paired: a ratio is taken within a round, then the median over rounds. README.md beside this says how the peers
are built.
"""

import argparse
import itertools
import json
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cells import CELLS, Cell
from benchmarks.checkpoints import DEFAULT_FOLDER
from benchmarks.cpu_share import OtherUse, tree_rss_mib
from benchmarks.peers import ROOT, Peer, PeerError, Programs, make_peer
from benchmarks.tables import MAX_OTHER_SHARE, print_tables

SERVERS = "ours:none,ours:int8,ours:int4,llama:Q4_0,llama:Q8_0,llama:bf16,transformers,openvino:int4,openvino:int8"
Run = dict[str, Any]


def main() -> int:
    options = parse_options()
    if options.report is not None:
        print_tables(json.loads(options.report.read_text())["runs"], options.max_other)
        return 0
    try:
        peers = [make_peer(name, programs(options)) for name in options.servers]
    except PeerError as error:
        print(error, file=sys.stderr)
        return 2
    # Ended by a signal, too, it leaves no server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    result = load_or_begin(options.json)
    first = max((run["round"] for run in result["runs"]), default=-1) + 1
    num_failures = 0
    for number in range(first, first + options.rounds):
        # Each round begins with another server, so that none always has the same predecessor or the same hour.
        turn = number % len(peers)
        for model, peer in itertools.product(options.models, peers[turn:] + peers[:turn]):
            num_failures += measure_peer(peer, options.folder / model, options.cells, number, result, options.json)
    print_tables(result["runs"], options.max_other)
    return 1 if num_failures else 0


def measure_peer(peer: Peer, model: Path, cells: list[Cell], number: int, result: dict[str, Any], path: Path) -> int:
    """Add one run per cell to the result and to its file; returns the number of failures, each printed."""
    failures = 0
    for is_long in (False, True):
        wanted = [cell for cell in cells if cell.is_long == is_long]
        try:
            if wanted:
                measure_cells(peer, model, wanted, number, result, path)
        except PeerError as error:
            print(f"round {number} {model.name} {error}", file=sys.stderr, flush=True)
            failures += 1
    return failures


def measure_cells(peer: Peer, model: Path, cells: list[Cell], number: int, result: dict[str, Any], path: Path) -> None:
    """Raises PeerError."""
    started_s = time.monotonic()
    with peer.running(model, cells[0].is_long) as server:
        ready_s = time.monotonic() - started_s
        result["commands"][peer.name] = shlex.join(server.command)
        for cell in cells:
            others = OtherUse(server.process.pid)
            # Another seed for each cell: prompts of the cell before are in the server's prefix cache.
            measures = server.measure(cell, seed=number * len(CELLS) + list(CELLS).index(cell.name))
            run: Run = {
                "round": number,
                "model": model.name,
                "server": peer.name,
                "cell": cell.name,
                "other_cpu_share": round(others.share(), 4),
                "rss_mib": round(tree_rss_mib(server.process.pid)),
                "ready_s": round(ready_s, 1),
                "measures": measures,
            }
            result["runs"].append(run)
            path.write_text(json.dumps(result, indent=1))
            print(
                f"round {number} {model.name} {peer.name} {cell.name}: {cell.value(measures)}, "
                f"others {run['other_cpu_share']:.1%}",
                file=sys.stderr,
                flush=True,
            )


def load_or_begin(path: Path) -> dict[str, Any]:
    """The runs of an earlier call, to which rounds are added, or none."""
    if path.exists():
        earlier: dict[str, Any] = json.loads(path.read_text())
        return earlier
    return {"machine": machine(), "commands": {}, "runs": []}


def machine() -> dict[str, Any]:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    model_names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "commit": commit.stdout.strip(),
        "cpus": model_names,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def programs(options: argparse.Namespace) -> Programs:
    ours = dict(definition.split("=", 1) for definition in options.ours)
    return Programs(
        options.llama_server,
        options.transformers,
        options.openvino_python,
        {name: shlex.split(flags) for name, flags in ours.items()},
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=DEFAULT_FOLDER, help=f"of the checkpoints; default: {DEFAULT_FOLDER}"
    )
    parser.add_argument("--models", type=names, default="M", help="checkpoints, separated by commas; default: M")
    parser.add_argument("--servers", type=names, default=SERVERS, help=f"default: {SERVERS}")
    parser.add_argument(
        "--cells", type=cells_of, default="c1,c8,c32,pf,sp", help=f"of {','.join(CELLS)}; default: all but long"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--json", type=Path, default=Path("compare.json"), help="results; rounds are added to those it holds"
    )
    parser.add_argument(
        "--max-other",
        type=float,
        default=MAX_OTHER_SHARE,
        metavar="SHARE",
        help=f"part of the machine that others may use in a clean run; default: {MAX_OTHER_SHARE}",
    )
    parser.add_argument("--report", type=Path, help="print the tables of a results file and end")
    parser.add_argument(
        "--ours",
        action="append",
        default=[],
        metavar="NAME=FLAGS",
        help="what ours:NAME means, such as 'fp32=--dtype float32'; else it means --quantize NAME",
    )
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--openvino-python", type=Path, help="of the environment that has openvino-genai")
    beside = shutil.which("transformers", path=str(Path(sys.executable).parent))
    parser.add_argument("--transformers", type=Path, default=Path(beside) if beside else None)
    return parser.parse_args()


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def cells_of(text: str) -> list[Cell]:
    unknown = [name for name in names(text) if name not in CELLS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no cell {', '.join(unknown)}")
    return [CELLS[name] for name in names(text)]


if __name__ == "__main__":
    sys.exit(main())
