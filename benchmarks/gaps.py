"""Gaps between the tokens of running streams, before and while something else goes on. The standard library only."""

import itertools
from collections.abc import Sequence
from typing import Any

from tgi_local.bench.measures import quantiles


def summary(streams: Sequence[Sequence[float]], quiet_s: float, sent_s: float, first_s: float) -> dict[str, Any]:
    """Gaps from `quiet_s` to `sent_s`, and those that fall at least partly between there and the long prompt's first token.

    `streams` are arrival times; each must have one after `first_s`, or the longest wait would be left out.
    """
    pairs = [pair for times in streams for pair in itertools.pairwise(times)]
    return {
        "quiet_ms": quantiles(later - earlier for earlier, later in pairs if quiet_s <= earlier and later <= sent_s),
        "loaded_ms": quantiles(later - earlier for earlier, later in pairs if earlier < first_s and later > sent_s),
        "long_ttft_ms": round((first_s - sent_s) * 1000, 1),
        "errors": [],
    }
