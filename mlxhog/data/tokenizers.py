"""Tokenizers: bytes, byte-level BPE of the package `tokenizers`, or a `tokenizer.json`.

`--tokenizer auto` fits text and model (`choose`):

    sotu       the bundled corpus, on whose training documents it was trained
    bytes      less training text than any vocabulary needs (`MIN_TEXT`), or a narrow model
    bpe:N      any other text

N is a power of two. The text limits it, since an embedding gets gradients from its own token only:
`MIN_TEXT` was best in a minute, at which vocabularies of 2,048 were behind smaller or larger ones
(`python benchmarks/presets_by_text.py --only vocabularies`). The model limits it, since embedding
and head have 2 N d parameters: `IDS_PER_WIDTH` was best in a minute at width 128
(`python benchmarks/defaults.py --only minute`).
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json, reading
from mlxhog.base.paths import expanded
from mlxhog.base.quantities import format_bytes
from mlxhog.data import conversations
from mlxhog.data.foreign_tokenizers import EncoderProcess, accepted, tokenizer_errors
from mlxhog.data.sotu import SOTU, SOTU_SHA256
from mlxhog.data.texts import package_file
from mlxhog.errors import DataError, shown

BOS_TOKEN = "<|bos|>"
FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json "
    "merges.txt tokenizer.model chat_template.jinja chat_template.json"
).split()
"""Files of a tokenizer beside a model, the first with its vocabulary."""

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_MOVED = [byte for byte in range(256) if byte not in _PRINTABLE]
_CHAR_TO_BYTE = {chr(byte): byte for byte in _PRINTABLE}
_CHAR_TO_BYTE |= {chr(256 + i): byte for i, byte in enumerate(_MOVED)}
"""GPT-2's byte table: printable Latin-1 is itself, other bytes are characters above 255."""


class Tokenizer:
    """Text to ids and back."""

    name: str  # the kind, `bytes` or `bpe`
    n_ids: int  # number of ids that are used, 0 .. n_ids - 1
    vocab_size: int  # rows of the embedding, `n_ids` rounded up to a multiple of 64
    bos: int  # the id that starts every document
    bos_token = BOS_TOKEN  # its name
    description: bytes  # the file `tokenizer.json`
    token_bytes: Sequence[bytes]  # the bytes of each id; special tokens and unused ids have none
    _template = package_file("chat_template.jinja")

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

    def close(self) -> None:
        """End an encoder process; a text in work becomes a DataError."""

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> bytes:
        """Return the bytes of the ids."""
        array = np.asarray(ids, np.int64)
        known = array[(array >= 0) & (array < self.n_ids)]
        return b"".join(map(self.token_bytes.__getitem__, known.tolist()))

    def byte_lengths(self) -> NDArray[np.uint16]:
        """Return how many bytes of text each id stands for, (vocab_size,) uint16."""
        lengths = np.zeros(self.vocab_size, np.uint16)
        lengths[: self.n_ids] = [len(piece) for piece in self.token_bytes]
        return lengths

    def files(self) -> dict[str, bytes]:
        """Return the files, by name, that describe this tokenizer to others."""
        special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), self.bos_token)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "padding_side": "left"}
        return {
            "tokenizer.json": self.description,
            "tokenizer_config.json": json.dumps(config, indent=1).encode(),
            "chat_template.jinja": self._template,
        }


