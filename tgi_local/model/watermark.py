"""Which tokens a watermark favours: Kirchenbauer et al., A Watermark for Large Language Models, 2023, algorithm 2.

https://arxiv.org/abs/2301.10226. The previous token seeds a random split of the vocabulary, and whoever knows the key
can count afterwards how often a text stayed on the green side.
"""

from functools import lru_cache

import numpy as np
import torch

# TGI's, the authors' and Transformers'.
HASH_KEY = 15485863
# A list takes a bit per token of the vocabulary, and half a millisecond to make for 150 000 of them. Texts repeat
# themselves: this many lists serve most steps, in 40 MB at most.
CACHED_LISTS = 2048


@lru_cache(maxsize=CACHED_LISTS)
def green_list(previous_token: int, vocab_size: int, gamma: float) -> np.ndarray:
    """One bit per token id, the lowest bit first, set for the share `gamma` of the vocabulary that may be favoured.

    Always by the CPU's generator: a text can be checked whatever device it was made on.
    """
    generator = torch.Generator().manual_seed(HASH_KEY * previous_token % (2**64 - 1))
    order = torch.randperm(vocab_size, generator=generator, dtype=torch.int32)
    is_green = np.zeros(vocab_size, dtype=bool)
    is_green[order[: int(vocab_size * gamma)].numpy()] = True
    return np.packbits(is_green, bitorder="little")
