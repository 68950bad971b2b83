"""The validation set: files predefined by their names (`split` chooses other text), and batches.

Every evaluation uses the same sequences, in the same order, in batches of the same shape, and so
does the n-gram baseline.
"""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json
from mlxhog.base.durable import replace_file
from mlxhog.baselines import ngram
from mlxhog.data import conversations, textfiles
from mlxhog.data.batch import IGNORED, Batch, padded
from mlxhog.data.batches import Order
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import DataError, EnvironmentLacks

ROWS = 16  # most sequences in one batch
BATCH_FLOPS = 1e11  # most work in a batch of several sequences; a batch cannot be interrupted
SUBSET_BYTES = 65_536
"""Size of the fixed validation subset; `--val-subset-tokens` sets another, and large models get
less (`training.plan.validation_subset.choose_bytes`, once per run; the checkpoint stores it)."""
NGRAM_CONTEXT = 7  # bytes of context of the n-gram baseline
NGRAM_SAMPLE, _NGRAM_RUN = 1 << 24, 1 << 16  # maximum tokens that it counts, and tokens in a run
_NGRAM_BYTES, _NGRAM_TOKEN_BYTES, _NGRAM_TOKEN_S = 32 << 20, 12, 2.5e-7  # about, of one core
_SCORE_FILE, _SCORE_FORMAT = "counts.json", "Kneser-Ney"
_DOCUMENTS = 16  # minimum documents of a subset, if the text has as many
_BEGINNINGS, _PROMPT_TOKENS = 64, 256
"""Documents from which the prompt of the samples is chosen, and its maximum tokens."""
_FIRST_WORDS = re.compile(r"^\W*(\w.{0,27}\w(?!\w)|\w{1,24})", re.MULTILINE)

_KINDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(
        "valid validation val dev eval heldout held-out held_out holdout".split(), "val"
    ),
    "test": "test",
}
_NAME = re.compile(
    rf"({'|'.join(_KINDS)})"
    r"(?:(?:[-_ ]?(?:set|data|split))?(?:[-_. ]?\d+(?:[-_]of[-_]\d+)?)?|[-_.].*-\d+-of-\d+)"
)
"""A name without suffixes, perhaps with the number of a shard."""
_WORD = re.compile(rf"(?<![a-z0-9])({'|'.join(_KINDS)})(?![a-z])")


def beginning(file: TokenFile, tokenizer: Tokenizer) -> tuple[str, str]:
    """Return the kind of a validation set, and a prompt from one of its documents, for samples.

    The prompt is a conversation up to its first answer to a user, an example's prompt, or a text's
    start.
    """
    kind, prompt = "plain text", "The"
    for number, first in enumerate(file.starts[:-1][:_BEGINNINGS].astype(np.int64).tolist()):
        ids = file.ids(first, first + _PROMPT_TOKENS).astype(np.int32)
        if ids[0] != file.bos:  # a later answer of a conversation
            continue
        ids = ids[: 1 + np.argmax(ends)] if (ends := ids[1:] == file.bos).any() else ids
        asked = 0 if file.prompts is None else int(file.prompts[number])
        text = tokenizer.decode(ids).decode(errors="ignore")
        if (context := conversations.context(text)) is not None:
            kind, prompt = "conversations", context or "User: Hello\nAssistant:"
            is_found = bool(context)
        elif asked:
            kind, is_found = "prompts and answers", asked < len(ids)
            prompt = tokenizer.decode(ids[: asked + 1]).decode(errors="ignore")
        else:
            start = _FIRST_WORDS.search(text)
            prompt, is_found = start[1] if start else prompt, bool(start)
        if is_found:
            break
    return kind, prompt


