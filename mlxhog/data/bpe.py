"""Byte-level BPE: vocabularies in the format of the package `tokenizers`, read, used and learnt."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json, reading
from mlxhog.data import conversations
from mlxhog.errors import DataError, EnvironmentLacks, message_of, shown

BOS_TOKEN = "<|bos|>"


_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_MOVED = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_TO_CHAR = {byte: chr(byte) for byte in _PRINTABLE}
BYTE_TO_CHAR |= {byte: chr(256 + i) for i, byte in enumerate(_MOVED)}
"""GPT-2's table byte -> character: printable Latin-1 as it is, others above 255."""


def bos_first(bos: int) -> dict[str, object]:
    """Return the post-processor that puts the separator before a text, as in training."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    separator = {"SpecialToken": {"id": BOS_TOKEN, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [separator, text],
        "pair": [separator, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {BOS_TOKEN: {"id": BOS_TOKEN, "ids": [bos], "tokens": [BOS_TOKEN]}},
    }


class Tokenizer:
    """Text to ids and back.

    Attributes:
        name: the kind, `bytes` or `bpe`.
        n_ids: number of ids that are used, 0 .. n_ids - 1.
        vocab_size: rows of the embedding, `n_ids` rounded up to a multiple of 64.
        bos: the id that starts every document.
        bos_token: its name.
        description: the file `tokenizer.json`.
    """

    name: str
    n_ids: int
    vocab_size: int
    bos: int
    bos_token = BOS_TOKEN
    description: Any

    @property
    def sha256(self) -> str:
        """Digest of `tokenizer.json`."""
        return hashlib.sha256(self.description).hexdigest()

    def encode(self, text: bytes) -> NDArray[np.int32]:
        """Return the ids of a text, (n,) int32."""
        raise NotImplementedError

    def encode_all(self, texts: Sequence[bytes]) -> list[NDArray[np.int32]]:
        """Return the ids of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> bytes:
        """Return the bytes of the ids; special tokens and unused ids have none."""
        raise NotImplementedError

    def byte_lengths(self) -> NDArray[np.uint16]:
        """Return how many bytes of text each id stands for, (vocab_size,) uint16."""
        raise NotImplementedError

    def changes_text(self, text: bytes, ids: NDArray[np.int32]) -> bool:
        """Whether the ids of a text decode to another one."""
        return False

    def files(self) -> dict[str, bytes]:
        """Return the files, by name, that describe this tokenizer to others."""
        special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), self.bos_token)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "padding_side": "left"}
        return {
            "tokenizer.json": self.description,
            "tokenizer_config.json": json.dumps(config, indent=1).encode(),
            "chat_template.jinja": conversations.TEMPLATE.encode(),
        }


BPE_SMALLEST = 257
"""256 bytes and the document separator."""
_MOST_UNUSED = 1 << 20  # most ids without a token; each costs a row of the embedding

_CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}


class BpeTokenizer(Tokenizer):
    """A byte-level `tokenizer.json`, read with the optional package `tokenizers`.

    Only byte-level vocabularies are accepted: only their tokens have a known number of bytes, which
    bits per byte need.

    Args:
        description: the bytes of `tokenizer.json`.
        bos_token: the token that starts a document.
        origin: path or name of the description, for messages.

    Raises:
        EnvironmentLacks: the package `tokenizers` is not installed.
        DataError: the description is damaged or not byte-level, or lacks `bos_token`.
    """

    name = "bpe"

    def __init__(self, description: bytes, bos_token: str, origin: str) -> None:
        """See the class."""
        self._tokenizer, fields = _from_description(description, origin)
        # The file may ask for truncation and padding; our texts keep their length.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # The name of a special token within a text is text.
        self._tokenizer.encode_special_tokens = True
        bos = self._tokenizer.token_to_id(bos_token)
        if bos is None:
            raise DataError(
                f"{origin}: the start token {shown(bos_token)} is not in the vocabulary"
            )
        self.bos = int(bos)
        self.bos_token = bos_token
        self._pieces = _pieces(self._tokenizer, fields, origin)
        self.n_ids = len(self._pieces)
        self.vocab_size = -(-self.n_ids // 64) * 64
        self.description = description
        splitter = fields.get("pre_tokenizer")
        self._keeps_text = (
            fields.get("normalizer") is None
            and isinstance(splitter, dict)
            and (splitter.get("type"), splitter.get("add_prefix_space", True))
            == ("ByteLevel", False)
            and all(token["special"] for token in fields.get("added_tokens") or ())
            and len({piece for piece in self._pieces if len(piece) == 1}) == 256
        )

    def encode(self, text: bytes) -> NDArray[np.int32]:
        """Return the ids of a text, (n,) int32; bytes that are not UTF-8 become U+FFFD."""
        encoding = self._tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False)
        return np.asarray(encoding.ids, dtype=np.int32)

    def encode_all(self, texts: Sequence[bytes]) -> list[NDArray[np.int32]]:
        """Return the ids of each text as `encode`; several texts are encoded in parallel."""
        if len(texts) < 2:
            return [self.encode(text) for text in texts]
        words = [text.decode(errors="replace") for text in texts]
        batch = self._tokenizer.encode_batch_fast(words, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in batch]

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> bytes:
        """Return the bytes of the ids; special tokens and unused ids have none."""
        return b"".join(self._pieces[i] for i in np.asarray(ids).tolist() if 0 <= i < self.n_ids)

    def byte_lengths(self) -> NDArray[np.uint16]:
        """Return how many bytes of text each id stands for, (vocab_size,) uint16."""
        lengths = np.zeros(self.vocab_size, np.uint16)
        lengths[: self.n_ids] = [len(piece) for piece in self._pieces]
        return lengths

    def changes_text(self, text: bytes, ids: NDArray[np.int32]) -> bool:
        """Whether the ids of a text decode to another one."""
        try:
            text.decode()
        except UnicodeDecodeError:
            return True
        return not self._keeps_text and self.decode(ids) != text


