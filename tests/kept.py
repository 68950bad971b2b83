"""Files that tests compile, kept for later tests and sessions, in a cache of this user.

A file's name is a digest of all that it is made of, the compiler's version among it: what has not
changed is compiled once, as zig does (`tests/arm64/cross.py`) and the emulation of Metal.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from mlxhog.base.cache import is_kept, private_directory, user_cache_directory

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
NATIVE = Path(__file__).resolve().parents[1] / "metal" / "native"
FOLDER = user_cache_directory() / "tests"  # that of the session: a test has a cache of its own
OLD_S = 14 * 86400.0


@cache
def folder(name):
    """A folder for files that are named after their content."""
    return private_directory(FOLDER / name)


def made(name, make, *parts):
    """A file, which `make` writes to the path that it gets unless the file is kept.

    Args:
        name: begins the file's name.
        make: must raise where it fails; no other caller sees its file before it returns.
        parts: all that decides the file's content: words, and files.
    """
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(b"%d:" % len(content) + content)
    path = folder("made") / f"{name}-{digest.hexdigest()[:20]}"
    with suppress(OSError):  # it does not exist, or `is_kept` says what is wrong
        os.utime(path)  # so that no session drops what another one uses
    if not is_kept(path):
        with tempfile.TemporaryDirectory(dir=path.parent) as own:
            part = Path(own) / name
            make(part)
            part.chmod(0o700)
            os.replace(part, path)
    return path


def linked(name, sources, *options, link=(), headers=()):
    """A program or a library, compiled by a compiler on every core.

    Args:
        name: as for `made`.
        sources: may include headers of `metal/native`.
        options: for compiling and linking.
        link: options for linking alone.
        headers: others that the sources include.
    """
    command = [str(COMPILER), *options]
    compiler = _run([str(COMPILER), "--version"])
    included = [*sorted(NATIVE.rglob("*.h")), *headers]

    def compiled(source):
        once = [*command, "-c", str(source), "-o"]
        parts = (compiler, *command, *included, source)
        return made(f"{source.stem}.o", lambda result: _run([*once, str(result)]), *parts)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    whole = [*command, *map(str, objects), *link]
    return made(name, lambda result: _run([*whole, "-o", str(result)]), compiler, *whole)


def _run(command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def drop_old():
    """Remove files that were made or used last two weeks ago; their tree may be gone.

    Another session may be making and replacing files meanwhile.
    """
    for parent, _, names in os.walk(FOLDER):
        for file in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > OLD_S:
                    file.unlink()
