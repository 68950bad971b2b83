"""Rounds of local methods: the progress of each worker, and the batches of each.

In a round worker p takes K_p steps. Batches are assigned by number, in the order in which equally
fast workers would take them: the first steps of all by rank, then the second ones, and so on. Step
j of worker p in the round, both from 0, has the number

    base + sum over q of min(K_q, j) + number of q < p with K_q > j       base: all earlier rounds

so every number belongs to one step of one worker. With K steps for each of P workers it is
base + j P + p.

    segment       dtype  meaning
    copies.words  uint8  words of 64 bits (`control_words.py`)

    line of copies.words  word  meaning
                       0     0  meetings that rank 0 has decided on
                             1  steps of all workers before this call
                             2  tokens, likewise
                             3  version without the updates of the workers below
                             4  meetings before this call
                1 + rank     0  steps
                             1  tokens
                             2  updates
                             3  ended stages of meetings
                             4  steps at the beginning of the round
                             5  steps at its end
                             6  updates at its beginning
            1 + P + rank        journal
                 1 + 2 P  rank  steps of the next round, 16 to a line
              and then  client  batches of a client before the steps above, likewise

A worker writes its own lines, and rank 0 the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mlxhog.arena import Arena
from mlxhog.strategies.control_words import LINE, StepJournal, StepRecord, Words

NEVER: Final = 1 << 62
"""Steps of a round that has no end."""

SEGMENT: Final = "copies.words"
DECIDED, STEPS_BEFORE, TOKENS_BEFORE, VERSION_BASE, MEETINGS_BEFORE = range(5)
STEPS, TOKENS, UPDATES, STAGES, START, MARK, UPDATES_AT_START = range(7)
_KEPT: Final = {
    "steps": STEPS, "tokens": TOKENS, "updates": UPDATES, "starts": START, "marks": MARK,
    "updates_at_start": UPDATES_AT_START,
}  # fmt: skip
_PER_LINE: Final = LINE // 8


class Rounds:
    """The words above, for any number of processes at once."""

    def __init__(self, arena: Arena, workers: int) -> None:
        """Open them for `workers` workers."""
        self._arena, self._words = arena, Words(arena.segment(SEGMENT))
        self.workers = workers

    @staticmethod
    def segment(workers: int, clients: int) -> dict[str, tuple[str, int]]:
        """The segment of the table above."""
        lines = 1 + 2 * workers + -(-workers // _PER_LINE) + -(-clients // _PER_LINE)
        return {SEGMENT: ("uint8", LINE * lines)}

    def of_run(self, word: int) -> int:
        """A word of line 0, such as `DECIDED`."""
        return self._words.load(0, word)

    def set_of_run(self, word: int, value: int) -> None:
        """Set such a word."""
        self._words.store(0, word, value)

    def of(self, rank: int, word: int) -> int:
        """A word of a worker, such as `STEPS`."""
        return self._words.load(1 + rank, word)

    def set_of(self, rank: int, word: int, value: int) -> None:
        """Set such a word."""
        self._words.store(1 + rank, word, value)

    def of_all(self, word: int) -> list[int]:
        """Such a word of every worker."""
        return [self.of(rank, word) for rank in range(self.workers)]

    def journal(self, rank: int) -> StepJournal:
        """A worker's journal."""
        return StepJournal(self._words, 1 + self.workers + rank)

    # -- the batches of workers ------------------------------------------------------------------

    def before_next_step(self, rank: int) -> tuple[int, int]:
        """Numbers before a worker's next step j: those of earlier steps, those of step j."""
        starts = self.of_all(START)
        lengths = [mark - start for mark, start in zip(self.of_all(MARK), starts, strict=True)]
        j = self.of(rank, STEPS) - starts[rank]
        earlier = sum(starts) + sum(min(length, j) for length in lengths)
        return earlier, sum(length > j for length in lengths[:rank])

    def number(self, rank: int) -> int:
        """Number of the batch of a worker's next step in this round."""
        return sum(self.before_next_step(rank))

    def all_reached(self) -> bool:
        """Whether every worker has ended its round."""
        return all(self.at_mark(rank) for rank in range(self.workers))

    def at_mark(self, rank: int) -> bool:
        """Whether a worker has ended its round."""
        return self.of(rank, STEPS) >= self.of(rank, MARK)

    def within(self) -> bool:
        """Whether any worker has taken a step of the round."""
        return sum(self.of_all(STEPS)) > sum(self.of_all(START))

    def updates_in_round(self, rank: int) -> int:
        """Updates that a worker has made in the round."""
        return self.of(rank, UPDATES) - self.of(rank, UPDATES_AT_START)

    def version(self) -> int:
        """Updates of the run."""
        return self.of_run(VERSION_BASE) + sum(self.of_all(UPDATES))

    # -- the batches of clients ------------------------------------------------------------------

    def client(self, rank: int, clients: int) -> tuple[int, int]:
        """The client of a worker's next step, and the number of the client's batch."""
        own = range(rank, clients, self.workers)
        steps = self.of(rank, STEPS)
        client = own[steps % len(own)]
        return client, self._words.load(*self._client(client)) + steps // len(own)

    def batches_of(self, client: int, clients: int) -> int:
        """Batches of a client that have been taken."""
        return self._words.load(*self._client(client)) + self._batches_of_steps(client, clients)

    def set_batches_of(self, client: int, clients: int, batches: int) -> None:
        """Set that number, which includes the batches of the steps in the words."""
        self._words.store(*self._client(client), batches - self._batches_of_steps(client, clients))

    def _batches_of_steps(self, client: int, clients: int) -> int:
        """Batches of a client that the steps in the words took."""
        rank, place = client % self.workers, client // self.workers
        passes, rest = divmod(self.of(rank, STEPS), len(range(rank, clients, self.workers)))
        return passes + (place < rest)

    def _client(self, client: int) -> tuple[int, int]:
        line = 1 + 2 * self.workers + -(-self.workers // _PER_LINE)
        return line + client // _PER_LINE, client % _PER_LINE

    # -- changes of the words --------------------------------------------------------------------

    def take_in(self, rank: int, record: StepRecord) -> None:
        """Store the counts of a step's record; doing it twice changes nothing."""
        self._arena.workers.entry(rank + 1).opt_step = record.opt_step
        self.set_of(rank, UPDATES, record.version)
        self.set_of(rank, TOKENS, record.tokens)

    def set_next(self, steps: Sequence[int]) -> None:
        """Store the number of steps of each worker in the round after the next meeting."""
        for rank, own in enumerate(steps):
            self._words.store(*self._next(rank), own)

    def begin_next(self, rank: int) -> None:
        """Begin a worker's next round, at the end of a meeting; doing it twice is harmless."""
        own = self.of(rank, STEPS)
        self.set_of(rank, START, own)
        self.set_of(rank, UPDATES_AT_START, self.of(rank, UPDATES))
        self.set_of(rank, MARK, own + self._words.load(*self._next(rank)))

    def _next(self, rank: int) -> tuple[int, int]:
        return 1 + 2 * self.workers + rank // _PER_LINE, rank % _PER_LINE

    # -- checkpoints -----------------------------------------------------------------------------

    def position(self) -> dict[str, Any]:
        """The counts that a checkpoint keeps."""
        words = {name: self.of_all(word) for name, word in _KEPT.items()}
        return {"meetings": self.of_run(DECIDED), **words}

    def restore(self, position: Mapping[str, Any], version: int, stages: int) -> None:
        """Restore such a position.

        Args:
            position: result of `position`.
            version: of the run.
            stages: number of stages of a meeting.
        """
        for name, word in _KEPT.items():
            for rank in range(self.workers):
                self.set_of(rank, word, position[name][rank])
        self.set_of_run(STEPS_BEFORE, sum(position["steps"]))
        self.set_of_run(TOKENS_BEFORE, sum(position["tokens"]))
        self.set_of_run(VERSION_BASE, version - sum(position["updates"]))
        for word in (DECIDED, MEETINGS_BEFORE):
            self.set_of_run(word, position["meetings"])
        for rank in range(self.workers):
            self.set_of(rank, STAGES, stages * position["meetings"])
