"""The byte tokenizer: ids 0-255 are the bytes, 256 starts a document.

It needs no package and no training, decodes exactly, and makes bits per byte comparable between
runs. `files` describes it in the format of the package `tokenizers`, through GPT-2's printable
stand-ins for the 256 bytes (`BYTE_TO_CHAR`), so that transformers reads our checkpoints' tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BOS_TOKEN = "<|bos|>"


def _printable_bytes() -> dict[int, str]:
    """Return GPT-2's table: printable Latin-1 stands for itself, the rest moves above 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + i) for i, byte in enumerate(moved)}


BYTE_TO_CHAR = _printable_bytes()


class ByteTokenizer:
    """One token per byte and one document separator; see `mlxhog.data.tokenizers.Tokenizer`."""

    name = "bytes"
    n_ids = 257
    vocab_size = 320
    bos = 256
    utf8_only = False

    @property
    def sha256(self) -> str:
        """Digest of `tokenizer.json`."""
        return hashlib.sha256(self.files()["tokenizer.json"]).hexdigest()

    def encode(self, text: bytes) -> NDArray[np.int32]:
        """Return the bytes as ids, (len(text),) int32."""
        return np.frombuffer(text, np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> bytes:
        """Return the bytes of the ids; the separator and unused rows have none."""
        array = np.asarray(ids, dtype=np.int64)
        return array[(array >= 0) & (array < 256)].astype(np.uint8).tobytes()

    def byte_lengths(self) -> NDArray[np.uint16]:
        """Return how many bytes of text each id stands for, (vocab_size,) uint16."""
        return (np.arange(self.vocab_size) < 256).astype(np.uint16)

    def files(self) -> dict[str, bytes]:
        """Return the files, by name, that describe this tokenizer to others."""
        description: dict[str, object] = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": self.bos,
                    "content": BOS_TOKEN,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
            "post_processor": bos_first(self.bos),
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
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
        return {
            "tokenizer.json": json.dumps(description, ensure_ascii=False, indent=1).encode(),
            "tokenizer_config.json": tokenizer_config(BOS_TOKEN),
        }


def bos_first(bos: int) -> dict[str, object]:
    """Return the post-processor that puts the separator before a text, as the model is trained."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    separator = {"SpecialToken": {"id": BOS_TOKEN, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [separator, text],
        "pair": [separator, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {BOS_TOKEN: {"id": BOS_TOKEN, "ids": [bos], "tokens": [BOS_TOKEN]}},
    }


def tokenizer_config(bos_token: str) -> bytes:
    """Return the `tokenizer_config.json` that names the separator."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos_token}
    return json.dumps(config, indent=1).encode()
