"""Text from tokens as they come, up to a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import ConfigError


class TextStream:
    """Turns one answer's tokens into text that will not have to be taken back.

    A character whose bytes come in several tokens is held back until its last one; bytes that are
    not UTF-8 become U+FFFD. What may be the beginning of a stop string is held back until it is
    one, and then dropped with everything after it, or is not. The pieces, joined, are the decoded
    text up to the first stop string.

    Args:
        tokenizer: of the model.
        stop: texts that end the answer and are no part of it.

    Raises:
        ConfigError: a stop string is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise ConfigError("a stop string is empty, which would end every answer; leave it out")
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def read(self, token: int) -> str:
        """Return the text that this token makes certain; sets `stopped` at a stop string."""
        return self._certain(self._decoder.decode(self._tokenizer.decode([token])))

    def end(self) -> str:
        """Return what was held back, the answer being over."""
        text = self._certain(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _certain(self, piece: str) -> str:
        if self.stopped or not self._stop:
            return "" if self.stopped else piece
        text = self._held + piece
        ends = [at for at in map(text.find, self._stop) if at >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        certain = len(text) - max(_overlap(text, stop) for stop in self._stop)
        self._held = text[certain:]
        return text[:certain]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next(n for n in range(longest, -1, -1) if text.endswith(stop[:n]))
