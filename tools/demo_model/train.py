"""Train the embedded demo chat model: corpus, tokenizer, training and artefacts in one command.

    python tools/demo_model/train.py --out tgi_local/demo_model

The corpus is generated (``corpus/``), nothing is downloaded.  On two CPU cores the run takes about an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from corpus import Dialogue, build, build_copying
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
DEFAULT_OUT = HERE.parents[1] / "tgi_local" / "demo_model"
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISIBLE_MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
# Digits stand alone, and capitalised words do not carry the space before them.  A name is then the same tokens after a
# space, after a quote and at the start of a text, which makes copying it much easier to learn.
WORD_PATTERN = (
    r"\p{N}|'(?:s|t|re|ve|m|ll|d)\b|\p{Lu}+(?!\p{Ll})|\p{Lu}\p{Ll}*| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
MAX_LENGTH = 1024


@dataclass
class Sample:
    """Token ids of a document and, for each, whether the model is taught to write it."""

    ids: np.ndarray
    taught: np.ndarray


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; every byte is in the vocabulary, so any text survives a round trip."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(VISIBLE_MARKS),
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in VISIBLE_MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        chat_template=(HERE / "chat_template.jinja").read_text(encoding="utf-8"),
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def render(dialogue: Dialogue, tokenizer: PreTrainedTokenizerFast) -> str:
    """The text of a document with its markup."""
    if dialogue.text is not None:
        return dialogue.text + END_OF_TEXT
    return tokenizer.apply_chat_template(dialogue.messages, tools=dialogue.tools, tokenize=False)


def encode(dialogues: list[Dialogue], tokenizer: PreTrainedTokenizerFast) -> list[Sample]:
    """Tokenize documents.  Taught are the turns of the assistant and the answers of plain texts."""
    backend = tokenizer.backend_tokenizer
    role = backend.encode("assistant\n", add_special_tokens=False).ids
    marks = backend.token_to_id(TURN_START), backend.token_to_id(TURN_END), backend.token_to_id("Ċ")
    samples = []
    for begin in range(0, len(dialogues), 4096):
        part = dialogues[begin : begin + 4096]
        encodings = backend.encode_batch([render(d, tokenizer) for d in part], add_special_tokens=False)
        for encoding, dialogue in zip(encodings, part, strict=True):
            ids = encoding.ids[:MAX_LENGTH]
            taught = taught_in_text(ids, marks[2]) if dialogue.text else taught_in_chat(ids, role, marks[0], marks[1])
            samples.append(Sample(np.array(ids, dtype=np.int16), np.array(taught, dtype=bool)))
    return samples


def taught_in_text(ids: list[int], newline: int) -> list[bool]:
    """In a plain text everything from the end of the first line on is taught, or all of it."""
    first = ids.index(newline) if newline in ids else 0
    return [i >= first for i in range(len(ids))]


def taught_in_chat(ids: list[int], role: list[int], start: int, end: int) -> list[bool]:
    """In a chat the turns of the assistant are taught, each with its end mark."""
    taught, on, i = [False] * len(ids), False, 0
    while i < len(ids):
        if ids[i] == start:
            on = ids[i + 1 : i + 1 + len(role)] == role
            i += 1 + len(role) * on
            continue
        taught[i] = on
        on = on and ids[i] != end
        i += 1
    return taught


def batches(samples: list[Sample], tokens: int, rng: Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of about ``tokens`` tokens made of samples of similar length, in random order."""
    order = list(range(len(samples)))
    rng.shuffle(order)
    groups: list[list[int]] = []
    for begin in range(0, len(order), 4096):
        group: list[int] = []
        for index in sorted(order[begin : begin + 4096], key=lambda i: len(samples[i].ids)):
            if group and (len(group) + 1) * len(samples[index].ids) > tokens:
                groups.append(group)
                group = []
            group.append(index)
        groups.append(group)
    rng.shuffle(groups)
    for group in groups:
        width = max(len(samples[i].ids) for i in group)
        ids, taught = torch.zeros(len(group), width, dtype=torch.long), torch.zeros(len(group), width, dtype=torch.bool)
        for row, i in enumerate(group):
            length = len(samples[i].ids)
            ids[row, :length], taught[row, :length] = (
                torch.from_numpy(samples[i].ids),
                torch.from_numpy(samples[i].taught),
            )
        yield ids, taught


def endless(samples: list[Sample], tokens: int, rng: Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches, one pass over the samples after the other."""
    while True:
        yield from batches(samples, tokens, rng)


def make_model(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> LlamaForCausalLM:
    """A small Llama with tied embeddings and random weights."""
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    if args.device == "cpu":
        model.set_attn_implementation(
            "eager"
        )  # twice as fast as SDPA for short sequences on a CPU, backward pass included
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the taught tokens; the output layer runs only where there is something to learn."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    picked = taught[:, 1:]
    logits = model.lm_head(hidden[:, :-1][picked])
    return F.cross_entropy(logits.float(), ids[:, 1:][picked])


def make_optimizers(model: LlamaForCausalLM, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """AdamW for embeddings and norms, and AdamW or Muon for the matrices of the layers."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    adam = {"betas": (0.9, 0.95), "eps": 1e-8, "fused": True}
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=args.lr, weight_decay=0.0, **adam)]
    if args.optimizer == "muon":
        optimizers.append(torch.optim.Muon(matrices, lr=args.muon_lr, weight_decay=0.05, momentum=0.95))
    else:
        optimizers.append(torch.optim.AdamW(matrices, lr=args.lr, weight_decay=0.05, **adam))
    return optimizers