def by_name(files: Sequence[Path], folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Divide files into training, validation and test text by their names.

    Names of files count in the folder itself, and beside training text also in subfolders; so do
    names of subfolders. A part of a name counts beside the same name with train in its place:
    `wiki.valid.tokens` beside `wiki.train.tokens`. Source code is always training text.

    Without validation text the test text is used. Other files beside records of training text are
    in no list. If the names leave no training text, all files are.
    """
    every = set(files)
    named = {path: _named(path, folder, every) for path in files}
    beside = {place.parent for place, kind in named.values() if kind == "train"}
    kinds = defaultdict[str, list[Path]](list)
    for path, (place, kind) in named.items():
        counts = place.parent in beside or place == folder / path.name
        kinds[kind if counts else ""].append(path)
    train, validation, test = (kinds[kind] for kind in ("train", "val", "test"))
    if not validation:
        validation, test = test, []
    if len(validation) + len(test) == len(files):
        return list(files), [], []
    records = [path for path in train if textfiles.kind(path) in textfiles.RECORD_SUFFIXES]
    return records or sorted([*train, *kinds[""]]), validation, test


def _named(path: Path, folder: Path, files: Collection[Path]) -> tuple[Path, str]:
    """Return the file or its folder whose name says the kind, and the kind."""
    places = [path, *path.parents]
    if textfiles.kind(path) in textfiles.SOURCE_CODE:
        return path, ""
    for place in places[: places.index(folder)]:
        name = Path(place.name.lower())
        stem = Path(name.stem if name.suffix in textfiles.PACKED_SUFFIXES else name).stem
        if match := _NAME.fullmatch(stem):
            return place, _KINDS[match[1]]
    for word in _WORD.finditer(path.name):
        train = f"{path.name[: word.start()]}train{path.name[word.end() :]}"
        if path.parent == folder and _KINDS[word[1]] != "train" and folder / train in files:
            return path, _KINDS[word[1]]
    return path, ""


def rows_of_batch(parameters: int, seq_len: int) -> int:
    """Return the number of sequences in a batch of an evaluation, for a model of this size."""
    rows = ROWS
    while rows > 1 and 2.0 * parameters * seq_len * rows > BATCH_FLOPS:
        rows //= 2
    return rows


def n_batches(
    file: TokenFile, *, seq_len: int, batch_size: int, val_subset_tokens: int | None = None
) -> int:
    """Return the number of batches that `batches` yields."""
    return -(-len(_chosen(file, seq_len, val_subset_tokens)) // batch_size)


def batches(
    file: TokenFile,
    *,
    seq_len: int,
    batch_size: int,
    val_subset_tokens: int | None = None,
    first: int = 0,
    count: int | None = None,
) -> Iterator[Batch]:
    """Yield the validation text as batches of exactly (batch_size, seq_len).

    Document separators and padding have the label `IGNORED`. Over the whole file the sum of the
    batches' `n_bytes` is that of the text. In a file with examples only completions count, in
    `ExampleRows` that are padded to the longest. `val_subset_tokens` labels, those of prompts
    included, rounded up to whole sequences, are spread evenly over the file; None is all of it.
    """
    indices = _chosen(file, seq_len, val_subset_tokens)
    stop = len(indices) if count is None else min(len(indices), (first + count) * batch_size)
    table = file.rows(seq_len)
    width = seq_len if table is None else padded(int(table.length.max()))
    for start in range(first * batch_size, stop, batch_size):
        chosen = indices[start : start + batch_size]
        x = np.full((batch_size, width), file.bos, np.int32)
        y = np.full((batch_size, width), IGNORED, np.int32)
        x[: len(chosen)], y[: len(chosen)] = file.read(chosen, seq_len, width)
        if table is None:
            x[y == IGNORED] = file.bos  # behind the text
        y[y == file.bos] = IGNORED
        yield Batch(x, y, file.text_bytes(y))


def _chosen(file: TokenFile, seq_len: int, val_subset_tokens: int | None) -> NDArray[np.int64]:
    """Return the sequences to evaluate; the last may be shorter than seq_len."""
    table, length = file.rows(seq_len), float(seq_len)
    n = total = -(-(file.n_tokens - 1) // seq_len)
    if table is not None:
        n = total = len(table)
        length = float(table.length.mean())
    if val_subset_tokens is not None:
        n = min(total, max(1, math.ceil(val_subset_tokens / length)))
    return np.arange(n, dtype=np.int64) * total // n


def n_labels(file: TokenFile, seq_len: int, val_subset_tokens: int | None) -> int:
    """Return the number of labels in `batches`, prompts and separators included."""
    chosen, table = _chosen(file, seq_len, val_subset_tokens), file.rows(seq_len)
    if table is not None:
        return int(table.length[chosen].sum())
    return min(file.n_tokens - 1, len(chosen) * seq_len)


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Return a summed cross entropy in bits per byte, comparable between tokenizers.

    `nats` is the sum over the labels of `batches`, `n_bytes` the sum of their bytes of text.
    """
    return nats / (math.log(2) * n_bytes)


# -- the fixed validation subset ------------------------------------------------------------------


def subset(file: TokenFile, n_bytes: int) -> TokenFile:
    """Return the validation subset of about `n_bytes` bytes; the file itself if it has no more.

    Bits per byte of two texts cannot be compared: documents differ by more than a minute of
    training changes. So all evaluations of all runs on the same data use the same text:

    - The subset depends only on the validation documents and `n_bytes`; larger ones contain smaller
      ones.
    - It has the beginnings of documents in one random order, each at most a sixteenth of the size,
      and if that is too little text, longer beginnings of all documents.
    - Examples and conversations are whole: a completion without its end is another task. Two
      tokenizers cut a document at the same byte, except for part of a token.
    """
    n_bytes = _DOCUMENTS * -(-n_bytes // _DOCUMENTS)  # a multiple, so that subsets are nested
    if n_bytes >= file.header["bytes"]:
        return file
    n = file.header["documents"]
    heads = np.arange(n) if file.prompts is None else np.flatnonzero(~file.continues())
    order = heads[Order(len(heads), "held-out", 0).at(0, 0, len(heads))]
    ends = dict(zip(heads.tolist(), [*heads[1:].tolist(), n], strict=True))
    depth, missing = n_bytes // _DOCUMENTS, n_bytes
    chosen: dict[int, int] = {}
    for head in order.tolist():
        for document in range(head, ends[head]):  # several of a conversation
            chosen[document], text = _beginning(file, document, min(depth, missing))
            missing -= text
        if missing <= 0:
            return _beginnings(file, chosen)
    if file.prompts is not None:
        return file
    lengths = np.array([_beginning(file, d, n_bytes)[1] for d in order.tolist()], np.int64)
    for document, depth in zip(order.tolist(), _depths(lengths, n_bytes).tolist(), strict=True):
        chosen[document], _ = _beginning(file, document, depth)
    return _beginnings(file, chosen)


def subset_name(corpus_sha256: str, rule: str, n_bytes: int | None) -> str:
    """Return the name of a validation subset, the same for the same text; None is all of it."""
    size = "all" if n_bytes is None else str(n_bytes)
    return f"{corpus_sha256[:16]} {rule} {size}"


def _beginning(file: TokenFile, document: int, n_bytes: int) -> tuple[int, int]:
    """Return tokens, with BOS, and bytes of a document's beginning of at most `n_bytes`.

    It has at least one token of text; an example is whole. It counts as `n_bytes`, although its
    last token may end before, so that every tokenizer gets the same documents.
    """
    begin, end = (int(place) for place in file.starts[document : document + 2])
    if file.prompts is not None:
        ids = file.ids(begin, end)
        return end - begin, int(file.byte_lengths[ids[1:]].sum())
    ids = file.ids(begin + 1, min(end, begin + 1 + n_bytes))
    ends = np.cumsum(file.byte_lengths[ids])
    n = max(int(np.searchsorted(ends, n_bytes, side="right")), min(1, len(ids)))
    is_whole = 1 + n == end - begin
    return 1 + n, int(ends[-1] if n else 0) if is_whole else n_bytes


def _depths(lengths: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Return bytes of each document for a total: equally many, or all of a shorter one.

    >>> _depths(np.array([3, 100, 1, 100]), 25).tolist()
    [3, 11, 1, 10]
    """
    total = min(total, int(lengths.sum()))  # a tokenizer may shorten the text
    ascending = np.sort(lengths)
    others = len(lengths) - np.arange(len(lengths))
    before = np.concatenate([[0], np.cumsum(ascending)[:-1]])
    fits = (total - before) // others  # if all shorter documents are used whole
    depth = int(fits[np.argmax(ascending >= fits)])
    depths = np.minimum(lengths, depth)
    longer = np.flatnonzero(lengths > depth)
    depths[longer[: total - int(depths.sum())]] += 1
    return depths


def _beginnings(file: TokenFile, chosen: dict[int, int]) -> TokenFile:
    """Return a token file of the first tokens of each chosen document, in the file's order."""
    documents = np.array(sorted(chosen), np.int64)
    counts = np.array([chosen[document] for document in documents.tolist()], np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    begins = file.starts[documents].astype(np.int64)
    ends = (begins + counts).tolist()
    tokens = np.concatenate(
        [file.ids(*places) for places in zip(begins.tolist(), ends, strict=True)]
    )
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


# -- the n-gram baseline --------------------------------------------------------------------------


def ngram_probabilities(
    file: TokenFile, ids: NDArray[np.int32], check: Callable[[], None] = lambda: None
) -> NDArray[np.float64]:
    """Return the probability of each token under the n-grams of a training text, (n,).

    A context is the ids that span 7 bytes on average: 7 bytes, or 2 to 3 ids of a BPE. Of a text
    with more than `NGRAM_SAMPLE` tokens, evenly spaced runs are counted. `check` is called before
    each block, and may raise to end the count.

    Raises:
        DataError: the counted text is shorter than a context, or the file is damaged.
    """
    text_tokens = file.n_tokens - file.header["documents"]
    spanning = math.ceil(NGRAM_CONTEXT * text_tokens / max(1, file.header["bytes"]))
    orders = min(max(spanning, 1), 63)  # a key of 64 bits has room for no more
    if file.n_tokens <= orders:
        raise DataError(
            f"{file.path} has {file.n_tokens} tokens, too few to count what follows {orders}"
        )
    counted = file.sampled(NGRAM_SAMPLE, _NGRAM_RUN)
    file.check_known(counted)
    run = _NGRAM_RUN if file.n_tokens > NGRAM_SAMPLE else file.n_tokens
    return ngram.probabilities(
        counted, ids, n_ids=file.header["vocab"], orders=orders, run=run, check=check
    )


def ngram_cost(file: TokenFile) -> tuple[int, float]:
    """Estimate bytes of memory and seconds of a core for counting a text."""
    counted = min(file.n_tokens, NGRAM_SAMPLE) if file.prompts is None else 0
    return bool(counted) * _NGRAM_BYTES + _NGRAM_TOKEN_BYTES * counted, _NGRAM_TOKEN_S * counted


def ngram_score(
    train: TokenFile, val: TokenFile, asked_bytes: int, check: Callable[[], None] = lambda: None
) -> float | None:
    """Return the bits per byte of the n-gram baseline on the validation subset.

    It is stored beside the validation text; `check` as in `ngram_probabilities`. Prompts and
    completions, which are not plain text, have none.

    Raises:
        DataError: a token file is damaged, or the training text is shorter than a context.
    """
    text, val_part = train, subset(val, asked_bytes)
    if text.prompts is not None or val_part.prompts is not None or not val_part.header["bytes"]:
        return None
    of = {"train": text.digest, "validation": val_part.digest, "format": _SCORE_FORMAT}
    path = val.path.with_name(_SCORE_FILE)
    with suppress(OSError, ValueError, KeyError, TypeError):  # not computed yet, or damaged
        record = plain_json.read(path)
        if record["of"] == of:
            return float(record["bits"])
    ids = np.asarray(val_part.tokens, np.int32)
    places = 1 + np.flatnonzero(ids[1:] != val_part.bos)
    nats = -np.log(ngram_probabilities(text, ids, check)[places]).sum()
    bits = float(nats / (math.log(2) * val_part.text_bytes(ids[places])))
    with suppress(OSError, EnvironmentLacks):  # another user's directory, or a full disk
        replace_file(path, json.dumps({"of": of, "bits": bits}).encode())
        path.chmod(0o600)
    return bits
