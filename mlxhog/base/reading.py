"""Read files of strangers within limits on bytes, digits and nesting, and no links out of a folder.

A text within these limits, which are far above what mlxhog writes, is read in bounded time.

The author of a checkpoint chooses its files, and `mlxhog convert` copies the tokenizer's file into
its output, which may be published; a link could so publish a private file. So a small file of a
checkpoint, which is read as a whole (`read_small`), must

    be a regular file of at most `most` bytes: a sparse file of 200 GB would fill the memory;
    not be a link out of its directory, except in the cache of the Hugging Face hub, where
    models--NAME/snapshots/REVISION/FILE is a link to models--NAME/blobs/DIGEST.

The path that a user names may contain any links. Files of tensors may be links, too: they are
mapped, and only tensors of the model's shapes are read.
"""

import errno
import io
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from mlxhog.base.quantities import format_bytes
from mlxhog.errors import CheckpointError, MlxhogError

LFS_POINTER = re.compile(rb"version https://(?:git-lfs|hawser)\.github\.com/spec/v\d+\r?\n").match

# Limits.
MAX_BYTES = 1 << 28  # of a file that is read as a whole
MAX_JSON_BYTES = 1 << 24  # of a JSON text whose keys and numbers are checked one by one
MAX_STATUS_BYTES = 1 << 22  # of a run's `run.json`, which `mlxhog runs` reads of every run
MAX_LINE_BYTES = 1 << 26  # of a line; the number of lines is not limited
MAX_SMALL_BYTES = 1 << 26  # of a small file of a checkpoint; the largest tokenizers have 40 MB
MAX_HEADER_BYTES = 1 << 24  # of the part of a file of tensors that lists them
MAX_CONFIG_BYTES = 1 << 20  # of a config and of other files written by hand
MAX_YAML_BYTES = 1 << 18  # of a YAML text, which takes about 10 s per MiB
MAX_DEPTH = 64  # of nested lists and mappings
MAX_DIGITS = 100  # of a number; a number of that length still fits a float
_WEIGHTS = re.compile(
    rb"(?s)(?P<safetensors>.{5}\x00{3}\{)|(?P<zip>PK\x03\x04)|(?P<pickle>\x80[\x02-\x05])"
).match


def regular(path: str | Path, flags: int, folder: int | None = None) -> int:
    """Open a regular file, for `open(..., opener=regular)`; a pipe is refused without waiting.

    A relative path begins at the open `folder`, if there is one.

    Raises:
        OSError: the path cannot be opened, or is a folder, a pipe or a device.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666, dir_fd=folder)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file, such as a file of a run, to read its bytes.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe or a device.
    """
    return open(path, "rb", opener=regular)


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """Return the content of a regular file that fits into memory.

    Raises:
        OSError: it cannot be read, or is a pipe or a device.
        ValueError: it has more than `most` bytes; little more was read.
    """
    with open_regular(path) as file:
        return read_all(file, most)


def refuse_lfs_pointer(
    path: Path, begins: bytes | None = None, refusal: type[MlxhogError] = CheckpointError
) -> None:
    """Refuse a pointer, which git leaves in place of a large file without Git LFS.

    `begins` are the first bytes of the file, if they have been read.

    Raises:
        MlxhogError: of the type `refusal`.
    """
    if begins is None:
        with suppress(OSError), open_regular(path) as file:  # reading the file reports this error
            begins = file.read(64)
    if begins is not None and LFS_POINTER(begins):
        raise refusal(
            f"{path} is a Git LFS pointer in place of the file; fetch the file with `git lfs pull` "
            f"in {path.parent}"
        )


def read_all(file: BinaryIO, most: int) -> bytes:
    """Return the rest of an open file or decompressor as `read_bytes`."""
    content = io.BytesIO()  # its `getvalue` makes no copy
    while piece := file.read(1 << 20):  # `read` allocates its argument before any byte arrives
        content.write(piece)
        if content.tell() > most:
            raise ValueError(f"more than {most:,} bytes")
    return content.getvalue()


def read_text(path: Path, most: int = MAX_CONFIG_BYTES, *, named: bool = False) -> str:
    """Return the text of a small file; one that the user has `named` may be a pipe.

    Raises:
        OSError: it cannot be read, or is a pipe or a device and not `named`.
        ValueError: it has more than `most` bytes, or is not UTF-8.
    """
    with path.open("rb") if named else open_regular(path) as file:
        begins = file.read(64)
        return text_of(begins if _WEIGHTS(begins) else begins + read_all(file, most))


def text_of(content: bytes) -> str:
    """Decode the text of a config; ValueError says what other content is."""
    if one := _WEIGHTS(content):
        raise ValueError(
            f"a {one.lastgroup} file, not text; the config.json beside weights describes their "
            "model, and mlxhog generate, eval, convert and train --init-from take weights"
        )
    if b"\0" in content:
        raise ValueError(f"not text (byte {content.index(0)} is zero)")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from error


def read_small(
    path: Path,
    *,
    most: int = MAX_SMALL_BYTES,
    named: bool = False,
    refusal: type[MlxhogError] = CheckpointError,
) -> bytes:
    """Return the content of a small file of a checkpoint.

    Raises:
        MlxhogError: of the type `refusal`: the file has more than `most` bytes, is not a regular
            file, or is a link that leads out of its directory and the user has not `named` it.
        OSError: the file is missing, or cannot be read.
    """
    real = path.resolve(strict=True)
    if path.is_symlink() and not named:
        folder = path.parent.resolve()
        blobs = [above.parent / "blobs" for above in folder.parents if above.name == "snapshots"]
        if not any(real.is_relative_to(place) for place in (folder, *blobs)):
            raise refusal(
                f"{path} is a link to {real}, outside of the checkpoint; replace the link by a "
                "copy if the file belongs to the checkpoint"
            )
    if not real.is_file():
        raise refusal(f"{path} is not a regular file; replace it by one, or remove it")
    try:
        content = read_bytes(real, most)
        refuse_lfs_pointer(path, content, refusal)
        return content
    except ValueError:
        raise refusal(
            f"{path} has {format_bytes(real.stat().st_size)}; a file of this name has at most "
            f"{format_bytes(most)}, so it is another kind of file; copy the checkpoint without it"
        ) from None