class ByteTokenizer(Tokenizer):
    """One token per byte, ids 0-255, and id 256, which begins a document.

    It needs no training, decodes exactly, and makes bits per byte comparable between runs.
    """

    name, n_ids, vocab_size, bos = "bytes", 257, 320, 256
    token_bytes = (*(bytes([byte]) for byte in range(256)), b"")
    description = package_file("bytes.tokenizer.json")  # a printable character for each byte

    def encode(self, text: bytes) -> NDArray[np.int32]:
        """Return the bytes as ids, (len(text),) int32."""
        return np.frombuffer(text, np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> bytes:
        """Return the bytes of the ids."""
        array = np.asarray(ids, dtype=np.int64)
        return array[(array >= 0) & (array < 256)].astype(np.uint8).tobytes()


# -- byte-level BPE --------------------------------------------------------------------------------

BPE_SMALLEST = 257  # 256 bytes and the document separator
_TOGETHER = 1 << 24  # most bytes of texts that are encoded together, grown as they may
_MAX_UNUSED = 1 << 20  # most ids without a token; each costs a row of the embedding


class BpeTokenizer(Tokenizer):
    """The tokenizer of a byte-level `tokenizer.json`.

    Bits per byte need the bytes of every token, so only byte-level vocabularies are accepted.
    `bos_token`, a token or its id, begins a document; `origin` is for messages.

    Raises:
        DataError: the description is damaged or not byte-level, or lacks `bos_token`.
    """

    name = "bpe"

    def __init__(self, description: bytes, bos_token: str | int, origin: str) -> None:
        import tokenizers

        text, self._growth, is_foreign = accepted(description, origin)
        with tokenizer_errors(f"{origin} is not a tokenizer.json"):
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(text)
        self._process = EncoderProcess(text, origin) if is_foreign else None
        self._origin = origin
        # The name of a special token within a text is text.
        self._tokenizer.encode_special_tokens = True
        name: Any = bos_token
        if isinstance(name, int):
            name = self._tokenizer.id_to_token(name)
        bos = None if name is None else self._tokenizer.token_to_id(name)
        if bos is None:
            raise DataError(
                f"{origin}: the start token {shown(bos_token)} is not in the vocabulary"
            )
        self.bos, self.bos_token, self.description = int(bos), name, description
        self.token_bytes = _token_bytes(self._tokenizer, origin)
        self.n_ids = len(self.token_bytes)
        self.vocab_size = -(-self.n_ids // 64) * 64

    def encode(self, text: bytes) -> NDArray[np.int32]:
        """Return the ids of a text, (n,) int32; bytes that are not UTF-8 become U+FFFD.

        Raises:
            DataError: a pattern of the file fails on this text, or takes too long.
        """
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[bytes]) -> list[NDArray[np.int32]]:
        """Return the ids of each text as `encode`; several texts are encoded in parallel.

        Answers of conversations are encoded apart.
        """
        ids, waiting, n_bytes = list[NDArray[np.int32]](), list[list[str]](), 0
        for number, text in enumerate(texts, start=1):
            waiting.append(conversations.cut_at_answers(text.decode(errors="replace")))
            n_bytes += len(text)
            if n_bytes * self._growth >= _TOGETHER or number == len(texts):
                parts = [part for one in waiting for part in one]
                together = [[part] for part in parts] if len(texts) == 1 else [parts]
                encoded = iter([part for one in together for part in self._encoded(one)])
                every = ([next(encoded) for _ in one] for one in waiting)
                ids += [one[0] if len(one) == 1 else np.concatenate(one) for one in every]
                waiting, n_bytes = [], 0
        return ids

    def _encoded(self, texts: list[str]) -> list[NDArray[np.int32]]:
        if self._process is not None:
            return self._process.encode(texts)
        how = {"add_special_tokens": False}
        with tokenizer_errors(f"{self._origin} fails on this text, so use another tokenizer"):
            if len(texts) == 1:  # without the threads of the package
                batch = [self._tokenizer.encode(texts[0], **how)]
            else:
                batch = self._tokenizer.encode_batch_fast(texts, **how)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in batch]

    def close(self) -> None:
        """End the process that encodes, if there is one."""
        if self._process is not None:
            self._process.close()


