"""Examples of a prompt and its completion: what a model reads, and what it learns to write.

In a token file an example is a document, of which the file `NAME.prompts` says how many tokens are
its prompt. It is trained as a row of its own: BOS, prompt, completion, BOS. The loss is on the
completion and on the BOS that ends it; the prompt's labels are not counted.

Documents without a prompt may stand between examples; they are cut into rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class Example(bytes):
    """The text of a prompt and its completion, as one document.

    A line break stands between the two, as a part of the prompt, where neither brings white space.

    Attributes:
        prompt: bytes of the prompt.
    """

    prompt: int

    def __new__(cls, prompt: bytes, completion: bytes) -> Self:
        """Join the two."""
        apart = not prompt or prompt[-1:].isspace() or completion[:1].isspace()
        before = prompt if apart else prompt + b"\n"
        example = super().__new__(cls, before + completion)
        example.prompt = len(before)
        return example


@dataclass(frozen=True)
class Rows:
    """The rows of a token file with examples.

    A document of n tokens has n labels: those behind its first token, and the next BOS. Where they
    are more than `seq_len` the beginning of the prompt is left out, as little as is needed, and of
    a document that is still longer the rest becomes rows of its own, each behind the one before.

    Attributes:
        begin: place of the first token, (rows,).
        length: inputs, and labels, from 1 to `seq_len`, (rows,).
        context: the first labels, which are the prompt's and not counted, (rows,).
        document: whose row it is, (rows,).
        cut: examples whose prompt has lost its beginning.
        longest: labels of the longest document.
    """

    begin: Int64
    length: Int64
    context: Int64
    document: Int64
    cut: int
    longest: int

    @classmethod
    def of(
        cls, starts: NDArray[np.unsignedinteger[Any]], prompts: NDArray[Any], seq_len: int
    ) -> Self:
        """Lay out the rows of a file.

        Args:
            starts: place of each document, then the number of tokens, (documents + 1,).
            prompts: tokens of each document's prompt, (documents,).
            seq_len: most inputs of a row, at least 1.
        """
        bounds, context = starts.astype(np.int64), prompts.astype(np.int64)
        lengths = bounds[1:] - bounds[:-1]
        skipped = np.clip(lengths - seq_len, 0, context)
        rest = lengths - skipped
        counts = -(-rest // seq_len)
        document = np.repeat(np.arange(len(lengths)), counts)
        place = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        return cls(
            begin=(bounds[:-1] + skipped)[document] + place * seq_len,
            length=np.minimum(rest[document] - place * seq_len, seq_len),
            context=np.where(place == 0, (context - skipped)[document], 0),
            document=document,
            cut=int((skipped > 0).sum()),
            longest=int(lengths.max(initial=0)),
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.begin)

    def fill(
        self, tokens: NDArray[Any], bos: int, index: int, x: NDArray[Any], y: NDArray[Any]
    ) -> None:
        """Write one row into x and y, (width,) each; what lies behind it stays in y.

        Behind its end x repeats its last token, so that no other row of an embedding is looked up.
        """
        begin, n, context = (int(part[index]) for part in (self.begin, self.length, self.context))
        ids = tokens[begin : begin + n + 1].astype(np.int32)
        if len(ids) == n:  # the last document of the file
            ids = np.append(ids, np.int32(bos))
        x[:n], x[n:] = ids[:-1], ids[-2]
        y[context:n] = ids[context + 1 :]
