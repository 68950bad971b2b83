"""Whether a run is scored on text that the runs before it, whose weights it has, trained on.

`PROBES` pieces of the held-out text stand for all of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.run import run_of
from mlxhog.config.config import train_config
from mlxhog.data.prepare import Prepared, prepare
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import MlxhogError

PROBES, PROBE_BYTES = 32, 256
LEAST_SEEN = 0.05
"""Share of the pieces from which on a note is given; boilerplate stands in many texts."""
MOST_ORIGINS = 8
MOST_SEARCHED = 64_000_000
"""Tokens of the largest training text that is searched, in about two seconds."""
SEARCHED_TOGETHER = 1 << 22


def seen_before(origin: str, data: Prepared) -> tuple[str, str]:
    """Search the held-out text of a run in the training text of the runs before it.

    Returns:
        A note on a score that is too good, and one if this could not be checked; "" for none.
    """
    val, names = TokenFile.open(data.val), list[str]()
    pieces = _pieces(val, data.tokenizer)
    seen, unknown = np.zeros(len(pieces), bool), ""
    before_it: str | None = origin
    while before_it is not None and len(names) < MOST_ORIGINS:
        path, before_it = Path(before_it).resolve(), None
        if (run := run_of(path)) is None:
            break
        names.append(run.name)
        try:
            options = train_config([run.options(data="")])
            before_it = options.init_from
            own = manifest.read(path)["state"].get("held_out_sha256")
            if own == val.digest:
                continue  # it held out the same text
            options = train_config([run.options()])
            before = prepare(
                options.data,
                tokenizer=options.tokenizer,
                text_key=options.text_key,
                loss_on=options.loss_on,
                skip_machine_data=options.skip_machine_data,
                val=options.val,
            )
            train = TokenFile.open(before.train)
        except MlxhogError as error:
            unknown = f"not checked whether {run.name} trained on the held-out text: {error}"
            continue
        if train.n_tokens > MOST_SEARCHED:
            unknown = f"not checked whether {run.name} trained on the held-out text: it is large"
        elif (before.corpus_sha256, before.rule) != (data.corpus_sha256, data.rule):
            stands = [_stands_in(train, before.tokenizer, piece) for piece in pieces]
            seen |= np.array(stands, bool)
    share = float(seen.mean()) if len(pieces) else 0.0
    if share < LEAST_SEEN:
        return "", unknown
    return (
        f"{share:.0%} of the held-out text is training text of {' or '.join(names)}, whose weights "
        "this began with: it is no score of new text",
        unknown,
    )


def _pieces(file: TokenFile, tokenizer: Tokenizer) -> list[bytes]:
    """Up to `PROBES` pieces of the documents of a file, at even distances."""
    pieces = {}
    for place in np.linspace(0, file.n_tokens - 1, PROBES).astype(int).tolist():
        document = int(np.searchsorted(file.starts, place, side="right")) - 1
        begin, end = int(file.starts[document]) + 1, int(file.starts[document + 1])
        begin = max(begin, min(place, end - PROBE_BYTES))
        ids = file.tokens[begin : min(end, begin + PROBE_BYTES)].astype(np.int32)
        piece = tokenizer.decode(ids)[:PROBE_BYTES]
        if len(piece) >= PROBE_BYTES // 4:
            pieces[begin] = piece
    return list(pieces.values())


def _stands_in(file: TokenFile, tokenizer: Tokenizer, piece: bytes) -> bool:
    """Whether a token file has a piece of text, apart from the tokens at its ends."""
    ids = tokenizer.encode(piece)
    needle = np.asarray(ids[2:-2], file.tokens.dtype).tobytes()
    for begin in range(0, file.n_tokens, SEARCHED_TOGETHER):
        end = begin + SEARCHED_TOGETHER + len(ids)
        if len(ids) > 8 and needle in file.tokens[begin:end].tobytes():
            return True
    return False