def _token_bytes(tokenizer: Any, origin: str) -> list[bytes]:
    added = tokenizer.get_added_tokens_decoder()
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    largest = max(vocabulary.values(), default=-1)
    if not 0 <= largest < _MAX_UNUSED + 8 * len(vocabulary):
        raise DataError(
            f"{origin}: the largest id is {largest}, and there are {len(vocabulary)} tokens; "
            "number them from 0"
        )
    pieces = [b""] * (largest + 1)
    for token, i in vocabulary.items():
        if i in added:
            pieces[i] = b"" if added[i].special else token.encode()
            continue
        try:
            pieces[i] = bytes(_CHAR_TO_BYTE[char] for char in token)
        except KeyError as error:
            raise DataError(
                f"{origin}: token {shown(token)} is not byte-level; use a GPT-2 type "
                "tokenizer.json, or bpe:N"
            ) from error
    if (longest := max(map(len, pieces), default=0)) > np.iinfo(np.uint16).max:
        raise DataError(
            f"{origin}: a token has {longest:,} bytes, and at most 65,535 can be counted; use "
            "another tokenizer"
        )
    if (kind := type(tokenizer.model).__name__) != "BPE":
        raise DataError(f"{origin} has a model of kind {kind}, expected BPE; use bpe:N")
    return pieces


def train_bpe(texts: Iterable[bytes], vocab_size: int) -> BpeTokenizer:
    """Return a BPE vocabulary trained on texts by several threads.

    A short text may give fewer ids.

    Raises:
        DataError: `vocab_size` is below `BPE_SMALLEST` or above 2^31 - 1.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if not BPE_SMALLEST <= vocab_size < 2**31:
        raise DataError(
            f"bpe:{vocab_size} needs at least {BPE_SMALLEST} ids: 256 bytes and {BOS_TOKEN}"
        )
    tokenizer: Any = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN],
        initial_alphabet=sorted(_CHAR_TO_BYTE),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.decode(errors="replace") for text in texts), trainer)
    description = json.loads(tokenizer.to_str())
    # The separator comes before a text, as in training.
    pieces = [{"Sequence": {"id": one, "type_id": 0}} for one in "AB"]
    bos, ids = {"SpecialToken": {"id": BOS_TOKEN, "type_id": 0}}, [tokenizer.token_to_id(BOS_TOKEN)]
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, pieces[0]],
        "pair": [bos, *pieces],
        "special_tokens": {BOS_TOKEN: {"id": BOS_TOKEN, "ids": ids, "tokens": [BOS_TOKEN]}},
    }
    text = json.dumps(description, ensure_ascii=False, indent=1)
    return BpeTokenizer(text.encode(), BOS_TOKEN, f"bpe:{vocab_size}")


# -- by name ---------------------------------------------------------------------------------------

SHIPPED = SOTU  # the tokenizer of the bundled corpus, trained on its training documents
SHIPPED_FILE = "sotu.tokenizer.json"
SHIPPED_SHA256 = "12866ef2f8e39656b9da53db3d43c446cb94eb2e36c035c6680d8d6e1ab6e65b"


def identity(spec: str) -> str:
    """Return a text that identifies a tokenizer, without training it.

    Raises:
        DataError, ConfigError: as `build`.
    """
    if spec.startswith("bpe:"):
        return f"bpe|{_size_of(spec)}"
    tokenizer = build(spec, list)
    return f"file|{tokenizer.sha256}|{tokenizer.bos}"


def build(spec: str, texts: Callable[[], Iterable[bytes]]) -> Tokenizer:
    """Return the tokenizer that `spec` names.

    `spec` is `bytes`, `bpe:N`, `sotu`, or the path of a `tokenizer.json` or of a directory with
    one; `texts` yields the training documents, for `bpe:N`.

    Raises:
        DataError: the name is unknown, the size is wrong, or the file is missing or damaged.
        ConfigError: the path begins with the home of a user whom the system does not know.
    """
    if spec == "bytes":
        return ByteTokenizer()
    if spec == SHIPPED:
        return shipped()
    if spec.startswith("bpe:"):
        return train_bpe(texts(), _size_of(spec))
    return load(expanded(spec))


def shipped() -> BpeTokenizer:
    """Return the tokenizer of the bundled corpus; tools/sotu.py made its file."""
    return BpeTokenizer(package_file(SHIPPED_FILE), BOS_TOKEN, SHIPPED_FILE)


def _size_of(spec: str) -> int:
    try:
        return int(spec.removeprefix("bpe:"))
    except ValueError:
        raise DataError(
            f"tokenizer {shown(spec)}: expected bpe: and a number, such as bpe:4096"
        ) from None


def load(path: Path, bos_token_id: int | None = None) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`, or of a directory with one.

    A file beside `tokenizer.json` names the start token; `bos_token_id`, perhaps of a model's
    config, is used if none does.

    Raises:
        DataError: a file is missing, damaged, too large, or a link out of its directory; or none
            names a start token.
    """
    named = not path.is_dir()
    file = path if named else path / "tokenizer.json"
    if not file.is_file():
        raise DataError(
            f"no tokenizer {str(path)!r}, and no such file; say bytes, bpe:N (such as bpe:4096), "
            f"{SHIPPED}, or a tokenizer.json"
        )
    description = _content(file, named=named)
    if description == ByteTokenizer.description:
        return ByteTokenizer()
    bos_token: str | int | None = _named_bos(file)
    if bos_token is None and bos_token_id is not None and 0 <= bos_token_id < 2**31:
        bos_token = bos_token_id
    if bos_token is None:
        raise DataError(
            f"{file}: neither special_tokens_map.json nor tokenizer_config.json beside it names a "
            'bos_token; write {"bos_token": "..."} into tokenizer_config.json'
        )
    return BpeTokenizer(description, bos_token, str(file))


