"""Where this program keeps its own files. Model weights stay in the hub's shared cache."""

from pathlib import Path

from platformdirs import PlatformDirs

_DIRS = PlatformDirs("tgi-local", appauthor=False)


def cache_dir() -> Path:
    """Files that may be deleted at any time."""
    return Path(_DIRS.user_cache_dir)
