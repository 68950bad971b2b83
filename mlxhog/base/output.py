"""Standard streams that never block the work, and outlast their readers.

A terminal may take no text for hours (Ctrl-S, a stuck ssh), the reader of a pipe may sleep or exit,
a disk may be full, and a host program may have no standard streams, or objects with `write` alone.
So a thread writes the text of a file descriptor, in order for all streams of one file. Text for
another object is written at once by the caller, since consoles often belong to one thread.
"""

import errno
import io
import os
import select
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache, partial
from typing import Any, TextIO, cast

PATIENCE_S = 5.0  # the end of a command waits this long for a reader that takes nothing
MAX_PENDING_BYTES = 1 << 20  # messages for a reader that takes nothing; later ones are only counted
BEHIND_BYTES = 1 << 13  # with more bytes pending no picture is drawn: the next one is newer
_HELD_BYTES = 1 << 16  # pending bytes above which a stream that `ends` waits for its reader

# Environment variables of notebooks, whose `!` has a pseudo-terminal, and of build servers.
NO_SCREEN = ("JPY_PARENT_PID", "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "CI")


class StreamOver:
    """A text stream that delegates to another one what it does not define."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            cast(TextIO, self).write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class OutputLost(Exception):
    """Standard output failed; the cause is the system's error."""


class LastingStream(StreamOver):
    """A text stream that never blocks its writer, and drops text after a failed write.

    `failure` is the error of the failed write.

    Args:
        stream: the stream below; None, closed, or an object with `write` alone, too.
        ends: the output is a command's only result. Writing then waits for the reader, and a
            failure raises `OutputLost`.
        max_bytes: bytes that may wait for the reader; lines beyond them are left out.

    Concurrency: any thread may write; streams of one file keep their common order.
    """

    def __init__(
        self, stream: TextIO | None, *, ends: bool = False, max_bytes: int | None = None
    ) -> None:
        super().__init__(stream)
        self.ends, self._max_bytes = ends, max_bytes
        self._patience_s: float | None = None  # of a stream that `ends`
        self.failure: Exception | None = None
        self._n_left_out = 0
        descriptor = _descriptor(stream)
        self._queue = None if descriptor is None else _queue_of(descriptor)
        self._descriptor = -1 if descriptor is None else descriptor

    @property
    def encoding(self) -> str:
        """The encoding of the stream below, or UTF-8."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def is_behind(self) -> bool:
        """Whether the reader is too slow for a picture."""
        return self._queue is not None and self._queue.n_bytes > BEHIND_BYTES

    def isatty(self) -> bool:
        """Whether the stream below is a terminal."""
        try:
            return bool(cast(Any, self._stream).isatty())
        except Exception:  # it has no such method, or is closed
            return False

    def write(self, text: str) -> int:
        """Write text; do nothing after a failure."""
        if self.failure is None and self._stream is not None:
            if self._queue is None:
                self._try("write", text)
            else:
                self._put(self._queue, text)
        self._raise_if_lost()
        return len(text)

    def flush(self) -> None:
        """Flush; wait for the reader only if the stream `ends`."""
        if self._queue is not None:
            self._wait(0)
        elif self.failure is None and hasattr(self._stream, "flush"):
            self._try("flush")
        self._raise_if_lost()

    def drain(self, patience_s: float | None = PATIENCE_S) -> bool:
        """Wait until all text is written, or the reader takes nothing for so many seconds."""
        return self._queue is None or self._queue.drain(patience_s)

    def end(self, patience_s: float | None) -> None:
        """Drain; unread text is lost, except on a paused terminal."""
        if self._queue is None:
            self.flush()
        elif not self._queue.drain(patience_s) and not self.isatty():
            self.failure = self.failure or TimeoutError(errno.ETIMEDOUT, "nothing reads it")
        self._raise_if_lost()

    def _try(self, method: str, *text: str) -> None:
        try:
            getattr(self._stream, method)(*text)
        except Exception as error:  # of a closed stream, or of the caller's own object
            self.failure = error

    def _raise_if_lost(self) -> None:
        if self.ends and self.failure is not None:
            raise OutputLost from self.failure

    def _put(self, queue: "_Queue", text: str) -> None:
        if self._max_bytes is not None and queue.n_bytes > self._max_bytes:
            self._n_left_out += text.count("\n")
            return
        if self._n_left_out:
            text = f"({self._n_left_out} lines are missing here: nothing read them)\n{text}"
            self._n_left_out = 0
        errors = cast(TextIO, self._stream).errors or "strict"
        errors = "backslashreplace" if errors == "strict" else errors
        self._wait(_HELD_BYTES, text.encode(self.encoding, errors))

    def _wait(self, n_bytes: int, text: bytes = b"") -> None:
        """Put a text; if the stream `ends` and more bytes are pending, wait for the reader."""
        assert self._queue is not None
        try:
            if text:
                self._queue.put(self, text)
            if self.ends and self._queue.n_bytes > n_bytes:
                self._queue.drain(self._patience_s)
        except KeyboardInterrupt:  # what follows, up to the end, waits no more
            self._patience_s = 0.0
            raise


class _Queue:
    """Texts for one file, and the thread that writes them while there are some."""

    def __init__(self) -> None:
        self.n_bytes = 0  # pending
        self._texts = deque[tuple[LastingStream, bytearray]]()  # the first is being written
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self._n_writes = 0
        self._in_vain = (-1, 0.0)  # writes before a wait without another one, and its seconds

    def put(self, stream: LastingStream, text: bytes) -> None:
        """Add a text of a stream."""
        with self._changed:
            if len(self._texts) > 1 and self._texts[-1][0] is stream:
                self._texts[-1][1].extend(text)
            else:
                self._texts.append((stream, bytearray(text)))
            self.n_bytes += len(text)
            if self._has_writer():
                return
        try:
            threading.Thread(target=self._write, daemon=True, name="output").start()
        except RuntimeError:  # no more threads, or the interpreter ends
            self._write()

    def drain(self, patience_s: float | None) -> bool:
        """Wait as `LastingStream.drain`, but not again after as long a wait in vain."""
        with self._changed:
            while self._texts:
                seen = self._n_writes
                if patience_s is not None and (seen, patience_s) <= self._in_vain:
                    return False
                if not self._changed.wait_for(partial(self._has_written, seen), patience_s):
                    self._in_vain = seen, patience_s or 0.0
                    return False
        return True

    def _has_written(self, seen: int) -> bool:
        return self._n_writes > seen

    def _has_writer(self) -> bool:
        return self._writer is not None and self._writer.is_alive()

    def _write(self) -> None:
        """Write all texts, unless another thread does, as after an interrupt in `put`."""
        with self._changed:
            if self._has_writer():
                return
            self._writer = threading.current_thread()
        try:
            while self._write_some():
                pass
        finally:  # also if an interrupt ends it
            with self._changed:
                if self._writer is threading.current_thread():
                    self._writer = None

    def _write_some(self) -> bool:
        """Write as much of the first text as the file takes; return False if there is none."""
        with self._changed:
            if not self._texts:
                self._writer = None
                return False
            stream, text = self._texts[0]
            descriptor = stream._descriptor
        n = len(text)
        try:
            if stream.failure is None:  # a copy: no buffer is held while texts change
                n = os.write(descriptor, bytes(text))
        except BlockingIOError:  # another program made this file non-blocking
            n = 0
            with suppress(OSError, ValueError):
                select.select([], [descriptor], [], 1.0)
        except OSError as error:
            stream.failure = error
        with self._changed:
            self.n_bytes -= n
            self._n_writes += n > 0
            del text[:n]
            if not text:
                self._texts.popleft()
            self._changed.notify_all()
        return True


_queues = weakref.WeakValueDictionary[tuple[int, int], _Queue]()
"""By device and number of the file: a terminal is often both stdout and stderr."""


def _queue_of(descriptor: int) -> _Queue:
    status = os.fstat(descriptor)
    return _queues.setdefault((status.st_dev, status.st_ino), _Queue())


def _descriptor(stream: object) -> int | None:
    """Return the file to which a stream writes its text unchanged; None if there is none."""
    if not isinstance(stream, io.TextIOWrapper) or type(stream).write is not io.TextIOWrapper.write:
        return None
    try:
        stream.flush()  # what the caller has written stays before
        below = getattr(stream.buffer, "raw", stream.buffer)
        return below.fileno() if isinstance(below, io.FileIO) else None
    except (OSError, ValueError):
        return None


def lasting(stream: object) -> LastingStream:
    """Return a stream for messages over a text stream or None."""
    below = stream
    while isinstance(below, StreamOver) and not isinstance(below, LastingStream):
        below = below._stream
    if isinstance(below, LastingStream):
        return below
    return LastingStream(cast("TextIO | None", below), max_bytes=MAX_PENDING_BYTES)


def may_redraw(stream: object, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a picture can be redrawn: on a terminal that somebody looks at."""
    if environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    if any(environ.get(name, "").lower() not in ("", "0", "false") for name in NO_SCREEN):
        return False
    return lasting(stream).isatty()


@cache
def say_once(line: str) -> None:
    """Print a line on stderr, once in a process."""
    stream = lasting(sys.stderr)
    stream.write(f"{line}\n")
    stream.drain()


def is_taken(descriptor: int) -> bool:
    """Whether a file would take text at once."""
    try:
        return bool(select.select([], [descriptor], [], 0.0)[1])
    except (OSError, ValueError):
        return False
