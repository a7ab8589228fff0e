"""Assembles the folder that a Hugging Face Space is made of, and pushes it when asked.

python tools/space.py                        -> build/space
python tools/space.py --push owner/name      -> the same, uploaded to that Space (HF_TOKEN, or `hf auth login`)
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("app.py", "tgi_local", "ui", "LICENSE")  # what runs; requirements.txt and README.md are made for the Space
NOT_SHIPPED = shutil.ignore_patterns("__pycache__", "*.py[cod]", ".*")
MARKER = ".tgi-local-space"  # says that a folder is ours to replace


class SpaceError(Exception):
    """What is wrong, and how to mend it, in one line."""


def pins(text: str) -> dict[str, str]:
    """Normalized name -> line, for the lines that require something."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {re.split(r"[ =<>!~;\[]", line, maxsplit=1)[0].lower().replace("_", "-"): line for line in lines}


def space_requirements(root: Path = ROOT) -> str:
    """The product's pins, with those of space/requirements.txt in their place."""
    product = pins((root / "requirements.txt").read_text(encoding="utf-8"))
    own = pins((root / "space" / "requirements.txt").read_text(encoding="utf-8"))
    return "".join(f"{line}\n" for line in {**product, **own}.values())


def assemble(output: Path, root: Path = ROOT) -> list[Path]:
    """Write the Space's folder anew and return its files. Refuses to replace a folder that is not one."""
    missing = [
        name
        for name in (*PARTS, "requirements.txt", "space/README.md", "space/packages.txt")
        if not (root / name).exists()
    ]
    if missing:
        raise SpaceError(f"{root} lacks {', '.join(missing)}: run this in a full checkout")
    if output.exists():
        if any(output.iterdir()) and not (output / MARKER).exists():
            raise SpaceError(f"{output} holds something else; give --output an empty or a new folder")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / MARKER).touch()
    for name in PARTS:
        if (root / name).is_dir():
            shutil.copytree(root / name, output / name, ignore=NOT_SHIPPED)
        else:
            shutil.copy2(root / name, output / name)
    shutil.copy2(root / "space" / "README.md", output / "README.md")
    shutil.copy2(root / "space" / "packages.txt", output / "packages.txt")  # what the CPU kernels are compiled with
    (output / "requirements.txt").write_text(space_requirements(root), encoding="utf-8")
    return sorted(path for path in output.rglob("*") if path.is_file() and path.name != MARKER)


def push(folder: Path, repo_id: str) -> str:
    """Create the Space if it is new, upload the folder, and return its address."""
    import httpx2  # what huggingface_hub speaks through; a hub that is not there raises its errors
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise SpaceError("no Hugging Face token found: run `hf auth login`, or set HF_TOKEN to one that may write")
    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type="space", space_sdk="gradio", exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="space",
            folder_path=folder,
            ignore_patterns=[MARKER],
            delete_patterns=["tgi_local/*", "ui/*"],  # what is gone here shall be gone there; the owner's files stay
            commit_message="Update from tgi-local",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise SpaceError(f"the hub refused ({status}): the token must have write access to {repo_id}") from error
        raise SpaceError(
            f"the hub answered {status} for {repo_id}: {error.server_message or 'try again later'}"
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        raise SpaceError(f"the hub can not be reached ({type(error).__name__}): check the network") from error
    return f"https://huggingface.co/spaces/{repo_id}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Assemble the Hugging Face Space, and push it when asked.")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "space", help="the folder to write (default: build/space)"
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to this Space, which is created if it is new")
    options = parser.parse_args(arguments)
    try:
        if options.push and not re.fullmatch(r"[\w.-]+/[\w.-]+", options.push):
            raise SpaceError(f"{options.push!r} is no Space name: give --push owner/name")
        files = assemble(options.output)
        print(f"{options.output}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
        if options.push:
            print(push(options.output, options.push))
    except SpaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
