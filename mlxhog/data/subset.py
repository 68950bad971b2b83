"""The part of the held-out text that every number of a run is of.

Bits per byte of two texts cannot be compared: documents differ by more than a minute of training
changes. So all evaluations of a run, while it trains and at its end, are of the same text, and so
are those of other runs on the same data:

- The part depends on the held-out documents and its own size alone. The run's seed, its tokenizer,
  the length of its sequences, its speed and its workers change nothing.
- The documents stand in one random order. The part is their beginnings in that order, each of at
  most a sixteenth of the size, so that one long document is never all of it. Where that is too
  little text, all documents are taken, as deep as the size asks for.
- Parts of two sizes are nested: the larger one holds all of the smaller one.
- A part is 64 KiB (`BYTES`), whatever the budget, so a run of ten seconds and one of ten hours
  have numbers of the same text. `--eval-tokens` asks for another size, and models that are slow for
  their budget have less (`training.evaluation.choose_bytes`, once per run; a checkpoint keeps it).
  A text that is smaller is taken whole.

Of examples whole documents are taken: a completion without its end is another task. Two tokenizers
cut the beginning of a document at the same byte but for the rest of a token.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.batches import Order
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError

BYTES = 65_536
DOCUMENTS = 16  # fewest that a part is of, where there are as many


def of(file: TokenFile, n_bytes: int) -> TokenFile:
    """Return about `asked` bytes of a held-out token file; the file itself where it has no more.

    Args:
        file: all of the held-out text.
        n_bytes: of text, at least 1; those of prompts are among them.

    Raises:
        DataError: the file is damaged.
    """
    n_bytes = DOCUMENTS * -(-n_bytes // DOCUMENTS)  # parts are nested where depths are whole
    if n_bytes >= file.header["bytes"]:
        return file
    if (file.starts[1:] < file.starts[:-1]).any():
        raise DataError(
            f"{file.path.with_suffix('.idx')} is out of order; prepare the corpus again"
        )
    order = Order(file.header["documents"], "held-out", 0).at(0, 0, file.header["documents"])
    depth, missing = n_bytes // DOCUMENTS, n_bytes
    chosen: dict[int, int] = {}
    for document in order.tolist():
        chosen[document], text = _beginning(file, document, min(depth, missing))
        missing -= text
        if missing <= 0:
            return _cut(file, chosen)
    if file.prompts is not None:
        return file
    lengths = np.array([_beginning(file, d, n_bytes)[1] for d in order.tolist()], np.int64)
    for document, depth in zip(order.tolist(), _depths(lengths, n_bytes).tolist(), strict=True):
        chosen[document], _ = _beginning(file, document, depth)
    return _cut(file, chosen)


def name(corpus_sha256: str, rule: str, n_bytes: int | None) -> str:
    """Name a held-out text: two runs with the same name have numbers of the same text.

    Args:
        corpus_sha256: of the documents.
        rule: which of them are held out.
        n_bytes: that were asked for; None is all of it.
    """
    size = "all" if n_bytes is None else str(n_bytes)
    return f"{corpus_sha256[:16]} {rule} {size}"


def _beginning(file: TokenFile, document: int, n_bytes: int) -> tuple[int, int]:
    """Tokens, BOS included, and bytes of a document's beginning, of at most the asked bytes.

    One token of the text is always among them, and all of an example. A beginning counts as all of
    its bytes, though the rest of a token may be missing: every tokenizer takes the same documents.
    """
    begin, end = (int(place) for place in file.starts[document : document + 2])
    if file.prompts is not None:
        ids = file.tokens[begin + 1 : end]
        file.check_known(ids)
        return end - begin, int(file.byte_lengths[ids].sum())
    ids = file.tokens[begin + 1 : min(end, begin + 1 + n_bytes)]
    file.check_known(ids)
    ends = np.cumsum(file.byte_lengths[ids])
    n = max(int(np.searchsorted(ends, n_bytes, side="right")), min(1, len(ids)))
    is_whole = 1 + n == end - begin
    return 1 + n, int(ends[-1] if n else 0) if is_whole else n_bytes


def _depths(lengths: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """How deep each of these documents is taken so that all make up a total: equally deep.

    >>> _depths(np.array([3, 100, 1, 100]), 25).tolist()
    [3, 11, 1, 10]
    """
    ascending = np.sort(lengths)
    others = len(lengths) - np.arange(len(lengths))
    before = np.concatenate([[0], np.cumsum(ascending)[:-1]])
    fits = (total - before) // others  # if all shorter ones are taken whole
    depth = int(fits[np.argmax(ascending >= fits)])
    depths = np.minimum(lengths, depth)
    longer = np.flatnonzero(lengths > depth)
    depths[longer[: total - int(depths.sum())]] += 1
    return depths


def _cut(file: TokenFile, chosen: dict[int, int]) -> TokenFile:
    """The token file of the first tokens of documents, in the order of the file."""
    documents = np.array(sorted(chosen), np.int64)
    counts = np.array([chosen[document] for document in documents.tolist()], np.int64)
    begins = file.starts[documents].astype(np.int64).tolist()
    ranges = zip(begins, counts.tolist(), strict=True)
    tokens = np.concatenate([file.tokens[begin : begin + n] for begin, n in ranges])
    prompts = None if file.prompts is None else np.asarray(file.prompts[documents])
    digest = hashlib.sha256(tokens.tobytes())
    if prompts is not None:
        digest.update(prompts.tobytes())
    header = {
        **file.header,
        "tokens": len(tokens),
        "documents": len(documents),
        "bytes": int(file.byte_lengths[tokens].sum()),
        "examples": 0 if prompts is None else int((prompts > 0).sum()),
        "sha256": digest.hexdigest(),
    }
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    return TokenFile(file.path, tokens, starts, file.byte_lengths, header, prompts)
