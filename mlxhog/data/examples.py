"""Examples: a prompt and its completion, or a conversation; the model learns the answers only.

An example is cut into contexts and answers: context, answer, context, answer, ... The model reads
all of it. Each answer is a training row: BOS, everything before the answer, the answer, BOS. The
loss is on the answer and on the BOS that ends it; other labels are not counted.

In a token file each context with its answer is a document of its own, so a conversation is several
documents; only the first begins with BOS. The file `NAME.prompts` has the number of tokens of each
document's context, without the document's first token.

Documents without a prompt may be mixed with examples; they are cut into rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class Example(bytes):
    """The text of contexts and answers, as one document.

    If no white space separates a context from its answer, a line break is added to the context.

    Attributes:
        lengths: number of bytes of each context and answer, in turns.
    """

    lengths: tuple[int, ...]

    def __new__(cls, *pieces: bytes) -> Self:
        """Join contexts and answers, in turns; a last context without an answer is not learned."""
        parts = list(pieces)
        for k, (context, answer) in enumerate(zip(pieces[::2], pieces[1::2], strict=False)):
            if context and not context[-1:].isspace() and not answer[:1].isspace():
                parts[2 * k] += b"\n"
        example = super().__new__(cls, b"".join(parts))
        example.lengths = tuple(map(len, parts))
        return example

    def turns(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield each context with its answer."""
        ends = [0, *itertools.accumulate(self.lengths)]
        for begin, cut, end in zip(ends[::2], ends[1::2], ends[2::2], strict=False):
            yield self[begin:cut], self[cut:end]


@dataclass(frozen=True)
class ExampleRows:
    """The rows of a token file with examples.

    A text is a document with the documents before it that belong to the same conversation. A text
    of n tokens has n labels: the tokens behind its first, and BOS. If these are more than
    `seq_len`, the beginning of what is not counted is left out, as few tokens as possible. A text
    that is still too long is cut into several consecutive rows.

    Attributes:
        begin: position of the row's first token, (rows,).
        length: number of inputs and of labels, from 1 to `seq_len`, (rows,).
        context: number of first labels that belong to the prompt and are not counted, (rows,).
        ends: whether the row's last label is the BOS that ends its document, (rows,).
        document: number of the row's document, (rows,).
        cut: number of answers of which the text before has lost its beginning.
        longest: number of labels of the longest text.
    """

    begin: Int64
    length: Int64
    context: Int64
    ends: NDArray[np.bool_]
    document: Int64
    cut: int
    longest: int

    @classmethod
    def of(
        cls,
        starts: NDArray[np.unsignedinteger[Any]],
        prompts: NDArray[Any],
        continues: NDArray[np.bool_],
        seq_len: int,
    ) -> Self:
        """Lay out the rows of a file.

        Args:
            starts: position of each document, then the number of tokens, (documents + 1,).
            prompts: number of tokens of each document's context, behind its first, (documents,).
            continues: whether a document belongs to the conversation before it, (documents,).
            seq_len: most inputs of a row, at least 1.
        """
        bounds = starts.astype(np.int64)
        first = np.maximum.accumulate(np.where(continues, 0, np.arange(len(continues))))
        begins = bounds[:-1][first]
        context = bounds[:-1] - begins + prompts.astype(np.int64)
        lengths = bounds[1:] - begins
        skipped = np.clip(lengths - seq_len, 0, context)
        rest = lengths - skipped
        counts = -(-rest // seq_len)
        document = np.repeat(np.arange(len(lengths)), counts)
        place = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        return cls(
            begin=(begins + skipped)[document] + place * seq_len,
            length=np.minimum(rest[document] - place * seq_len, seq_len),
            context=np.where(place == 0, (context - skipped)[document], 0),
            ends=place == counts[document] - 1,
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
        """Write one row into x and y, (width,) each; y stays unchanged behind the row's end.

        Behind the row's end x repeats the last token, so no other row of the embedding is read.
        """
        begin, n, context = (int(part[index]) for part in (self.begin, self.length, self.context))
        ids = tokens[begin : begin + n + 1].astype(np.int32)
        if self.ends[index]:
            ids = np.append(ids[:n], np.int32(bos))
        x[:n], x[n:] = ids[:-1], ids[-2]
        y[context:n] = ids[context + 1 :]
