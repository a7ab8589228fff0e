"""Model id and revision to a local folder of safetensors weights. No torch.

`find` is cheap and finds out what is wrong before anything heavy is loaded; `fetch` downloads.
"""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

from tgi_local.errors import StartupError

DEMO_MODEL_ID = "tgi-local/demo"
DEMO_ALIASES = ("demo", DEMO_MODEL_ID)
HUB_TIMEOUT_S = 10.0

# Everything a Transformers checkpoint needs, and no pickles. Folders and `consolidated` files hold the same weights
# again in another format.
DOWNLOAD_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model")
IGNORE_PATTERNS = ("*/*", "consolidated*.safetensors")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from. `folder` is None while it has to be downloaded; sizes are bytes.

    `revision` is the branch, tag or commit asked for.
    """

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
    if (local := _local_folder(model_id)) is not None:
        return ModelSource(model_id, None, _checked(local, model_id))
    if _looks_like_path(model_id):
        raise StartupError(f"model folder {model_id!r} does not exist; give --model-id a folder, a hub id or 'demo'")
    if not _is_hub_id(model_id):
        raise StartupError(
            f"{model_id[:200]!r} is no model: give --model-id a folder, a hub id like owner/name, or 'demo'"
        )
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
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    try:
        folder = snapshot_download(
            source.model_id,
            revision=source.revision,
            cache_dir=cache_dir,
            allow_patterns=list(DOWNLOAD_PATTERNS),
            ignore_patterns=list(IGNORE_PATTERNS),
            tqdm_class=_progress_bar(source.download_bytes or 0, on_progress),
        )
    except GatedRepoError as error:
        raise StartupError(_gated(source.model_id)) from error
    except (HTTPError, OSError, ValueError) as error:
        raise StartupError(
            f"downloading {source.model_id!r} failed ({_first_line(error)}); start again to resume"
        ) from error
    return _checked(Path(folder), source.model_id)


def _local_folder(model_id: str) -> Path | None:
    try:
        folder = Path(model_id).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # a name too long for the file system, a home folder of nobody
        return None


def _is_hub_id(model_id: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model_id)
    except HFValidationError:
        return False
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model_id, flags=re.ASCII) is not None


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
    """The snapshot in the hub's cache, if all of it is there; what an interrupted download left is completed later."""
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            allow_patterns=list(DOWNLOAD_PATTERNS),
            ignore_patterns=list(IGNORE_PATTERNS),
            local_files_only=True,
        )
    except OSError:
        return None
    folder = Path(snapshot)
    return folder if (folder / "config.json").is_file() and _has_all_weights(folder) else None


def _has_all_weights(folder: Path) -> bool:
    """Other programs fetch single files into the same cache, so the snapshot's own listing may be missing."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        return False
    return all((folder / shard).is_file() for shard in shards)


def _ask_hub(model_id: str, revision: str | None) -> ModelSource:
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if HF_HUB_OFFLINE:
        raise StartupError(
            f"model {model_id!r} is not in the local cache and HF_HUB_OFFLINE is set; unset it once to download"
        )
    try:
        info = HfApi().model_info(model_id, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT_S)
    except GatedRepoError as error:
        raise StartupError(_gated(model_id)) from error
    except RevisionNotFoundError as error:
        raise StartupError(f"model {model_id!r} has no revision {revision!r}; check --revision") from error
    except RepositoryNotFoundError as error:
        raise StartupError(
            f"no folder and no hub model named {model_id!r}; check --model-id, or set HF_TOKEN if it is private"
        ) from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise StartupError(
            f"model {model_id!r} is not in the local cache and the hub can not be reached ({_first_line(error)}); "
            "connect once, or give --model-id a folder or 'demo'"
        ) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or [] if _is_wanted(file.rfilename)}
    if not any(name.endswith(".safetensors") for name in sizes):
        raise StartupError(f"{model_id!r} has no *.safetensors weights; other formats can run code and are refused")
    return ModelSource(model_id, revision, None, download_bytes=sum(sizes.values()))


def _is_wanted(name: str) -> bool:
    is_ignored = any(fnmatch(name, pattern) for pattern in IGNORE_PATTERNS)
    return not is_ignored and any(fnmatch(name, pattern) for pattern in DOWNLOAD_PATTERNS)


def _gated(model_id: str) -> str:
    return f"model {model_id!r} is gated: accept its terms on the hub, then set HF_TOKEN to a token of yours"


def _progress_bar(total: int, on_progress: Callable[[int, int], None]) -> type[Any]:
    from tqdm.auto import tqdm

    lock = threading.Lock()
    most = 0

    class Bar(tqdm):
        """Silent. Bytes received and bytes on disk have a bar each: the one that is ahead is reported."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._bytes: float | None = 0 if kwargs.get("unit") == "B" else None
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            if self._bytes is None:
                return
            with lock:  # files are downloaded by several threads
                self._bytes += n or 0
                if self._bytes > most:
                    most = int(self._bytes)
                    on_progress(most, max(total, most))

    return Bar


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
