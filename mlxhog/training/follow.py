"""Following a folder: new text files and examples become segments that a run trains on.

A thread of the supervisor looks at the folder twice a second, reads what is new and publishes it
(`mlxhog.data.stream`), so that reading a large file holds up nobody. The supervisor tells the
workers how many tickets there are (the counter `stream_end`), and the user when they are used up.

A file is taken whole, once, when it has stood unchanged for a second; a run remembers by name what
it has taken. A file that cannot be read is named once, and the others go on.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger
from mlxhog.data import textfiles
from mlxhog.data.examples import Example
from mlxhog.data.stream import (
    EXAMPLES,
    Row,
    Source,
    StreamBatches,
    StreamWriter,
    answer_row,
    document_rows,
    example_row,
)
from mlxhog.data.tokenizers import Tokenizer
from mlxhog.errors import DataError, EnvironmentLacks, MlxhogError, message_of
from mlxhog.files import plain_json
from mlxhog.files.paths import expanded
from mlxhog.training.job import Batches
from mlxhog.training.plan import Plan

LOOK_S = 0.5
SETTLED_S = 1.0  # a file that has not changed for so long is whole
SEGMENT_BYTES = 4 << 20  # of text in one segment, unless one file has more
MOST_BYTES = 256 << 20  # of one file
UNFINISHED = (".part", ".tmp", ".swp", ".crdownload")


class Following:
    """What a run that follows a folder does beside training."""

    def __init__(self, plan: Plan, run: Path, folder: Path) -> None:
        """Open the stream of the run; nothing is looked at yet."""
        config = plan.config
        writer = StreamWriter(
            run,
            plan.data.tokenizer,
            seq_len=config.seq_len,
            batch_size=config.sequences_per_ticket,
        )
        self._writer = writer
        self.batches = partial(_open_batches, writer.folder, plan.batches, plan.data.tokenizer)
        self._follower = Follower(folder, writer)
        self._waits = False

    @classmethod
    def of(cls, plan: Plan, run: Path) -> Self | None:
        """Open the stream of a run; None where it follows nothing.

        Raises:
            DataError: the stream is damaged.
            EnvironmentLacks: the disk is full.
        """
        folder = plan.config.follow
        return None if folder is None else cls(plan, run, expanded(folder))

    def begin(self, arena: Arena, ledger: Ledger, stack: ExitStack) -> None:
        """Take examples, and let a thread look at the folder until the stack is closed.

        The run has a checkpoint by now: what it acknowledges is trained, also after a kill.
        """
        self._arena, self._ledger = arena, ledger
        self._count()
        self._writer.accept_examples()
        stack.enter_context(self._follower)

    def look(self, *, training: bool) -> list[str]:
        """Tell workers what is there now; returns what the user should know."""
        end = self._count()
        messages = []
        while self._follower.messages:
            messages.append(self._follower.messages.popleft())
        waits = training and self._ledger.count_done() >= end
        if waits and not self._waits:
            messages.append(f"waiting for new text in {self._follower.folder}")
        if training:
            self._waits = waits
        return messages

    def _count(self) -> int:
        end = self._follower.end
        self._arena.counters.store("stream_end", 1 + end)
        return end


def _open_batches(
    folder: Path, corpus: Callable[[], Batches], tokenizer: Tokenizer
) -> StreamBatches:
    """Open a stream in a worker, which tries its model with a batch of the corpus."""
    return StreamBatches(folder, tokenizer.byte_lengths().astype(np.int64), corpus().example())


class Follower:
    """What has come into a folder, and into the examples of a run.

    Attributes:
        folder: that is followed, with the folders in it; hidden files are none of it.
        end: tickets that are published.
        messages: what the user should know, oldest first; whoever reads one takes it.

    Concurrency: `end` and `messages` may be read by other threads at any time.
    """

    def __init__(self, folder: Path, writer: StreamWriter) -> None:
        """Prepare; nothing is looked at before the block begins."""
        self.folder, self.end = folder, writer.end
        self.messages: deque[str] = deque()
        self._writer, self._reports = writer, set[str]()
        self._last_look: dict[str, tuple[int, int, float]] = {}  # size, change, since when
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlxhog-follow", daemon=True)

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the segment in hand, and look no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self.look()
            except MlxhogError as error:  # a full disk may have room again
                self._say(f"following {self.folder}: {error}")
            self._over.wait(LOOK_S)  # also after a segment: few large ones, not many small ones

    def look(self) -> bool:
        """Publish a segment of what is new; whether there was anything.

        Raises:
            EnvironmentLacks: the disk is full; the next look tries again.
        """
        rows: list[Row] = []
        sources: list[Source] = []
        n_bytes = 0
        for name, size, changed_ns in self._settled():
            refused = None
            try:
                rows += self._rows(self.folder / name, size)
            except (DataError, EnvironmentLacks) as error:
                refused = str(error)
                self._say(f"{name} is left out: {refused}")
            sources.append(Source(name, size, changed_ns, refused))
            n_bytes += size
            if n_bytes >= SEGMENT_BYTES or self._over.is_set():
                break
        more, examples_end = self._examples()
        rows += more
        if not sources and examples_end == self._writer.examples_end:
            return False
        self._writer.publish(rows, sources, examples_end)
        self.end = self._writer.end
        return True

    def _settled(self) -> list[tuple[str, int, int]]:
        """Name, size and change of the files that are new and whole, the oldest first."""
        now = time.monotonic()
        files: dict[str, tuple[int, int, float]] = {}
        for path in self._files():
            name = str(path.relative_to(self.folder))
            try:
                status = path.stat()
            except OSError:
                continue  # it has gone in between
            size, changed_ns = status.st_size, status.st_mtime_ns
            if source := self._writer.sources.get(name):
                if (source.n_bytes, source.changed_ns) != (size, changed_ns):
                    self._say(f"{name} has changed since it was read; only new files are trained")
                continue
            *before, since = self._last_look.get(name, (-1, -1, now))
            stands = before == [size, changed_ns]
            files[name] = (size, changed_ns, since if stands else now)
        self._last_look = files
        settled = [
            (name, size, changed_ns)
            for name, (size, changed_ns, since) in files.items()
            if now - since >= SETTLED_S
        ]
        return sorted(settled, key=lambda one: (one[2], one[0]))

    def _files(self) -> Iterator[Path]:
        for folder, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                is_text = textfiles.kind(path) in textfiles.TEXT_SUFFIXES
                if is_text and not name.startswith(".") and path.suffix not in UNFINISHED:
                    yield path

    def _rows(self, path: Path, size: int) -> list[Row]:
        """The rows of a file: of its documents, or of the examples among its records.

        Raises:
            DataError: it cannot be read, or is no text.
            EnvironmentLacks: reading it needs a package that is not installed.
        """
        if size > MOST_BYTES:
            raise DataError(
                f"it has {size:,} bytes, at most {MOST_BYTES:,} are read at once; split it"
            )
        tokenizer, seq_len = self._writer.tokenizer, self._writer.seq_len
        rows: list[Row] = []
        if textfiles.kind(path) != ".jsonl":
            for document in textfiles.documents(path, None):
                rows += document_rows(document, tokenizer, seq_len)
            return rows
        for where, record in textfiles.records(path):
            if isinstance(record, dict) and {"prompt", "answer"} <= record.keys():
                rows.append(example_row(record, tokenizer, seq_len, where))
                continue
            document = textfiles.record_text(record, None, where)
            if isinstance(document, Example):
                prompt, completion = document[: document.prompt], document[document.prompt :]
                rows.append(answer_row(prompt, completion, tokenizer, seq_len, where))
            elif document.strip():
                rows += document_rows(document, tokenizer, seq_len)
        return rows

    def _examples(self) -> tuple[list[Row], int]:
        """The rows of examples that have been appended since, and where they end."""
        path, begin = self._writer.folder / EXAMPLES, self._writer.examples_end
        try:
            with path.open("rb") as file:
                file.seek(begin)
                lines = file.read(SEGMENT_BYTES)
        except FileNotFoundError:
            return [], begin
        except OSError as error:
            raise EnvironmentLacks(f"{path} cannot be read: {error}") from error
        rows: list[Row] = []
        whole = lines[: lines.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                record = plain_json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("it is no object")
                tokenizer, seq_len = self._writer.tokenizer, self._writer.seq_len
                rows.append(example_row(record, tokenizer, seq_len, "an example"))
            except (ValueError, DataError) as error:  # the run may have another seq_len by now
                self._say(f"an example of {path} is left out: {message_of(error)}")
        return rows, begin + len(whole)

    def _say(self, message: str) -> None:
        """Tell the user something once."""
        if message not in self._reports:
            self._reports.add(message)
            self.messages.append(message)
