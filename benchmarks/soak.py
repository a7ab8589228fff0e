"""Whether a server stays as it was: memory and step time, second by second, against the number of finished requests.

Two load generators keep the built-in model busy, short requests and long ones, while the server's resident memory and its
own metrics are read every second.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.cpu_share import tree_rss_mib
from tests.serving import ROOT, Server

SHORT = ["--concurrency", "12", "--prompt-tokens", "64", "--output-tokens", "32"]
LONG = ["--concurrency", "4", "--prompt-tokens", "512", "--output-tokens", "128"]
NUM_ROWS = 10
WARM_SHARE = 0.2  # of the run, left out of the slopes: caches fill


@dataclass(frozen=True)
class Sample:
    """One second: when, memory, requests finished so far, and the mean time of the decode steps in it."""

    at_s: float
    rss_mib: float
    num_finished: int
    step_ms: float | None


def sample_for(server: Server, seconds: float) -> list[Sample]:
    """One sample a second until the time is over."""
    samples: list[Sample] = []
    started_s = time.monotonic()
    steps, step_s = decode_steps(server)
    while (elapsed_s := time.monotonic() - started_s) < seconds:
        time.sleep(max(0.0, len(samples) + 1 - elapsed_s))
        now_steps, now_s = decode_steps(server)
        step_ms = (now_s - step_s) / (now_steps - steps) * 1000 if now_steps > steps else None
        steps, step_s = now_steps, now_s
        finished = int(server.metric("tgi_request_success"))
        samples.append(Sample(time.monotonic() - started_s, tree_rss_mib(server.process.pid), finished, step_ms))
    return samples


def decode_steps(server: Server) -> tuple[float, float]:
    """Number of decode steps so far, and their seconds."""
    name = "tgi_batch_inference_duration"
    return server.metric(f"{name}_count", method="decode"), server.metric(f"{name}_sum", method="decode")


def findings(samples: list[Sample]) -> dict[str, float]:
    """Growth of memory, and of the step time, over the run without its beginning."""
    warm = samples[int(len(samples) * WARM_SHARE) :]
    fifth = max(1, len(warm) // 5)
    growth = statistics.linear_regression([s.num_finished for s in warm], [s.rss_mib for s in warm]).slope
    first, last = median_step_ms(warm[:fifth]), median_step_ms(warm[-fifth:])
    return {
        "seconds": round(samples[-1].at_s, 1),
        "requests": samples[-1].num_finished,
        "rss_mib_first": round(warm[0].rss_mib, 1),
        "rss_mib_last": round(warm[-1].rss_mib, 1),
        "rss_growth_mib_per_1000_requests": round(growth * 1000, 3),
        "step_ms_first_fifth": round(first, 3),
        "step_ms_last_fifth": round(last, 3),
        "step_ms_ratio": round(last / first, 3),
    }


def median_step_ms(samples: list[Sample]) -> float:
    return statistics.median(sample.step_ms for sample in samples if sample.step_ms is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    server = Server("--disable-ui").wait_ready()
    bench = [sys.executable, "app.py", "bench", server.url, "--ignore-eos", "--seconds", str(options.seconds)]
    loads = [subprocess.Popen([*bench, *shape], cwd=ROOT, stdout=subprocess.DEVNULL) for shape in (SHORT, LONG)]
    samples = sample_for(server, options.seconds)
    statuses = [load.wait() for load in loads]
    server.wait_idle(timeout_s=30)
    server.stop()
    for sample in samples[:: max(1, len(samples) // NUM_ROWS)]:
        step = "-" if sample.step_ms is None else f"{sample.step_ms:.2f}"
        print(
            f"{sample.at_s:8.0f} s {sample.num_finished:8} requests {sample.rss_mib:9.1f} MiB {step:>8} ms per decode step"
        )
    print(json.dumps({**findings(samples), "load_exit_statuses": statuses}))


if __name__ == "__main__":
    main()
