"""Where mlxhog keeps what it can make again."""

import os
import sys
from pathlib import Path


def user_cache_directory() -> Path:
    """Return this user's cache directory for mlxhog; it need not exist."""
    if configured := os.environ.get("XDG_CACHE_HOME"):
        return Path(configured) / "mlxhog"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlxhog"
    return Path.home() / ".cache" / "mlxhog"
