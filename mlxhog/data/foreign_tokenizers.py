"""Bounds on memory and time of a foreign `tokenizer.json`.

The author of such a file chooses what it does to every text, in Rust code that no signal ends:

    a component lengthens a text    `GROWTH` has a bound for every kind; other kinds are refused
    a pattern backtracks or panics  unless it is one of `PATTERNS`, a separate process encodes
                                    (`EncoderProcess`), and is killed after a time limit
    unused parts                    truncation, padding, the post-processor, the decoder and the
                                    random `dropout` are removed

A document has up to a million bytes, and the package `tokenizers` takes about 200 for each.
"""

import json
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json
from mlxhog.base.child_processes import WorkerProcess
from mlxhog.base.quantities import format_bytes, format_duration
from mlxhog.errors import DataError, EnvironmentLacks, message_of, shown

MAX_GROWTH: Final = 8.0  # most bytes that components other than Unicode's forms may make of one
MAX_COMPONENTS: Final = 32  # each processes the whole text
MAX_ADDED_BYTES: Final = 1 << 20  # of added tokens, which an automaton of 30 times their size finds
MAX_PATTERN: Final = 8192  # characters
FORMS: Final = {"NFC": 3.0, "NFD": 3.0, "NFKC": 11.0, "NFKD": 11.0}
"""Unicode's normal forms -> most bytes that they make of one; a further form adds nothing."""


def _of_replace(component: Mapping[str, Any]) -> float:
    """Return the bound for a pattern, which may match nothing, before every character."""
    content, pattern = len(component["content"].encode()), component["pattern"]
    literal = pattern.get("String")
    return 1.0 + content if literal is None else max(1.0, content / len(literal.encode()))


GROWTH: Final[dict[str, Callable[[Mapping[str, Any]], float]]] = {
    **dict.fromkeys([*FORMS, "Sequence"], lambda _: 1.0),
    **dict.fromkeys("Strip StripAccents Nmt Split Digits Punctuation".split(), lambda _: 1.0),
    **dict.fromkeys("Whitespace WhitespaceSplit FixedLength".split(), lambda _: 1.0),
    **dict.fromkeys("CharDelimiterSplit UnicodeScripts BertPreTokenizer".split(), lambda _: 1.0),
    "Lowercase": lambda _: 1.5,
    "BertNormalizer": lambda _: 5.0,  # accents stripped from an NFD, spaces beside each ideogram
    "Metaspace": lambda _: 8.0,  # a character of four bytes for a space and before each word
    # Each byte becomes two, and so does a space before the text.
    "ByteLevel": lambda component: 4.0 if component.get("add_prefix_space", True) else 2.0,
    "Replace": _of_replace,
    "Prepend": lambda component: 1.0 + len(component["prepend"].encode()),  # to each part
}
"""Kind of a normalizer or pre-tokenizer -> largest growth of a text."""

_ENGLISH = "'s|'t|'re|'ve|'m|'ll|'d"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS: Final = frozenset(
    [
        _ENGLISH + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
        rf"(?i:{_ENGLISH})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_OTHERS}",  # Llama 3
        rf"(?i:{_ENGLISH})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_OTHERS}",  # Qwen 2
    ]
)
"""Patterns of well-known models, which take linear time."""


class Accepted(NamedTuple):
    """A description within the bounds."""

    text: str  # JSON for the package `tokenizers`
    growth: float  # largest growth of a text by the components
    is_foreign: bool  # whether it has a pattern that is not known


def accepted(description: bytes, origin: str) -> Accepted:
    """Return the encoding part of a `tokenizer.json`; `origin` is for messages.

    Raises:
        DataError: it is damaged, or beyond the bounds.
    """
    try:
        fields = plain_json.loads(description, strict=False)
        model, added = fields["model"], fields.get("added_tokens") or []
        n_bytes = sum(len(token["content"].encode(errors="replace")) for token in added)
        if n_bytes > MAX_ADDED_BYTES:
            raise ValueError(
                f"its added tokens have {format_bytes(n_bytes)}, and at most "
                f"{format_bytes(MAX_ADDED_BYTES)} are accepted"
            )
        if mark := model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise ValueError(f"its tokens have {shown(mark)}, which no text contains")
        parts = [fields.get(name) for name in ("normalizer", "pre_tokenizer")]
        components = [one for part in parts if part is not None for one in _components(part)]
        growth, is_foreign = _bounds(components)
        unused = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
        if model.get("dropout") is not None:
            model = {**model, "dropout": None}
        return Accepted(json.dumps({**fields, **unused, "model": model}), growth, is_foreign)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = message_of(error) if isinstance(error, ValueError) else f"damaged ({error!r})"
        raise DataError(
            f"{origin} is not a tokenizer.json of the kind of GPT-2's: {what}; use another one, or "
            "bpe:N"
        ) from error


