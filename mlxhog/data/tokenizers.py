"""Tokenizers: single bytes, byte-level BPE, or an existing `tokenizer.json`."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import reading
from mlxhog.base.paths import expanded
from mlxhog.data.bpe import (
    BOS_TOKEN,
    BYTE_TO_CHAR,
    BpeTokenizer,
    bos_first,
    load_bpe,
    train_bpe,
)
from mlxhog.data.bpe import Tokenizer as Tokenizer
from mlxhog.errors import DataError


def identity(spec: str) -> str:
    """Return a text that identifies the specified tokenizer, without training it.

    Raises:
        DataError, ConfigError: as `build`.
    """
    if spec == "bytes":
        return f"bytes|{ByteTokenizer().sha256}"
    if spec == SHIPPED:
        return f"file|{SHIPPED_SHA256}"
    if spec.startswith("bpe:"):
        return f"bpe|{size_of(spec)}"
    tokenizer = load(expanded(spec))
    return f"file|{tokenizer.sha256}|{tokenizer.bos}"


def build(spec: str, texts: Callable[[], Iterable[bytes]], *, progress: bool = False) -> Tokenizer:
    """Return the tokenizer that `spec` names.

    Args:
        spec: `bytes`, `bpe:N`, `sotu` (that of the text in the package), the path of a
            `tokenizer.json`, or of a directory with one.
        texts: yields the training documents, for `bpe:N`.
        progress: see `train_bpe`.

    Raises:
        DataError: the name is unknown, the size is wrong, or the file is missing or damaged.
        ConfigError: the path begins with the home of a user whom the system does not know.
        EnvironmentLacks: the package `tokenizers` is needed and not installed.
    """
    if spec == "bytes":
        return ByteTokenizer()
    if spec == SHIPPED:
        return shipped()
    if spec.startswith("bpe:"):
        return train_bpe(texts(), size_of(spec), progress=progress)
    return load(expanded(spec))


def load(path: Path, bos_token_id: int | None = None) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`, or of a directory with one.

    Args:
        path: the file or the directory.
        bos_token_id: the start token, used if no file of the tokenizer names one; it may come from
            a model's config.

    Raises:
        DataError: the file is missing, damaged, too large, or a link out of its directory.
        EnvironmentLacks: it is a BPE tokenizer and the package `tokenizers` is not installed.
    """
    named = not path.is_dir()
    file = path if named else path / "tokenizer.json"
    if not file.is_file():
        raise DataError(
            f"no tokenizer {str(path)!r}, and no such file; say bytes, bpe:N (such as bpe:4096), "
            f"{SHIPPED}, or a tokenizer.json"
        )
    byte_tokenizer = ByteTokenizer()
    try:
        description = reading.read_small(file, named=named, refusal=DataError)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}; choose another tokenizer") from error
    if hashlib.sha256(description).hexdigest() == byte_tokenizer.sha256:
        return byte_tokenizer
    return load_bpe(file, description, bos_token_id)


def size_of(spec: str) -> int:
    """Return N of `bpe:N`.

    Raises:
        DataError: it is not a number.
    """
    size = spec.removeprefix("bpe:")
    if not size.isascii() or not size.isdigit():
        raise DataError(f"tokenizer {spec!r}: expected bpe: and a number, such as bpe:4096")
    return int(size[:12])  # 12 digits are already too many, so the rest does not matter


class ByteTokenizer(Tokenizer):
    """One token per byte, ids 0-255, and id 256, which starts a document.

    It needs no package and no training, decodes exactly, and makes bits per byte comparable between
    runs. Its `description` has GPT-2's printable characters for the 256 bytes (`BYTE_TO_CHAR`), so
    that transformers reads the tokenizer of our checkpoints.
    """

    name = "bytes"
    n_ids = 257
    vocab_size = 320
    bos = 256

    def encode(self, text: bytes) -> NDArray[np.int32]:
        """Return the bytes as ids, (len(text),) int32."""
        return np.frombuffer(text, np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> bytes:
        """Return the bytes of the ids; the separator and unused ids have none."""
        array = np.asarray(ids, dtype=np.int64)
        return array[(array >= 0) & (array < 256)].astype(np.uint8).tobytes()

    def byte_lengths(self) -> NDArray[np.uint16]:
        """Return how many bytes of text each id stands for, (vocab_size,) uint16."""
        return (np.arange(self.vocab_size) < 256).astype(np.uint16)

    @property
    def description(self) -> bytes:
        """Its `tokenizer.json`."""
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
        separator = {"id": self.bos, "content": BOS_TOKEN}
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        description: dict[str, object] = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [separator | dict.fromkeys(flags, False) | {"special": True}],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": bos_first(self.bos),
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {BYTE_TO_CHAR[byte]: byte for byte in range(256)},
                "merges": [],
            },
        }
        return json.dumps(description, ensure_ascii=False, indent=1).encode()


SHIPPED = "sotu"
"""The tokenizer of the text in the package, learnt from its training documents."""
SHIPPED_FILE = "sotu.tokenizer.json"
SHIPPED_SHA256 = "e3f71fb1e34c23cd983bb8fc70531108e09fc9a3fafda009bd083308ab44686c"


def shipped() -> BpeTokenizer:
    """Return the tokenizer of the text in the package; tools/sotu_tokenizer.py made its file.

    Raises:
        DataError: the file is missing or damaged; reinstalling the package repairs it.
        EnvironmentLacks: the package `tokenizers` is not installed.
    """
    file = importlib.resources.files("mlxhog") / "data" / "texts" / SHIPPED_FILE
    try:
        description = file.read_bytes()
    except OSError as error:
        raise DataError(f"{SHIPPED_FILE} cannot be read: {error}; reinstall mlxhog") from error
    digest = hashlib.sha256(description).hexdigest()
    if digest != SHIPPED_SHA256:
        raise DataError(
            f"{SHIPPED_FILE} has digest {digest[:12]}, expected {SHIPPED_SHA256[:12]}; "
            "reinstall mlxhog"
        )
    return BpeTokenizer(description, BOS_TOKEN, SHIPPED_FILE)
