"""The part of the held-out text on which a run is evaluated.

Bits per byte of two texts cannot be compared: documents differ by more than a minute of training
changes. So all evaluations of all runs on the same data use the same text:

- The part depends only on the held-out documents and the size of the part.
- The documents are in one random order. The part consists of their beginnings in that order, each
  at most a sixteenth of the size, so it is never a single long document. If this is too little
  text, the part has the beginnings of all documents, as long as the size requires.
- Parts of two sizes are nested: the larger one contains the smaller one.
- The size is 64 KiB (`BYTES`) for every budget. `--eval-tokens` sets another size, and large models
  get less (`training.side_jobs.choose_bytes`, once per run; the checkpoint stores it). A smaller
  text is used as a whole.

Examples and conversations are used whole: a completion without its end is another task. Two
tokenizers cut the beginning of a document at the same byte, except for part of a token.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from mlxhog.data.batches import Order
from mlxhog.data.tokens import TokenFile

BYTES = 65_536
DOCUMENTS = 16  # fewest documents of a part, if the text has as many


def of(file: TokenFile, n_bytes: int) -> TokenFile:
    """Return about `n_bytes` bytes of a held-out token file; the file itself if it has no more."""
    n_bytes = DOCUMENTS * -(-n_bytes // DOCUMENTS)  # a multiple, so that parts are nested
    if n_bytes >= file.header["bytes"]:
        return file
    n = file.header["documents"]
    heads = np.arange(n) if file.prompts is None else np.flatnonzero(~file.continues())
    order = heads[Order(len(heads), "held-out", 0).at(0, 0, len(heads))]
    ends = dict(zip(heads.tolist(), [*heads[1:].tolist(), n], strict=True))
    depth, missing = n_bytes // DOCUMENTS, n_bytes
    chosen: dict[int, int] = {}
    for head in order.tolist():
        for document in range(head, ends[head]):  # several of a conversation
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
    """Name a held-out text: two runs with the same name are evaluated on the same text.

    `n_bytes` None is the whole text.
    """
    size = "all" if n_bytes is None else str(n_bytes)
    return f"{corpus_sha256[:16]} {rule} {size}"


def _beginning(file: TokenFile, document: int, n_bytes: int) -> tuple[int, int]:
    """Number of tokens, with BOS, and bytes of a document's beginning of at most `n_bytes`.

    It has at least one token of text, and always the whole of an example. It counts as `n_bytes`,
    although its last token may end before, so that every tokenizer gets the same documents.
    """
    begin, end = (int(place) for place in file.starts[document : document + 2])
    if file.prompts is not None:
        ids = file.tokens[begin:end]
        file.check_known(ids)
        return end - begin, int(file.byte_lengths[ids[1:]].sum())
    stop = min(end, begin + 1 + n_bytes)
    ids = file.tokens[begin + 1 : stop]
    file.check_known(ids)
    ends = np.cumsum(file.byte_lengths[ids])
    n = max(int(np.searchsorted(ends, n_bytes, side="right")), min(1, len(ids)))
    is_whole = 1 + n == end - begin
    return 1 + n, int(ends[-1] if n else 0) if is_whole else n_bytes


def _depths(lengths: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """How many bytes of each document make up a total: equally many, or all of a shorter one.

    >>> _depths(np.array([3, 100, 1, 100]), 25).tolist()
    [3, 11, 1, 10]
    """
    ascending = np.sort(lengths)
    others = len(lengths) - np.arange(len(lengths))
    before = np.concatenate([[0], np.cumsum(ascending)[:-1]])
    fits = (total - before) // others  # if all shorter documents are used whole
    depth = int(fits[np.argmax(ascending >= fits)])
    depths = np.minimum(lengths, depth)
    longer = np.flatnonzero(lengths > depth)
    depths[longer[: total - int(depths.sum())]] += 1
    return depths


def _cut(file: TokenFile, chosen: dict[int, int]) -> TokenFile:
    """A token file of the first tokens of each chosen document, in the order of the file."""
    documents = np.array(sorted(chosen), np.int64)
    counts = np.array([chosen[document] for document in documents.tolist()], np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    begins = file.starts[documents].astype(np.int64)
    places = np.arange(starts[-1]) + np.repeat(begins - starts[:-1], counts)
    tokens = file.tokens[places]
    prompts = None if file.prompts is None else np.asarray(file.prompts[documents])
    digest = hashlib.sha256(tokens.tobytes())
    if prompts is not None:
        digest.update(prompts.tobytes())
    header = {
        **file.header,
        "tokens": len(tokens),
        "documents": len(documents),
        "bytes": file.text_bytes(tokens),
        "decoded": int(file.byte_lengths[tokens].sum()),
        "examples": 0 if prompts is None else int((prompts > 0).sum()),
        "sha256": digest.hexdigest(),
    }
    starts = starts.astype(np.uint64)
    return TokenFile(file.path, tokens, starts, file.byte_lengths, header, prompts)