def train_bpe(texts: Iterable[bytes], vocab_size: int, *, progress: bool = False) -> BpeTokenizer:
    """Return a BPE vocabulary learnt from texts by several threads.

    Args:
        texts: that it learns from.
        vocab_size: number of ids; a short text may give fewer.
        progress: whether bars show the progress, if stderr is a terminal.

    Raises:
        EnvironmentLacks: the package `tokenizers` is not installed.
        DataError: `vocab_size` is below `BPE_SMALLEST` or above 2^31 - 1.
    """
    if not BPE_SMALLEST <= vocab_size < 2**31:
        raise DataError(
            f"bpe:{vocab_size} needs at least {BPE_SMALLEST} ids: 256 bytes and {BOS_TOKEN}"
        )
    package = _tokenizers()
    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN],
        initial_alphabet=sorted(_CHAR_TO_BYTE),
        show_progress=progress and sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator((text.decode(errors="replace") for text in texts), trainer)
    description = json.loads(tokenizer.to_str())
    description["post_processor"] = bos_first(tokenizer.token_to_id(BOS_TOKEN))
    text = json.dumps(description, ensure_ascii=False, indent=1)
    return BpeTokenizer(text.encode(), BOS_TOKEN, f"bpe:{vocab_size}")


def load_bpe(path: Path, description: bytes, bos_token_id: int | None = None) -> BpeTokenizer:
    """Return the tokenizer of a `tokenizer.json`; a file beside it names the start token.

    Args:
        path: the file.
        description: its content.
        bos_token_id: the start token, used if no file of the tokenizer names one.

    Raises:
        EnvironmentLacks: the package `tokenizers` is not installed.
        DataError: a file is missing or damaged, or none names a start token.
    """
    bos_token = _named_bos(path)
    if bos_token is None and bos_token_id is not None and 0 <= bos_token_id < 2**31:
        bos_token = _from_description(description, str(path))[0].id_to_token(bos_token_id)
    if bos_token is None:
        raise DataError(
            f"{path}: neither special_tokens_map.json nor tokenizer_config.json beside it names a "
            'bos_token; write {"bos_token": "..."} into tokenizer_config.json'
        )
    return BpeTokenizer(description, bos_token, str(path))


def _named_bos(path: Path) -> str | None:
    """The start token that a file beside a `tokenizer.json` names."""
    for neighbour in ("special_tokens_map.json", "tokenizer_config.json"):
        beside = path.with_name(neighbour)
        if not beside.is_file():
            continue
        try:
            content = reading.read_small(beside, refusal=DataError)
        except OSError as error:
            raise DataError(f"{beside} cannot be read: {error}; fetch it again") from error
        bos = _parse(content, str(beside)).get("bos_token")
        bos_token = bos.get("content") if isinstance(bos, dict) else bos
        if isinstance(bos_token, str):
            try:
                bos_token.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"{beside}: bos_token has half a character") from error
            return bos_token
    return None


def _tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ModuleNotFoundError as error:
        raise EnvironmentLacks(
            "a BPE tokenizer needs the package tokenizers: python -m pip install tokenizers"
        ) from error
    return tokenizers


def _from_description(description: bytes, origin: str) -> tuple[Any, dict[str, Any]]:
    """Return the tokenizer of a description, and the fields of the description."""
    fields = _parse(description, origin)
    package = _tokenizers()
    try:
        return package.Tokenizer.from_str(description.decode()), fields
    except BaseException as error:
        # The package raises plain Exception for every kind of damage, except for panics of Rust.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise DataError(f"{origin} is not a tokenizer.json: {message_of(error)}") from error
        raise


def _parse(text: bytes, origin: str) -> dict[str, Any]:
    try:
        fields = plain_json.loads(text, strict=False)
    except ValueError as error:
        raise DataError(f"{origin} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{origin} has a {type(fields).__name__}, expected a JSON object")
    return fields


def _pieces(tokenizer: Any, description: dict[str, Any], origin: str) -> list[bytes]:
    """Return the bytes of each id."""
    try:
        special = {t["id"]: bool(t["special"]) for t in description.get("added_tokens") or ()}
    except (KeyError, TypeError) as error:
        raise DataError(f"{origin}: added_tokens need a content, an id and special") from error
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    largest = max(vocabulary.values(), default=-1)
    if not 0 <= largest < _MOST_UNUSED + 8 * len(vocabulary):
        raise DataError(
            f"{origin}: the largest id is {largest}, and there are {len(vocabulary)} tokens; "
            "number them from 0"
        )
    pieces = [b""] * (largest + 1)
    for token, i in vocabulary.items():
        if i in special:
            pieces[i] = b"" if special[i] else token.encode()
            continue
        try:
            pieces[i] = bytes(_CHAR_TO_BYTE[char] for char in token)
        except KeyError as error:
            raise DataError(
                f"{origin}: token {shown(token)} is not byte-level; use a GPT-2 type "
                "tokenizer.json, or bpe:N"
            ) from error
    return pieces