def _named_bos(path: Path) -> str | None:
    for neighbour in ("special_tokens_map.json", "tokenizer_config.json"):
        beside = path.with_name(neighbour)
        if not beside.is_file():
            continue
        try:
            bos = dict(plain_json.loads(_content(beside), strict=False)).get("bos_token")
        except (ValueError, TypeError) as error:
            raise DataError(f"{beside} is no JSON object: {error}") from error
        bos_token = bos.get("content") if isinstance(bos, dict) else bos
        if isinstance(bos_token, str):
            return bos_token.encode(errors="backslashreplace").decode()  # of half a character
    return None


def _content(path: Path, *, named: bool = False) -> bytes:
    try:
        return reading.read_small(path, named=named, refusal=DataError)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; choose another tokenizer") from error


AUTO: Final = "auto"
MIN_TEXT: Final = {
    512: 320_000, 1024: 640_000, 4096: 1_200_000, 8192: 2_400_000,
    16_384: 16 << 20, 32_768: 32 << 20,  # not measured: a token for each KiB
}  # fmt: skip
"""Vocabulary size -> bytes of training text from which on it is taken."""
IDS_PER_WIDTH: Final = 64


def choose(*, n_bytes: int, width: int, sha256: str, rule: str) -> tuple[str, str | None]:
    """Return the tokenizer for a text and a model, and the reason for the user."""
    if (sha256, rule) == (SOTU_SHA256, "predefined"):
        return SHIPPED, None
    of_text = max((ids for ids, least in MIN_TEXT.items() if n_bytes >= least), default=0)
    ids = min(of_text, _power_of_two(IDS_PER_WIDTH * width))
    if ids >= min(MIN_TEXT):
        return f"bpe:{ids}", (
            f"tokenizer bpe:{ids}, trained on {format_bytes(n_bytes)} of text for width {width} "
            "(--tokenizer bytes to disable)"
        )
    if of_text == 0:
        why = f"{format_bytes(n_bytes)} of text is too little to train a subword vocabulary"
    else:
        why = f"a model of width {width} is too narrow for a subword vocabulary"
    return "bytes", f"tokenizer bytes: {why} (--tokenizer bpe:N trains one nevertheless)"


def _power_of_two(number: int) -> int:
    return 1 << (number.bit_length() - 1) if number > 0 else 0
