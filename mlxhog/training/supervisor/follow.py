"""Following a folder: new text files and examples become sequences that a run trains on.

A thread of the supervisor looks at the folder twice a second, reads new files and publishes them
(`mlxhog.data.stream`), so that a large file does not delay the supervisor. The supervisor gives
workers the number of tickets (the counter `stream_end`) and reports when they are used up.

A file is read whole and once, after a second without change; a run remembers the names of the files
that it has read. A file that cannot be read is reported once and skipped. If a package or memory is
missing, the file is tried again when the run is resumed.

When the run ends, a file that is being read is left for the resume. An error of the thread itself
ends the run after a checkpoint.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger
from mlxhog.base import plain_json
from mlxhog.base.durable import disk_errors, read_lines
from mlxhog.base.inside import OpenFolder
from mlxhog.base.paths import expanded, printable
from mlxhog.config.config import TrainConfig
from mlxhog.data import textfiles
from mlxhog.data.machine_data import without
from mlxhog.data.records import Example
from mlxhog.data.stream import (
    EXAMPLES,
    Closed,
    SourceFile,
    StreamBatches,
    StreamWriter,
    TrainingRow,
    document_rows,
    example_rows,
    read_example,
)
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import DataError, EnvironmentLacks, MlxhogError, WorkerFailed, message_of
from mlxhog.training.plan.values import BatchSource

LOOK_S = 0.5
SETTLED_S = 1.0  # a file that has not changed for this time is complete
LEAVE_S = 5.0  # limit for a piece of a file that is being read when the run ends
PART_TOKENS = 4 << 20  # per part, unless one file has more
EXAMPLES_BYTES = 1 << 20  # examples that are read at once
MAX_BYTES = 64 << 20  # of one file, unpacked, whose rows are in memory until they are published
ROW_BYTES = 256  # least that a document counts for: Python's own for its sequence
UNFINISHED = (".part", ".tmp", ".swp", ".crdownload")


class _RunEnded(Exception):
    """The run has ended while a file was read."""


class Follower:
    """Reads new files of a folder and new examples of a run, in a thread of the supervisor.

    It writes to a stream in the run's folder.

    Concurrency: `end`, `messages` and `fault` may be read by other threads at any time.
    """

    def __init__(self, run_dir: Path, tokenizer: Tokenizer, config: TrainConfig) -> None:
        sizes = {"seq_len": config.seq_len, "batch_size": config.sequences_per_ticket}
        writer = StreamWriter(run_dir, tokenizer, **sizes)
        self.folder = expanded(str(config.follow))  # with subfolders, without hidden files
        self.end = writer.last.end_ticket  # number of published tickets
        self.messages: deque[str] = deque()  # for the user; the reader removes those it reads
        self.fault: BaseException | None = None  # that ended the thread
        self._config = config  # whose options of text are those of its files, too
        self._writer, self._reports = writer, set[str]()
        self._last_look: dict[str, tuple[int, int, float]] = {}  # size, change, since when
        self._postponed = set[str]()  # names left for the next start
        self._waits = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlxhog-follow", daemon=True)

    def batches(self, corpus: Callable[[], BatchSource]) -> Callable[[], StreamBatches]:
        """Opens the rows of the stream in a worker, which warms up with a batch of the corpus."""
        frozen = self._config.context == "frozen"
        return partial(
            _open_batches, self._writer.open_folder, corpus, self._writer.tokenizer, frozen
        )

    # -- in the supervisor -----------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Accept examples, and start the thread.

        The run has a checkpoint by now, so text that it acknowledges is trained, even after a kill.
        """
        self._writer.accept_examples()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread; text that is not published yet is left for the resume."""
        self._over.set()
        self._writer.close()
        self._thread.join(LEAVE_S)  # a disk that does not answer must not delay the end

    def give(self, arena: Arena, ledger: Ledger, *, training: bool) -> list[str]:
        """Give workers the new tickets; returns messages for the user."""
        name, fault, end = printable(self.folder), self.fault, self.end
        arena.counters.store("stream_end", 1 + end)
        messages = [self.messages.popleft() for _ in range(len(self.messages))]
        if training and fault is not None:
            raise WorkerFailed(
                f"following {name} ended with {type(fault).__name__}: {message_of(fault)}; that "
                "is a bug in mlxhog, please report it"
            ) from fault
        if training:
            waits = ledger.count_done() >= end
            messages += [f"waiting for new text in {name}"] * (waits and not self._waits)
            self._waits = waits
        return messages

    # -- in the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                try:
                    self.look()
                except MlxhogError as error:  # a full disk may have room again
                    self._say(f"following {printable(self.folder)}: {error}")
                # Also after a part, so that parts are few and large.
                self._over.wait(LOOK_S)
        except (_RunEnded, Closed):
            pass
        except BaseException as error:  # a run must not wait for text that never comes
            self.fault = error

    def look(self) -> bool:
        """Publish a part of the stream from new text; returns whether there was any.

        Raises:
            EnvironmentLacks: the disk is full; the next look tries again.
        """
        rows, sources = list[TrainingRow](), list[SourceFile]()
        for name, size, changed_ns in self._settled():
            try:
                refused = self._add(name, rows)
            except (EnvironmentLacks, MemoryError) as error:
                self._postponed.add(name)
                reason = message_of(error)
                self._say(f"{name} is left out until the run is resumed: {reason}")
                continue
            if refused:
                self._say(f"{name} is left out: {refused}")
            sources.append(SourceFile(name, size, changed_ns, refused))
            if sum(len(row.ids) for row in rows) >= PART_TOKENS:
                break
        with disk_errors(f"reading {self._writer.folder}"):
            examples_end = self._add_examples(rows)
        if not sources and examples_end == self._writer.last.examples_end:
            return False
        self._writer.publish(rows, sources, examples_end)
        self.end = self._writer.last.end_ticket
        return True

    def _add(self, name: str, rows: list[TrainingRow]) -> str | None:
        """Add all rows of a file, or none; then returns the reason.

        A reader's or a tokenizer's own error concerns this file only.
        """
        own = list[TrainingRow]()
        try:
            for row in self._rows(self.folder / name):
                if self._over.is_set():
                    raise _RunEnded
                own.append(row)
        except (EnvironmentLacks, MemoryError, _RunEnded):
            raise
        except Exception as error:
            kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
            return f"{kind}{message_of(error)}"
        rows += own
        return None

    def _settled(self) -> list[tuple[str, int, int]]:
        """Name, size and change of the files that are new and complete, the oldest first."""
        now, settled = time.monotonic(), list[tuple[str, int, int]]()
        looks: dict[str, tuple[int, int, float]] = {}
        for path, name in self._files():
            try:
                status = path.stat()
            except OSError:
                continue  # it was deleted meanwhile
            state = status.st_size, status.st_mtime_ns
            if source := self._writer.sources.get(name):
                if (source.n_bytes, source.changed_ns) != state:
                    self._say(f"{name} has changed since it was read; only new files are trained")
            elif name not in self._postponed:
                *before, since = self._last_look.get(name, (-1, -1, now))
                looks[name] = (*state, since if before == [*state] else now)
                if now - looks[name][2] >= SETTLED_S:
                    settled.append((name, *state))
        self._last_look = looks
        return sorted(settled, key=lambda one: (one[2], one[0]))

    def _files(self) -> Iterator[tuple[Path, str]]:
        """The files of text with their names; others are reported."""
        if not self.folder.is_dir():
            self._say(
                f"the folder {printable(self.folder)} is gone; the run waits until it is back: put "
                "it back, or end the run with mlxhog stop"
            )
        for folder, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(folder, name) for name in names):
                if path.name.startswith(".") or path.suffix in UNFINISHED:
                    continue
                name, problem = str(path.relative_to(self.folder)), ""
                if textfiles.kind(path) not in textfiles.TEXT_SUFFIXES:
                    problem = "its suffix is not that of a text, as .txt is"
                elif printable(name) != name:
                    problem = "its name is not UTF-8; rename it"
                elif path.exists() and not path.is_file():
                    problem = "it is no regular file, but a pipe, a socket or a device"
                if problem:
                    self._say(f"{printable(name)} is left out: {problem}")
                else:
                    yield path, name

    def _rows(self, path: Path) -> Iterator[TrainingRow]:
        n_bytes, config, separators = 0, self._config, set[str]()
        how = config.text_key, config.document_separator
        for where, document in textfiles.documents(path, *how, separators=separators):
            n_bytes += max(len(document), ROW_BYTES)
            if n_bytes > MAX_BYTES:
                raise DataError(
                    f"it has more than {MAX_BYTES:,} bytes of text, where a document counts for "
                    f"{ROW_BYTES} or more; split it"
                )
            for rest in without([document]) if config.skip_machine_data else [document]:
                yield from self._rows_of(rest, where)
        for mark in (repr(one)[1:-1] for one in sorted(separators)):
            self._say(f"{mark} in new files: documents are cut there, and it is left out")

    def _rows_of(self, document: bytes, where: str) -> Iterator[TrainingRow]:
        tokenizer, seq_len = self._writer.tokenizer, self._writer.seq_len
        if self._config.loss_on == "assistant" and isinstance(document, Example):
            return example_rows(document, tokenizer, seq_len, where)
        return document_rows(document, tokenizer, seq_len)

    def _add_examples(self, rows: list[TrainingRow]) -> int:
        """Add the rows of newly appended examples; returns where these end."""
        path, begin = self._writer.folder / EXAMPLES, self._writer.last.examples_end
        try:
            lines = read_lines(path, begin, EXAMPLES_BYTES)
        except FileNotFoundError:
            return begin
        for line in lines.splitlines():
            if self._over.is_set():
                raise _RunEnded
            try:
                example = read_example(plain_json.loads(line), "an example")
                rows += list(self._rows_of(example, "an example"))
            except (ValueError, DataError) as error:
                self._say(f"an example of {path} is left out: {message_of(error)}")
        return begin + len(lines)

    def _say(self, message: str) -> None:
        if message not in self._reports:
            self._reports.add(message)
            self.messages.append(message)


def _open_batches(
    folder: OpenFolder, corpus: Callable[[], BatchSource], tokenizer: Tokenizer, frozen: bool
) -> StreamBatches:
    lengths = tokenizer.byte_lengths().astype(np.int64)
    return StreamBatches(folder.path, lengths, corpus().example(), frozen=frozen)
