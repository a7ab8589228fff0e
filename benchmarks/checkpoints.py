"""Random Llama checkpoints of the sizes that are compared, for ours and for every peer: nothing is downloaded.

    python benchmarks/checkpoints.py FOLDER [--models S,M]

writes FOLDER/S and FOLDER/M in bfloat16. Weights are random, so the text is noise; time and memory are those of any
model of the same shape. `to_gguf.py` makes of them what llama.cpp reads.
"""

import argparse
import string
import tempfile
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

DEFAULT_FOLDER = Path(tempfile.gettempdir()) / "bench_models"
VOCAB_SIZE = 49152
CONTEXT = 8192
EOS, PAD = "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = [PAD, "<|im_start|>", EOS]
CHATML = (
    "{%- for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int


SHAPES = {"S": Shape(576, 30, 9, 3, 1536), "M": Shape(896, 24, 14, 2, 4864)}  # 135 and 402 million parameters


def merges() -> list[tuple[str, str]]:
    """BPE merges that fill the vocabulary: all strings of two and three letters, each also after a space, and longer ones.

    Written down rather than learnt, so that the vocabulary has exactly its size and needs no text.
    """
    letters, space = string.ascii_lowercase, "Ġ"
    pairs = ["".join(two) for two in product(letters, repeat=2)]
    triples = [pair + letter for pair in pairs for letter in letters]
    made = [(pair[0], pair[1]) for pair in pairs]
    made += [(triple[:2], triple[2]) for triple in triples]
    made += [(space, part) for part in [*letters, *pairs, *triples]]
    missing = VOCAB_SIZE - len(SPECIAL_TOKENS) - 256 - len(made)
    return made + list(islice(product(pairs, pairs), missing))


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer with GPT-2's pre-tokenization, which every peer knows."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = merges()
    tokens = [*SPECIAL_TOKENS, *alphabet, *(first + second for first, second in pairs)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != VOCAB_SIZE:
        raise RuntimeError(f"the vocabulary has {len(vocabulary)} different tokens, not {VOCAB_SIZE}")
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        extra_special_tokens=SPECIAL_TOKENS[1:2],
    )
    fast.save_pretrained(folder)


def write_checkpoint(folder: Path, shape: Shape, seed: int = 0) -> None:
    """A random checkpoint whose greedy answer never ends early: the EOS row of the tied embedding is zero, so its logit is 0."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        **vars(shape),
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index(EOS),
        pad_token_id=SPECIAL_TOKENS.index(PAD),
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        model.get_input_embeddings().weight[config.eos_token_id] = 0
    model.save_pretrained(folder)
    write_tokenizer(folder)


def main() -> None:
    options = parse_options()
    for name in options.models.split(","):
        folder = options.folder / name
        if not (folder / "tokenizer.json").exists():
            write_checkpoint(folder, SHAPES[name])
            print(f"wrote {folder}", flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER)
    parser.add_argument("--models", default="S,M", help="which of S and M, separated by commas")
    return parser.parse_args()


if __name__ == "__main__":
    main()
