"""Where this program keeps its own files. Model weights stay in the hub's shared cache."""

from pathlib import Path


def cache_dir() -> Path:
    """Files that may be deleted at any time."""
    from platformdirs import PlatformDirs  # here, so that a machine with torch alone can run the engine

    return Path(PlatformDirs("tgi-local", appauthor=False).user_cache_dir)
