"""Decode tokens to text one by one, up to a stop string."""

import codecs
from collections.abc import Sequence

from mlxhog.data.tokenizers import Tokenizer


class TextStream:
    """Decodes one answer's tokens and returns text only when it is final.

    If a character's bytes are in several tokens, it is returned after the last of them; bytes that
    are not UTF-8 become U+FFFD. A possible prefix of a stop string is held back; a stop string and
    all text after it are dropped. The pieces, joined, are the decoded text up to the first stop
    string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._undecided = ""

    def read(self, token: int) -> str:
        """Return the text that this token makes final; sets `stopped` at a stop string."""
        return self._final(self._decoder.decode(self._tokenizer.decode([token])))

    def end(self) -> str:
        """Return the text held back, at the end of the answer."""
        text = self._final(self._decoder.decode(b"", final=True)) + self._undecided
        self._undecided = ""
        return text

    def _final(self, piece: str) -> str:
        if self.stopped or not self._stop:
            return "" if self.stopped else piece
        text = self._undecided + piece
        ends = [at for at in map(text.find, self._stop) if at >= 0]
        if ends:
            self.stopped, self._undecided = True, ""
            return text[: min(ends)]
        n_final = len(text) - max(_overlap(text, stop) for stop in self._stop)
        self._undecided = text[n_final:]
        return text[:n_final]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next(n for n in range(longest, -1, -1) if text.endswith(stop[:n]))