def _components(part: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield part
    for name in ("normalizers", "pretokenizers"):
        for inner in part.get(name) or ():
            yield from _components(inner)


def _bounds(components: Sequence[Mapping[str, Any]]) -> tuple[float, bool]:
    """Return the largest growth by components, and whether a pattern is not known."""
    kinds = [str(one["type"]) for one in components]
    if unknown := [kind for kind in kinds if kind not in GROWTH]:
        raise ValueError(f"the growth of a text by its {shown(unknown[0])} has no known bound")
    if len(kinds) > MAX_COMPONENTS:
        raise ValueError(
            f"it changes and splits every text {len(kinds)} times, and at most {MAX_COMPONENTS} "
            "are accepted"
        )
    patterns = [one["pattern"] for one in components if "pattern" in one]
    for pattern in patterns:
        (text,) = pattern.values()
        if not 0 < len(text) <= MAX_PATTERN:
            raise ValueError(f"a pattern has {len(text):,} characters, expected 1 to {MAX_PATTERN}")
    growth = [GROWTH[kind](one) for kind, one in zip(kinds, components, strict=True)]
    if (product := math.prod(growth)) > MAX_GROWTH:
        most = kinds[growth.index(max(growth))]
        raise ValueError(
            f"it may make a text {product:,.0f} times as long, mostly by its {most}, and at most "
            f"{MAX_GROWTH:.0f} times are accepted"
        )
    of_forms = max([FORMS.get(kind, 1.0) for kind in kinds], default=1.0)
    own = {pattern["Regex"] for pattern in patterns if "Regex" in pattern} - PATTERNS
    return product * of_forms, bool(own)


@contextmanager
def tokenizer_errors(problem: str) -> Iterator[None]:
    """Turn errors of the package `tokenizers` into DataErrors."""
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        # The package raises plain Exception for every kind of damage, except panics of Rust.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise DataError(f"{problem}: {message_of(error)}") from error
        raise


START_S: Final = 60.0  # for the start of the process, on a busy machine
BYTES_PER_S: Final = 10_000  # a hundredth of the usual speed


class EncoderProcess:
    """Encodes texts in a separate process, which is killed when it is slow.

    It starts at the first text, and again after a failure. The package `tokenizers` has loaded
    `description` before.

    Concurrency: any thread may call; one call after the other is answered.
    """

    def __init__(self, description: str, origin: str) -> None:
        self._description, self._origin = description, origin
        self._lock, self._is_closed = threading.Lock(), False
        self._process: WorkerProcess | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return EncoderProcess, (self._description, self._origin)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the ids of each text.

        Raises:
            DataError: a pattern of the file fails, or takes too long.
            EnvironmentLacks: a process of a pool may not start one.
        """
        n_bytes = sum(map(len, texts))
        limit_s = START_S + n_bytes / BYTES_PER_S
        problem = f"the patterns of {self._origin} "
        with self._lock:
            process = self._process = self._process or self._start()
            if self._is_closed:
                process.kill()
            try:
                process.pipe.send(texts)
                if not process.pipe.poll(limit_s):
                    raise DataError(
                        f"{problem}take more than {format_duration(limit_s)} for "
                        f"{format_bytes(n_bytes)} of text; use another tokenizer"
                    )
                answer = process.pipe.recv()
            except (EOFError, OSError) as error:
                death = process.reap()
                raise DataError(
                    f"{problem}ended the process that encodes by {death}; use another tokenizer"
                ) from error
            except BaseException:  # also Ctrl-C: its answer would count for another text
                process.reap()
                raise
            finally:
                if not process.is_alive():
                    process.close()
                    self._process = None
        if isinstance(answer, str):
            raise DataError(f"{problem}fail on this text: {answer}; use another tokenizer")
        ids: list[NDArray[np.int32]] = answer
        return ids

    def _start(self) -> WorkerProcess:
        if multiprocessing.current_process().daemon:
            raise EnvironmentLacks(
                f"{self._origin} has patterns of its own, which need a process, and a process of "
                "multiprocessing.Pool may start none; use concurrent.futures.ProcessPoolExecutor"
            )
        return WorkerProcess(_encode, (self._description,), name="mlxhog-tokenizer")

    def close(self) -> None:
        """End the process for good; a text in work becomes a DataError."""
        self._is_closed = True
        if (process := self._process) is not None:
            process.process.kill()


def _encode(pipe: Connection, description: str) -> None:
    import tokenizers

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a panic writes lines there
    encode = tokenizers.Tokenizer.from_str(description)
    encode.encode_special_tokens = True
    with suppress(EOFError, OSError):
        while True:
            texts = pipe.recv()
            try:
                batch = encode.encode_batch_fast(texts, add_special_tokens=False)
                pipe.send([np.asarray(one.ids, dtype=np.int32) for one in batch])
            except BaseException as error:
                pipe.send(message_of(error))
