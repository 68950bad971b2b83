"""Examples of a prompt and its completion: the model reads both and learns the completion.

In a token file an example is a document; the file `NAME.prompts` has the number of tokens of its
prompt. Each example is a training row: BOS, prompt, completion, BOS. The loss is on the completion
and on the BOS that ends it; the prompt's labels are not counted.

Documents without a prompt may be mixed with examples; they are cut into rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


class Example(bytes):
    """The text of a prompt and its completion, as one document.

    If no white space separates the two, a line break is added to the prompt.

    Attributes:
        prompt: number of bytes of the prompt.
    """

    prompt: int

    def __new__(cls, prompt: bytes, completion: bytes) -> Self:
        """Join prompt and completion."""
        apart = not prompt or prompt[-1:].isspace() or completion[:1].isspace()
        before = prompt if apart else prompt + b"\n"
        example = super().__new__(cls, before + completion)
        example.prompt = len(before)
        return example


@dataclass(frozen=True)
class ExampleRows:
    """The rows of a token file with examples.

    A document of n tokens has n labels: the tokens behind its first, and the next BOS. If these are
    more than `seq_len`, the beginning of the prompt is left out, as few tokens as possible. A
    document that is still too long is cut into several consecutive rows.

    Attributes:
        begin: position of the row's first token, (rows,).
        length: number of inputs and of labels, from 1 to `seq_len`, (rows,).
        context: number of first labels that belong to the prompt and are not counted, (rows,).
        document: number of the row's document, (rows,).
        cut: number of examples whose prompt has lost its beginning.
        longest: number of labels of the longest document.
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
            starts: position of each document, then the number of tokens, (documents + 1,).
            prompts: number of tokens of each document's prompt, (documents,).
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
        """Write one row into x and y, (width,) each; y stays unchanged behind the row's end.

        Behind the row's end x repeats the last token, so no other row of the embedding is read.
        """
        begin, n, context = (int(part[index]) for part in (self.begin, self.length, self.context))
        ids = tokens[begin : begin + n + 1].astype(np.int32)
        if len(ids) == n:  # the last document of the file
            ids = np.append(ids, np.int32(bos))
        x[:n], x[n:] = ids[:-1], ids[-2]
        y[context:n] = ids[context + 1 :]
