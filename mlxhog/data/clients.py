"""Divide a text among clients, as in federated learning, with unequal shares of its classes.

The documents of a corpus have classes, and a Dirichlet distribution gives each of K clients a share
of each class (Hsu et al. 2019, arXiv:1909.06335). With alpha = infinity the shares are equal, with
1 uneven; with 0.1 most classes belong to one client, with 0 all do. Every document belongs to
exactly one client. The classes of `sotu` are parties; of another corpus ten parts, in the order of
its documents.

A client's batches are of its own text, in its own order. With P workers, worker p trains clients p,
p + P, p + 2 P and so on in turn, so the division does not depend on P.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxhog.base import plain_json, reading, typed
from mlxhog.base.durable import replace_file
from mlxhog.data import split
from mlxhog.data.batch import Batch
from mlxhog.data.batches import Batches
from mlxhog.data.sotu import SOTU, read_sotu
from mlxhog.data.tokens import TokenFile
from mlxhog.errors import ConfigError, DataError

PARTS = 10
FILE = "split.json"
DRAWS = 100  # most draws of the shares, until every client has enough text


@dataclass(frozen=True)
class Division:
    """Ascending document numbers, and the number of tokens, of every client."""

    documents: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]

    def __str__(self) -> str:
        counts = ", ".join(f"{n:,}" for n in self.tokens)
        return f"text divided among {len(self.tokens)} clients: {counts} tokens"


def classes(source: str, rule: str, n_documents: int) -> list[str]:
    """Return the class of every training document, in the order of the token file."""
    if source != SOTU:
        return [f"part {PARTS * k // n_documents + 1}" for k in range(n_documents)]
    labels = [one.party for one in read_sotu()]
    if rule != split.PREDEFINED:
        return labels
    return [label for k, label in enumerate(labels) if not split.is_predefined(k)]


def divide(
    labels: Sequence[str],
    tokens: Sequence[int],
    *,
    clients: int,
    alpha: float,
    seed: int,
    min_tokens: int,
) -> Division:
    """Divide documents among clients by their classes.

    `labels` and `tokens` are those of each document; `alpha` is from 0 to infinity.

    Raises:
        DataError: some client had too little text in every draw.
    """
    names, of = np.unique(labels, return_inverse=True)
    owner, n_draws = np.empty(len(labels), np.int64), 1 if alpha in (0, np.inf) else DRAWS
    for attempt in range(n_draws):
        for index in range(len(names)):
            own = np.flatnonzero(of == index)
            exact = _shares(clients, alpha, [seed, index, attempt]) * len(own)
            counts = np.floor(exact).astype(int)  # by largest remainder
            counts[np.argsort(counts - exact, kind="stable")[: len(own) - counts.sum()]] += 1
            owner[own] = np.repeat(np.arange(clients), counts)
        totals = np.bincount(owner, tokens, clients).astype(int).tolist()
        if min(totals) >= min_tokens:
            documents = (np.flatnonzero(owner == client).tolist() for client in range(clients))
            return Division(tuple(map(tuple, documents)), tuple(totals))
    raise DataError(
        f"{len(labels)} documents of {len(names)} classes leave one of {clients} clients with "
        f"{min(totals):,} tokens, fewer than the {min_tokens:,} of one batch; use fewer "
        "--clients, or a larger --split-alpha"
    )


def _shares(clients: int, alpha: float, seed: list[int]) -> NDArray[np.float64]:
    """Return each client's share of a class, whose number is the second of the seed."""
    if alpha == np.inf:
        return np.full(clients, 1.0 / clients)
    one, rng = seed[1] % clients, np.random.Generator(np.random.PCG64(seed))
    if alpha:
        drawn = rng.dirichlet(np.full(clients, alpha))
        if np.isfinite(drawn).all():
            return drawn
        one = int(rng.integers(clients))  # a tiny alpha: all shares rounded to 0, NumPy returns NaN
    return np.asarray(np.eye(clients)[one])


