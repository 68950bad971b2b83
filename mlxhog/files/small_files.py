"""The small files of a checkpoint: read whole, so of a bounded size, and of the checkpoint itself.

Whoever made a checkpoint chose what its directory holds, and a copy of a tokenizer's file goes into
what `mlxhog convert` writes, which may be published. So a file that is read whole

    is a regular file of at most `most` bytes, whatever its directory entry promises: a sparse file
    of 200 GB takes no room on the disk and all of the memory;
    is no link out of its directory, with one exception: the cache of the Hugging Face hub holds
    models--NAME/snapshots/REVISION/FILE as links to models--NAME/blobs/DIGEST.

The path that a user names may lead through links anywhere. Files of tensors may be links, too: they
are mapped instead of read, and nothing but tensors of the model's shapes comes out of them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mlxhog.config.quantities import format_bytes
from mlxhog.errors import CheckpointError, MlxhogError

MOST_BYTES = 1 << 27
"""Of any of these files; the largest tokenizers have 40 MB."""


def read(
    path: Path,
    *,
    most: int = MOST_BYTES,
    named: bool = False,
    refusal: type[MlxhogError] = CheckpointError,
) -> bytes:
    """Return what a file holds.

    Args:
        path: the file.
        most: bytes that it may have.
        named: the user named this very file, so it may be a link to anywhere.
        refusal: what to raise for a file that is not read.

    Raises:
        MlxhogError: of the type `refusal`: it is too large, no regular file, or a link that leads
            out of its directory.
        OSError: it is missing, or cannot be read.
    """
    real = path.resolve(strict=True)
    if not named:
        refuse_link_out(path, refusal)
    # Without waiting for the other end of a pipe.
    descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refusal(f"{path} is no regular file; replace it by one, or remove it")
        content = b"" if status.st_size > most else file.read(most + 1)
    if max(status.st_size, len(content)) > most:
        raise refusal(
            f"{path} has {format_bytes(status.st_size)}, and such a file has {format_bytes(most)} "
            "at most; it is not what its name says, so copy the checkpoint again without it"
        )
    return content


def refuse_link_out(path: Path, refusal: type[MlxhogError] = CheckpointError) -> None:
    """Refuse a link that leads out of its directory, but for those of the hub's cache.

    Raises:
        MlxhogError: of the type `refusal`.
    """
    if not path.is_symlink():
        return
    folder, real = path.parent.resolve(), path.resolve()
    blobs = [above.parent / "blobs" for above in folder.parents if above.name == "snapshots"]
    if not any(real.is_relative_to(place) for place in (folder, *blobs)):
        raise refusal(
            f"{path} is a link to {real}, outside of the checkpoint; put a copy in its place if it "
            "belongs there"
        )
