"""Which text is held out from training, decided once, when a corpus is prepared.

every-12th    documents 5, 17, 29, ...; a corpus of fewer than six documents falls back to
tail          the last 8 % of every document
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from mlxhog.errors import DataError

RULES = ("every-12th", "tail")
_EVERY, _OFFSET = 12, 5
_TAIL = 0.08


def rule_for(val: str, n_documents: int) -> str:
    """Return the rule that will hold for a corpus of `n_documents`.

    Raises:
        DataError: `val` is not one of `RULES`.
    """
    if val not in RULES:
        near = difflib.get_close_matches(val, RULES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(RULES)}"
        raise DataError(f"no held-out rule {val!r}; {hint}")
    return "tail" if n_documents <= _OFFSET else val


def split(documents: Iterable[bytes], rule: str) -> Iterator[tuple[bool, bytes]]:
    """Yield (held out, text) pieces of the documents, in their order, each byte in one piece."""
    for i, document in enumerate(documents):
        if rule == "tail":
            cut = _cut(document)
            yield from ((held, part) for held, part in _halves(document, cut) if part)
        else:
            yield i % _EVERY == _OFFSET, document


def _halves(document: bytes, cut: int) -> tuple[tuple[bool, bytes], tuple[bool, bytes]]:
    return (False, document[:cut]), (True, document[cut:])


def _cut(document: bytes) -> int:
    """Return where the tail begins: after a space or line end near 92 %, inside no character."""
    cut = len(document) - int(_TAIL * len(document))
    spaces = (document.find(space, cut, cut + 256) for space in (b" ", b"\n"))
    after_space = min((at + 1 for at in spaces if at >= 0), default=cut)
    while after_space < len(document) and document[after_space] & 0xC0 == 0x80:
        after_space += 1
    return after_space
