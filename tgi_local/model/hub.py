"""Model id and revision to a local folder of safetensors weights. No torch.

`find` is cheap and finds out what is wrong before anything heavy is loaded; `fetch` downloads.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tgi_local.errors import StartupError

DEMO_MODEL_ID = "tgi-local/demo"
DEMO_ALIASES = ("demo", DEMO_MODEL_ID)
HUB_TIMEOUT_S = 10.0

# Everything a Transformers checkpoint needs, and no pickles.
DOWNLOAD_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from. `folder` is None while it has to be downloaded; sizes are bytes."""

    model_id: str
    revision: str | None
    folder: Path | None
    is_demo: bool = False
    download_bytes: int | None = None


def find(model_id: str, revision: str | None = None, cache_dir: str | None = None) -> ModelSource:
    """Locate a model without loading it. Raises StartupError with the remedy when there is none."""
    if model_id in DEMO_ALIASES:
        folder = Path(str(resources.files("tgi_local") / "demo_model"))
        return ModelSource(DEMO_MODEL_ID, None, _checked(folder, DEMO_MODEL_ID), is_demo=True)
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        return ModelSource(model_id, None, _checked(folder, model_id))
    if _looks_like_path(model_id):
        raise StartupError(f"model folder {model_id!r} does not exist; give --model-id a folder, a hub id or 'demo'")
    if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", model_id):
        raise StartupError(f"{model_id!r} is no model: give --model-id a folder, a hub id like owner/name, or 'demo'")
    cached = _cached(model_id, revision, cache_dir)
    if cached is not None:
        return ModelSource(model_id, revision, cached)
    return _ask_hub(model_id, revision)


def fetch(
    source: ModelSource,
    cache_dir: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Download what is missing; `on_progress(bytes_done, bytes_total)`. Raises StartupError."""
    if source.folder is not None:
        return source.folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(
            source.model_id,
            revision=source.revision,
            cache_dir=cache_dir,
            allow_patterns=list(DOWNLOAD_PATTERNS),
            tqdm_class=_progress_bar(source.download_bytes or 0, on_progress),
        )
    except (HfHubHTTPError, OSError) as error:
        raise StartupError(
            f"downloading {source.model_id!r} failed: {_first_line(error)}; start again to resume"
        ) from error
    return _checked(Path(folder), source.model_id)


def _looks_like_path(model_id: str) -> bool:
    return model_id.startswith((".", "/", "~")) or "\\" in model_id or model_id.count("/") > 1


def _checked(folder: Path, model_id: str) -> Path:
    if not (folder / "config.json").is_file():
        raise StartupError(f"{model_id!r} has no config.json; a model folder holds config.json and *.safetensors")
    if not any(folder.glob("*.safetensors")):
        raise StartupError(
            f"{model_id!r} has no *.safetensors weights; other formats can run code and are refused, convert it first"
        )
    return folder


def _cached(model_id: str, revision: str | None, cache_dir: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model_id, "config.json", cache_dir=cache_dir, revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    # An interrupted download leaves the index without all of its shards: let snapshot_download complete it.
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        return folder if all((folder / shard).is_file() for shard in shards) else None
    return folder if any(folder.glob("*.safetensors")) else None


def _ask_hub(model_id: str, revision: str | None) -> ModelSource:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if HF_HUB_OFFLINE:
        raise StartupError(
            f"model {model_id!r} is not in the local cache and HF_HUB_OFFLINE is set; unset it once to download"
        )
    try:
        info = HfApi().model_info(model_id, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT_S)
    except GatedRepoError as error:
        raise StartupError(f"model {model_id!r} is gated: accept its terms on the hub, then set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise StartupError(f"model {model_id!r} has no revision {revision!r}; check --revision") from error
    except RepositoryNotFoundError as error:
        raise StartupError(
            f"no folder and no hub model named {model_id!r}; check --model-id, or set HF_TOKEN if it is private"
        ) from error
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        raise StartupError(
            f"model {model_id!r} is not in the local cache and the hub can not be reached ({_first_line(error)}); "
            "connect once, or give --model-id a folder or 'demo'"
        ) from error
    files = info.siblings or []
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        raise StartupError(f"{model_id!r} has no *.safetensors weights; other formats can run code and are refused")
    size = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
    return ModelSource(model_id, info.sha or revision, None, download_bytes=size)


def _progress_bar(total: int, on_progress: Callable[[int, int], None]) -> type[Any]:
    from tqdm.auto import tqdm

    class Bar(tqdm):
        """Counts bytes of every file; file counters are left out."""

        done = 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> None:
            if self._counts_bytes and n:
                Bar.done += int(n)
                on_progress(Bar.done, max(total, Bar.done))

    return Bar


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
