"""Choosing a tokenizer: `bytes`, `bpe:N`, or a `tokenizer.json` that exists already."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlxhog.config.quantities import parse_count
from mlxhog.data import bpe
from mlxhog.data.byte_tokenizer import ByteTokenizer
from mlxhog.errors import DataError
from mlxhog.files import small_files

__all__ = ["ByteTokenizer", "Tokenizer", "build", "identity", "load"]


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
        name: the kind, `bytes` or `bpe`.
        n_ids: ids 0 .. n_ids - 1 have a meaning.
        vocab_size: rows of the embedding, `n_ids` rounded up to a multiple of 64.
        bos: the id that starts every document.
        utf8_only: whether bytes that are not UTF-8 are replaced.
        sha256: digest of the file `tokenizer.json`.
    """

    name: str
    n_ids: int
    vocab_size: int
    bos: int
    utf8_only: bool

    @property
    def sha256(self) -> str: ...  # noqa: D102

    def encode(self, text: bytes) -> NDArray[np.int32]: ...  # noqa: D102

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> bytes: ...  # noqa: D102

    def byte_lengths(self) -> NDArray[np.uint16]: ...  # noqa: D102

    def files(self) -> dict[str, bytes]: ...  # noqa: D102


def identity(spec: str) -> str:
    """Return a text that changes whenever the specified tokenizer does, without training it.

    Raises:
        DataError: as `build`.
    """
    if spec == "bytes":
        return f"bytes|{ByteTokenizer().sha256}"
    if spec.startswith("bpe:"):
        return f"bpe|{_vocab_size(spec)}"
    tokenizer = load(Path(spec))
    return f"file|{tokenizer.sha256}|{tokenizer.bos}"


def build(spec: str, texts: Callable[[], Iterable[bytes]]) -> Tokenizer:
    """Return the tokenizer that `spec` names.

    Args:
        spec: `bytes`, `bpe:N`, the path of a `tokenizer.json`, or of a directory holding one.
        texts: gives the training documents, for `bpe:N`.

    Raises:
        DataError: the name is unknown, the size is wrong, or the file is missing or damaged.
        EnvironmentLacks: the package `tokenizers` is needed and not installed.
    """
    if spec == "bytes":
        return ByteTokenizer()
    if spec.startswith("bpe:"):
        return bpe.train(texts(), _vocab_size(spec))
    return load(Path(spec))


def load(path: Path, bos_token_id: int | None = None) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`, or of the directory that holds it.

    Args:
        path: the file or the directory.
        bos_token_id: the start token, where no file of the tokenizer names it; a model's config
            may.

    Raises:
        DataError: the file is missing, damaged, too large, or a link out of its directory.
        EnvironmentLacks: it is a BPE tokenizer and the package `tokenizers` is not installed.
    """
    named = not path.is_dir()
    file = path if named else path / "tokenizer.json"
    if not file.is_file():
        near = difflib.get_close_matches(str(path), ["bytes", _nearest_bpe(str(path))], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "say bytes, bpe:N, or a tokenizer.json"
        raise DataError(f"no tokenizer {str(path)!r}, and no such file; {hint}")
    byte_tokenizer = ByteTokenizer()
    try:
        description = small_files.read(file, named=named, refusal=DataError)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}; choose another tokenizer") from error
    if hashlib.sha256(description).hexdigest() == byte_tokenizer.sha256:
        return byte_tokenizer
    return bpe.load(file, description, bos_token_id)


def _nearest_bpe(word: str) -> str:
    """A BPE tokenizer with the number of ids that the word holds, if it holds one."""
    try:
        size = parse_count(word.lower().removeprefix("bpe").lstrip(":=-_ "))
    except ValueError:
        size = 4096
    return f"bpe:{size}"


def _vocab_size(spec: str) -> int:
    size = spec.removeprefix("bpe:")
    if not size.isascii() or not size.isdigit():
        near = _nearest_bpe(spec)
        raise DataError(f"tokenizer {spec!r}: expected bpe: and a number, such as {near}")
    return int(size[:12])  # more digits are too many with or without the rest