def schedule(progress: float, warmup: float = 0.02, floor: float = 0.02) -> float:
    """Learning rate factor: linear warm-up, then cosine decay."""
    if progress < warmup:
        return progress / warmup + 1e-3
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, samples: list[Sample], args: argparse.Namespace) -> float:
    """Loss on documents of another seed."""
    model.eval()
    losses = [
        loss_of(model, ids.to(args.device), taught.to(args.device)).item()
        for ids, taught in batches(samples, args.batch_tokens, Random(0))
    ]
    model.train()
    return sum(losses) / len(losses)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the artefacts; bfloat16 halves the file and costs no measurable accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    small = LlamaForCausalLM(model.config).to(torch.bfloat16)
    small.load_state_dict({name: value.detach().cpu().to(torch.bfloat16) for name, value in model.state_dict().items()})
    small.tie_weights()
    small.generation_config = model.generation_config
    small.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # a name that older versions of transformers know, too
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)


def follow_load() -> None:
    """Leave busy cores to other programs: a thread that waits for its core holds up all the others."""
    cores = os.cpu_count() or 1
    others = os.getloadavg()[0] - torch.get_num_threads()
    torch.set_num_threads(max(1, min(cores, round(cores - others))))


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: dict[str, list[Sample]], args: argparse.Namespace
) -> dict:
    """Run the training loop until the planned tokens or the time is used up, keeping the best checkpoint."""
    optimizers = make_optimizers(model, args)
    base = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    begin = last = time.monotonic()
    seen = step = 0
    best, running, progress = float("inf"), 0.0, 0.0
    rng = Random(args.seed)
    copying = endless(data["copying"], args.batch_tokens, rng)
    stream = endless(data["train"], args.batch_tokens, rng)
    while progress < 1:
        progress = max(seen / args.tokens, (time.monotonic() - begin) / (60 * args.minutes))
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, base, strict=True):
            group["lr"] = rate * schedule(progress)
        ids, taught = (tensor.to(args.device) for tensor in next(copying if progress < args.copying else stream))
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bf16):
            loss = loss_of(model, ids, taught)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen, step = seen + ids.numel(), step + 1
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            if not args.threads:
                follow_load()
            spent = time.monotonic() - begin
            print(
                f"step {step} tokens {seen / 1e6:.2f}M loss {running:.4f} {seen / spent:.0f} tok/s {spent / 60:.1f} min",
                flush=True,
            )
        if progress >= 1 or time.monotonic() - last > 60 * args.checkpoint_minutes:
            last = time.monotonic()
            validation = validation_loss(model, data["validation"], args)
            print(f"validation loss {validation:.4f} at {progress:.0%}", flush=True)
            if validation < best:
                best = validation
                save(model, tokenizer, args.out)
    return {
        "steps": step,
        "tokens": seen,
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "validation_loss": best,
    }


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder for the artefacts")
    parser.add_argument("--minutes", type=float, default=54, help="time limit of the training loop")
    parser.add_argument("--tokens", type=float, default=14e6, help="tokens to train on")
    parser.add_argument("--documents", type=int, default=110_000, help="size of the corpus")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are idle cores")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=704)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate of AdamW")
    parser.add_argument("--muon-lr", type=float, default=0.015, help="peak learning rate of Muon")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="mixed precision")
    parser.add_argument(
        "--copying", type=float, default=0.06, help="share of the run spent on copying alone, at its start"
    )
    parser.add_argument("--checkpoint-minutes", type=float, default=6)
    return parser.parse_args()


def main() -> None:
    """Generate, train, save and report."""
    args = parse_args()
    begin = time.monotonic()
    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    torch.manual_seed(args.seed)
    dialogues = list(build(args.documents, args.seed))
    sample = dialogues[:20_000]
    texts = (
        d.text or "\n".join(m["content"] if m.get("content") else json.dumps(m["tool_calls"]) for m in d.messages)
        for d in sample
    )
    schemas = (json.dumps(tool["function"]) for d in sample[::3] for tool in d.tools or [])
    tokenizer = train_tokenizer((text for source in (texts, schemas) for text in source), args.vocab_size)
    copying = build_copying(20_000, args.seed + 2000)
    data = {
        "copying": encode(copying, tokenizer),
        "train": encode(dialogues, tokenizer),
        "validation": encode(list(build(400, args.seed + 1000)), tokenizer),
    }
    documents = len(dialogues)
    del dialogues, sample
    total = sum(len(s.ids) for s in data["train"])
    taught = sum(int(s.taught.sum()) for s in data["train"])
    model = make_model(tokenizer, args).to(args.device)
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{documents} documents, {total / 1e6:.1f}M tokens ({taught / total:.0%} taught), {size / 1e6:.2f}M parameters",
        flush=True,
    )
    print(f"prepared in {time.monotonic() - begin:.0f} s", flush=True)
    report = train(model, tokenizer, data, args)
    report.update(parameters=size, wall_minutes=round((time.monotonic() - begin) / 60, 1))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
