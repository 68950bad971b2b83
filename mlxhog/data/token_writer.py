"""Writing a token file, document by document, in the format that `tokens` describes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import FORMAT
from mlxhog.files.durable import flush, write_synced


def item_size(tokenizer: Tokenizer) -> int:
    """Return the bytes that one token takes in a file."""
    return 2 if tokenizer.vocab_size <= 65_536 else 4


class TokenWriter:
    """Appends documents to a new token file; leaving the `with` block completes it.

    Memory stays flat: a document is written before the next one is asked for. The four files are
    flushed to the disk but not renamed; the caller writes into a directory that it publishes when
    everything in it is whole.

    Args:
        path: the `.bin` to create.
        tokenizer: makes the ids.
        split: `train` or `val`, for the header.
        source: the name of the corpus, for the header.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, *, split: str, source: str) -> None:
        """See the class."""
        self._path = path
        self._tokenizer = tokenizer
        self._split = split
        self._source = source
        self._dtype = np.dtype(f"<u{item_size(tokenizer)}")
        self._lengths = tokenizer.byte_lengths().astype("<u2")
        self._bos = np.array([tokenizer.bos], self._dtype).tobytes()
        self._hash = hashlib.sha256()
        self._starts = [0]
        self._n_bytes = 0
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def add(self, document: bytes) -> None:
        """Append BOS and the tokens of one document."""
        ids = self._tokenizer.encode(document)
        self._n_bytes += int(self._lengths[ids].sum(dtype=np.int64))
        block = self._bos + ids.astype(self._dtype).tobytes()
        self._hash.update(block)
        self._file.write(block)
        self._starts.append(self._starts[-1] + 1 + len(ids))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the file, or on an error just close it."""
        if error is not None:
            self._file.close()
            return
        with self._file:
            self._file.flush()
            flush(self._file.fileno())
        write_synced(self._path.with_suffix(".idx"), np.array(self._starts, "<u8").tobytes())
        write_synced(self._path.with_suffix(".len"), self._lengths.tobytes())
        header = {
            "format": FORMAT,
            "dtype": f"uint{8 * self._dtype.itemsize}",
            "tokens": self._starts[-1],
            "documents": len(self._starts) - 1,
            "bos": self._tokenizer.bos,
            "vocab": self._tokenizer.vocab_size,
            "bytes": self._n_bytes,
            "tokenizer_sha256": self._tokenizer.sha256,
            "sha256": self._hash.hexdigest(),
            "split": self._split,
            "source": self._source,
        }
        write_synced(self._path.with_suffix(".json"), json.dumps(header, indent=1).encode())
