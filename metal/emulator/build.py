"""Compiles C++ to libraries and caches them, in files whose names are digests of their source.

Processes and threads that build one library at once all succeed: a file appears whole, by renaming.
Only files that no other user can have written are loaded (`mlxhog.base.cache`).
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from mlxhog.base.cache import is_kept, private_directory, user_cache_directory
from mlxhog.errors import EnvironmentLacks, MetalError, one_line

FOLDER = Path(__file__).parent
_FLAGS = (
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-pthread",
    "-ffp-contract=off",  # Metal may fuse a*b+c; references do not
    "-fno-math-errno",
    "-fno-strict-aliasing",  # kernels read words as floats
    "-Werror=frame-larger-than=32768",  # a fiber's stack is small; a GPU thread's memory is smaller
    "-Wno-attributes",  # [[kernel]], [[buffer(0)]] and the like
)
_CLANG_FLAGS = ("-Wno-unknown-attributes",)
# Apple's <ucontext.h> is an error without the first, which hides MAP_ANONYMOUS without the second.
_APPLE_FLAGS = ("-D_XOPEN_SOURCE=700", "-D_DARWIN_C_SOURCE", "-Wno-deprecated-declarations")
# A call before each access to memory, for `runtime/accesses.h`; clang on a Mac has no such flag.
_WATCHED = (
    "-fsanitize=kernel-address",
    *("--param", "asan-stack=0", "--param", "asan-globals=0"),
    *("--param", "asan-instrumentation-with-call-threshold=0"),
)
_SHARED = ("-shared", "-x", "c++", "-", "-x", "none")
_BESIDE = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
"""For the linker: the folder of the library itself, to find other libraries beside it."""


def kernel_cache() -> Path:
    """Return the default folder of compiled kernels."""
    return user_cache_directory() / "metal"


def make_cache(directory: Path) -> Path:
    """Make a folder for compiled files, and return its path without links.

    Raises:
        EnvironmentLacks: it cannot be created, or other users could write to it.
    """
    try:
        return private_directory(directory)
    except OSError as error:
        raise _not_writable(directory, error) from error


def _not_writable(directory: Path, error: OSError) -> EnvironmentLacks:
    return EnvironmentLacks(
        f"compiled Metal kernels cannot be kept in {directory} ({error.strerror}); "
        "set XDG_CACHE_HOME to a folder that can be written"
    )


def library(
    name: str,
    text: str,
    *,
    directory: Path,
    compiler: str = "g++",
    extra_flags: tuple[str, ...] = (),
    is_watched: bool = False,
) -> Path:
    """Return a shared library of a C++ text, linked with the runtime; compile it if missing.

    Args:
        name: name for messages and for the file.
        text: the text.
        directory: the cache; created if it is missing.
        compiler: a g++ or clang++.
        extra_flags: such as "-fsanitize=address".
        is_watched: refuse accesses that no barrier orders; by g++ on Linux alone.

    Raises:
        MetalError: the text does not compile; the message is the compiler's.
        EnvironmentLacks: there is no such compiler, or a file of the cache cannot be trusted.
    """
    directory = make_cache(directory)
    runtime = runtime_library(directory, compiler, extra_flags)
    link = (f"-Wl,-rpath,{_BESIDE}", str(runtime))
    is_gcc = sys.platform == "linux" and "clang" not in version(compiler)
    watched = _WATCHED if is_watched and is_gcc else ()
    return compiled(name, text, (*extra_flags, *watched, *_SHARED), directory, compiler, link)


def runtime_library(directory: Path, compiler: str, extra_flags: tuple[str, ...]) -> Path:
    """Compile the runtime that all kernel libraries share: scheduler, fibers, schedule fuzzing."""
    sources = sorted((FOLDER / "runtime").glob("*.cpp"))
    text = "".join(f'#include "{file}"\n' for file in sources)  # at once: half the time
    flags = (*extra_flags, "-I", str(FOLDER / "runtime"), *_SHARED)
    return compiled("runtime", text, flags, directory, compiler)


def compiled(
    name: str,
    text: str,
    arguments: tuple[str, ...],
    directory: Path,
    compiler: str,
    link: tuple[str, ...] = (),
) -> Path:
    """Return what a compiler makes of a text, which it reads as standard input, and the headers.

    Args:
        name: name for messages and for the file.
        text: the text.
        arguments: beside the flags of all.
        directory: the cache, by `make_cache`.
        compiler: a g++ or clang++.
        link: the runtime, which follows from the others; its folder has no part in the file's name.
    """
    flags = (*_flags(compiler), *arguments)
    parts = "\0".join((text, _shim_text(), version(compiler), *flags))
    digest = hashlib.sha256(parts.encode()).hexdigest()[:20]
    path = directory / f"{name}-{digest}.so"
    if is_kept(path):
        return path
    try:
        with tempfile.NamedTemporaryFile(dir=directory, suffix=".part", delete=False) as file:
            part = Path(file.name)
    except OSError as error:
        raise _not_writable(directory, error) from error
    # By this name others find it that are linked with it.
    own = "-install_name,@rpath/" if sys.platform == "darwin" else "-soname,"
    named = (f"-Wl,{own}{path.name}",) if "-shared" in arguments else ()
    command = [compiler, *flags, *link, *named, "-o", str(part)]
    try:
        process = subprocess.run(
            command, input=text, capture_output=True, text=True, errors="replace", check=False
        )
        if process.returncode != 0:
            raise MetalError(f"{name} does not compile:\n{process.stderr.strip()}")
        part.chmod(0o700)  # the linker uses the umask, which may let others write
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


@cache
def _shim_text() -> str:
    files = sorted([*(FOLDER / "include").rglob("*"), *(FOLDER / "runtime").glob("*")])
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())


@cache
def version(compiler: str) -> str:
    """Return what a C++ compiler says of itself.

    Raises:
        EnvironmentLacks: there is no such compiler, or it does not run. On a Mac without the
            Command Line Tools, /usr/bin/g++ is a program that only says that they are missing.
    """
    reason = ""
    try:
        process = subprocess.run(
            [compiler, "--version"], capture_output=True, check=False, text=True,
            stdin=subprocess.DEVNULL, errors="replace",
        )  # fmt: skip
        if process.returncode == 0:
            return process.stdout
        message = one_line(process.stderr or process.stdout) or "it left no message"
        reason = f", which ends with code {process.returncode} ({message})"
    except FileNotFoundError:
        pass
    except OSError as error:
        reason = f", which does not run ({error.strerror})"
    raise EnvironmentLacks(
        f"no C++ compiler {compiler!r} on this machine{reason}, and the emulation of Metal "
        "compiles kernels; install g++ 12 or newer, or clang++ 16 or newer (on a Mac "
        "xcode-select --install)"
    )


def _flags(compiler: str) -> tuple[str, ...]:
    own: tuple[str, ...] = _CLANG_FLAGS if "clang" in version(compiler) else ()
    if sys.platform == "darwin":
        own += _APPLE_FLAGS
    return (*_FLAGS, *own, "-I", str(FOLDER / "include"))