def divided(
    train: TokenFile, source: str, rule: str, *, workers: int, stored: Path | None, **how: Any
) -> Division:
    """Return the division of a run's text; a resumed run keeps its division.

    `stored` is the folder of a run that is resumed; `how` are the other arguments of `divide`.

    Raises:
        ConfigError: a worker would be without a client.
        DataError: the text has too few tokens for this number of clients; or the stored division
            is of another text or number of clients.
    """
    clients = how["clients"]
    if clients < workers:
        raise ConfigError(
            f"clients is {clients}, so {workers - clients} of {workers} workers would have no "
            f"text; use at least {workers} clients, or fewer workers"
        )
    tokens = np.diff(train.starts.astype(np.int64)).tolist()
    path = None if stored is None else stored / FILE
    if path is None or not path.exists():
        return divide(classes(source, rule, len(tokens)), tokens, **how)
    try:
        record = dict(plain_json.read(path, strict=False, most=reading.MAX_BYTES))
        division = typed.read(Division, record)
    except (OSError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is damaged: {error}; put back a copy of it, or begin a new run"
        ) from error
    n, same_text = len(division.tokens), sum(division.tokens) == sum(tokens)
    if not same_text or n != clients:
        raise DataError(
            f"{path} divides {'this' if same_text else 'another'} text among {n} clients, but "
            f"clients is {clients}; resume with that text and --clients {n}"
        )
    return division


def write(division: Division, directory: Path) -> None:
    """Store the lists in a run's folder; another version of NumPy may draw other shares."""
    replace_file(directory / FILE, json.dumps(asdict(division)).encode())


class _Joined:
    """The tokens of some documents of a file, one document after the other, read by slices."""

    def __init__(self, file: TokenFile, documents: NDArray[np.int64]) -> None:
        starts = file.starts.astype(np.int64)
        self._file, self.ends = file, np.cumsum(starts[documents + 1] - starts[documents])
        self._shifts = starts[documents + 1] - self.ends  # from a place here to that in the file

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, span: slice) -> NDArray[np.unsignedinteger[Any]]:
        parts, first = list[NDArray[Any]](), span.start
        while first < span.stop:
            document = int(np.searchsorted(self.ends, first, side="right"))
            end, shift = min(span.stop, int(self.ends[document])), int(self._shifts[document])
            parts.append(self._file.ids(first + shift, end + shift))
            first = end
        return np.concatenate(parts)


def _text_of(file: TokenFile, client: int, own: NDArray[np.int64], seq_len: int) -> TokenFile:
    header = {**file.header, "sha256": f"{file.digest}|client {client}"}
    if (rows := file.rows(seq_len)) is not None:  # a row may have text of the documents before
        kept, part = np.isin(rows.document, own), replace(file, header=header)
        names = ("begin", "length", "context", "ends", "document")
        columns = {name: getattr(rows, name)[kept] for name in names}
        part._rows[seq_len] = replace(rows, **columns)
        return part
    tokens: Any = _Joined(file, own)
    return replace(
        file, tokens=tokens, starts=np.array([0, *tokens.ends], np.uint64), header=header
    )


class ClientBatches(Batches):
    """The batches of all clients: the tickets of client 0, then of client 1, and so on.

    Each client has its own epochs, whose `tickets` hold each of its sequences once. Each client has
    at least one of the `documents`.
    """

    def __init__(
        self, file: TokenFile, documents: Sequence[Sequence[int]], *, seq_len: int, **how: Any
    ) -> None:
        super().__init__(file, seq_len=seq_len, **how)
        texts = (
            _text_of(file, client, np.array(own, np.int64), seq_len)
            for client, own in enumerate(documents)
        )
        self._clients = [Batches(text, seq_len=seq_len, **how) for text in texts]
        self.tickets = tuple(one.n_tickets for one in self._clients)
        self._firsts = np.cumsum([0, *self.tickets]).tolist()

    @property
    def n_tickets(self) -> int:
        """Number of tickets of all clients."""
        return int(self._firsts[-1])

    def at(self, epoch: int, ticket: int) -> Batch:
        """Return the batch of one ticket; `epoch` counts the epochs of its client."""
        client = bisect_right(self._firsts, ticket) - 1
        seed = (self._seed << 32 | epoch) * self.n_tickets + ticket
        batch = self._clients[client].at(epoch, ticket - self._firsts[client])
        return replace(batch, seed=seed * self._batch_size)
