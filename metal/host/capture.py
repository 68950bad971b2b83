"""The exact text that MLX would compile: MLX itself is asked in a child process, once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock

from mlxhog.errors import MetalError
from mlxhog.files.durable import replace_file
from mlxhog.machine.cache import is_kept
from mlxhog.metal.host import build
from mlxhog.metal.host.request import Request

_TIMEOUT_S = 120.0
_ONE_AT_A_TIME = Lock()  # threads of one process; processes may write a text twice


def mlx_version() -> str:
    """Return the installed version of MLX, "" where it is missing; imports nothing."""
    try:
        return version("mlx")
    except PackageNotFoundError:
        return ""


def texts(requests: Sequence[Request], directory: Path) -> list[str]:
    """Return MLX's text of each request; one child asks for all that are not in `directory`.

    Raises:
        MetalError: MLX refuses a kernel.
        EnvironmentLacks: the directory cannot be made, or what is there is not to be trusted.
    """
    with _ONE_AT_A_TIME:
        return _texts(requests, directory)


def _texts(requests: Sequence[Request], directory: Path) -> list[str]:
    directory = build.make_cache(directory)
    paths = [directory / f"{request.name}-{_digest(request)}.metal" for request in requests]
    missing = {
        path: request for path, request in zip(paths, requests, strict=True) if not is_kept(path)
    }
    if missing:
        for path, text in zip(missing, _ask(list(missing.values())), strict=True):
            replace_file(path, text.encode())
            path.chmod(0o600)  # whatever the umask, which may let others write
    return [path.read_text(encoding="utf-8") for path in paths]


def _digest(request: Request) -> str:
    content = json.dumps([mlx_version(), request.plain()])
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def _ask(requests: list[Request]) -> list[str]:
    done = subprocess.run(
        # -P: a folder named mlxhog where the user stands is not this package
        [sys.executable, "-P", "-m", "mlxhog.metal.host.capture_mlx"],
        input=json.dumps([request.plain() for request in requests]),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        names = ", ".join(request.name for request in requests)
        raise MetalError(f"MLX gave no text for {names}:\n{done.stderr.strip()[-2000:]}")
    answer: list[str] = json.loads(done.stdout)
    return answer
