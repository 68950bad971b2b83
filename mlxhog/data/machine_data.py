"""Detect encoded or binary-like text: base64, hexadecimal digits, data: URIs, PEM blocks.

A model cannot learn it, and it needs many tokens. It is a

    run      at least 100 characters without a blank
    block    at least three lines of 60 characters or more, each perhaps in quotes
    URI      data:...;base64, and what follows
    PEM      -----BEGIN ...----- to -----END ...-----

A run and a block must look random: hexadecimal digits and letters of at least 3.5 bits of entropy
per character, or base64's characters with small and capital letters and digits, and at least 4.7
bits. Random base64 of this length has 5.3, prose about 4.2, names in camel case below 4.5, a
protein 4.2 without small letters, and DNA 2.
"""

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator

import numpy as np

from mlxhog.base.paths import printable
from mlxhog.base.quantities import format_bytes
from mlxhog.data.records import Example

_NAMED = 5  # most files that a note names
_HEX_BITS, _BASE64_BITS = 3.5, 4.7
_PATTERN = re.compile(
    rb"(?P<sure>data:[\w.+/-]+(?:;[\w=.-]+)*;base64,[A-Za-z0-9+/_=-]{60,}"
    rb"|-----BEGIN [A-Z0-9 ]+-----[^-]{60,}-----END [A-Z0-9 ]+-----)"
    rb"|(?P<block>(?<![^\n])(?:[ \t]*[\"']?[A-Za-z0-9+/]{60,}={0,2}[\"']?[,;+\\]?[ \t]*\n){3,}"
    rb"(?:[ \t]*[\"']?[A-Za-z0-9+/]+={0,2}[\"']?(?![^\n]))?)"
    rb"|(?P<run>(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{100,}={0,2})"
)
_OTHERS = re.compile(rb"[^A-Za-z0-9+/_-]")
_IS_LETTER = np.array([not _OTHERS.match(bytes([byte])) for byte in range(256)])
_EIGHT = np.uint64(0x0101010101010101)


class MachineData:
    """Measures such data in documents as they are first read, and perhaps leaves it out.

    `sizes`, by file or source, has those that were read to the end.
    """

    def __init__(self, *, skip: bool) -> None:
        self.skip, self.sizes = skip, Counter[str]()

    def read(self, documents: Iterable[bytes], name: str) -> Iterator[bytes]:
        """Yield the documents of a file or a source."""
        size, is_known = 0, name in self.sizes and not self.skip
        for document in documents:
            rest = [document] if is_known else list(without([document]))
            size += len(document) - sum(map(len, rest))
            yield from rest if self.skip else [document]
        self.sizes.setdefault(name, size)

    def notes(self, n_bytes: int, unread: Container[str]) -> list[str]:
        """Return a line for the user if a hundredth of the text or more is such data.

        `n_bytes` is the size of the text without what is left out; `unread` files are no part of
        it.
        """
        sizes = Counter({name: n for name, n in self.sizes.items() if n and name not in unread})
        total = n_bytes + self.skip * sizes.total()
        if 100 * sizes.total() < total:
            return []
        names = [f"{printable(name)} ({format_bytes(n)})" for name, n in sizes.most_common(_NAMED)]
        rest = f" and {len(sizes) - _NAMED} more" if len(sizes) > _NAMED else ""
        way_out = "is left out" if self.skip else "is learned; --skip-machine-data leaves it out"
        return [
            "machine data (base64, hexadecimal digits, PEM), "
            f"{sizes.total() / total:.0%} of the text, {way_out}: {', '.join(names)}{rest}"
        ]


def spans(text: bytes) -> list[tuple[int, int]]:
    """Return begin and end of each piece of such data in a text."""
    if not _has_long_run(text):
        return []
    pieces = _PATTERN.finditer(text)
    return [one.span() for one in pieces if one["sure"] or _is_random(one[0])]


def without(documents: Iterable[bytes]) -> Iterator[bytes]:
    """Yield documents without such data; those of which nothing else remains are left out.

    An example is left out if nothing remains of one of its answers.
    """
    for document in documents:
        if isinstance(document, Example):
            parts = list(map(_rest, document.pieces()))
            if all(answer.strip() for answer in parts[1::2]):
                yield Example(*parts)
        elif (rest := _rest(document)).strip():
            yield rest


def _rest(text: bytes) -> bytes:
    pieces, start = [], 0
    for begin, end in spans(text):
        pieces.append(text[start:begin])
        start = end
    return b"".join([*pieces, text[start:]]) if pieces else text


def _has_long_run(text: bytes) -> bool:
    """Whether six blocks of eight bytes in a row are base64, and none repeats one character.

    60 random characters in a row always are. It takes a hundredth of the time of the search.
    """
    content = np.frombuffer(text[: len(text) // 8 * 8], np.uint8)
    values = content.view(np.uint64)
    is_ruler = values == (values & np.uint64(0xFF)) * _EIGHT
    blocks = (_IS_LETTER[content].view(np.uint64) == _EIGHT) & ~is_ruler
    for _ in range(5):
        blocks = blocks[1:] & blocks[:-1]
    return bool(blocks.any())


def _is_random(piece: bytes) -> bool:
    letters = np.frombuffer(_OTHERS.sub(b"", piece).removeprefix(b"0x"), np.uint8)
    counts = np.bincount(letters, minlength=256)
    shares = counts[counts > 0] / len(letters)
    bits = float(-(shares * np.log2(shares)).sum())
    digits, capitals, small = counts[48:58].sum(), counts[65:91].sum(), counts[97:123].sum()
    for first in (ord("a"), ord("A")):
        in_hex = digits + counts[first : first + 6].sum()
        if in_hex == len(letters) and 0 < digits < in_hex:
            return bits >= _HEX_BITS
    plus, slash, minus, underscore = counts[list(b"+/-_")]
    of_one_kind = not (plus + slash and minus + underscore)  # a path of a URL has both
    return of_one_kind and bool(digits and capitals and small) and bits >= _BASE64_BITS
