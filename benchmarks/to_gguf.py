"""A checkpoint of `checkpoints.py` as GGUF, by llama.cpp's own converter and quantizer.

    python benchmarks/to_gguf.py LLAMA_CPP LLAMA_QUANTIZE FOLDER ...

LLAMA_CPP is llama.cpp's source folder, LLAMA_QUANTIZE its built program. Writes FOLDER-bf16.gguf, FOLDER-Q8_0.gguf and
FOLDER-Q4_0.gguf beside each FOLDER.
"""

import argparse
import subprocess
import sys
from pathlib import Path

QUANTIZATIONS = ("Q8_0", "Q4_0")


def convert(llama_cpp: Path, folder: Path, target: Path) -> None:
    """Write `target` in bfloat16, what the checkpoint holds."""
    sys.path.insert(0, str(llama_cpp))
    import convert_hf_to_gguf
    from conversion.base import TextModel

    # The converter knows pre-tokenizers by a hash over a sample's ids, which no vocabulary of ours can have; the
    # pre-tokenizer itself is GPT-2's.
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outfile", str(target), "--outtype", "bf16"]
    convert_hf_to_gguf.main()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("llama_quantize", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args()
    for folder in options.folders:
        source = folder.with_name(f"{folder.name}-bf16.gguf")
        if not source.exists():
            convert(options.llama_cpp.resolve(), folder, source)
        for quantization in QUANTIZATIONS:
            target = folder.with_name(f"{folder.name}-{quantization}.gguf")
            if not target.exists():
                subprocess.run([options.llama_quantize, source, target, quantization, "2"], check=True)


if __name__ == "__main__":
    main()
