"""The thread that owns the model: it writes the answers of all clients, with the newest weights.

The event loop hands it jobs and takes parts of answers from it; neither waits for the other, and
nobody waits for a client. Between two tokens requests are admitted or cancelled and newer weights
are taken.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import numpy as np

from mlxhog.checkpoint import run as runs
from mlxhog.decoding.engine import Engine, FinishReason, Int32, Piece, Request
from mlxhog.decoding.model import Model
from mlxhog.errors import ArenaError, CheckpointError, Diverged, MlxhogError, RunError
from mlxhog.live.opening import open_newest
from mlxhog.live.serving.config import ServeConfig
from mlxhog.live.source import Follower, Loaded, WeightSource
from mlxhog.models import families

POLL_S = 0.5
"""How often an idle thread looks for newer weights, and a busy one whether the run has ended."""

PINNED_S = 10.0
"""How long newer weights wait for answers that keep theirs before new answers wait for them."""


FAILED = "the server failed; its terminal says how"

OF_WEIGHTS = (Diverged, CheckpointError, ArenaError)
"""Errors that no request is to blame for; they stay until newer weights are there."""


class Busy(MlxhogError):
    """More answers were asked for than may run and wait."""


class Failed(MlxhogError):
    """An error that no client is to blame for; the traceback is on the terminal."""


@dataclass(frozen=True)
class Part:
    """A piece of an answer, with the weights it was written with.

    Attributes:
        choice: which request of the job.
        token: None where the document ended instead.
        text: what has become certain of the answer.
        finish_reason: why it ended here; None where it goes on.
        loaded: the weights.
        session_tokens: length of the session that it has become part of; None where there is none.
    """

    choice: int
    token: int | None
    text: str
    finish_reason: FinishReason | None
    loaded: Loaded
    session_tokens: int | None


class Job:
    """What one client asked for: requests whose answers it takes as they come.

    Args:
        requests: at least one.
        joint: what comes between a session and the prompt that goes on with it.

    Attributes:
        resumes: whether its session was there; known with the first part.
        n_open: answers that have not ended.
        n_failed: answers that an error has ended.

    Concurrency: for the event loop's thread.
    """

    def __init__(self, requests: Sequence[Request], joint: Int32 | None = None) -> None:
        self.requests, self.joint = tuple(requests), joint
        self.resumes = False
        self.n_open, self.n_failed = len(self.requests), 0
        self.numbers: list[int] = []  # in the engine, of whose thread it is
        self._parts: list[Part] = []
        self._error: Exception | None = None
        self._news = asyncio.Event()

    async def parts(self) -> list[Part]:
        """Wait for parts and return all that are new; an empty list is the end.

        Raises:
            Exception: the answers cannot be written, or not to their end.
        """
        if self.n_open:
            await self._news.wait()
        self._news.clear()
        parts, self._parts = self._parts, []
        if not parts and self._error is not None:
            raise self._error
        return parts

    def take(self, part: Part) -> None:
        """Add a part."""
        self._parts.append(part)
        self.n_open -= part.finish_reason is not None
        self._news.set()

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        self._error = error
        self.n_failed, self.n_open = self.n_open, 0
        self._news.set()


@dataclass(frozen=True)
class Served:
    """What is being served.

    Attributes:
        name: under which clients ask for it.
        model: with its tokenizer.
    """

    name: str
    model: Model


class EngineThread:
    """Owns the source of the weights, the backend and the engine. Starts at once.

    Args:
        model: a run or a checkpoint.
        config: see there.
        say: told what is waited for, on the engine's thread.

    Attributes:
        whose: whose weights they are, in words.
        note: why they are not read as was asked for; empty where they are.
        counts_updates: whether their version is known.
        loaded: the weights of the last token, or of the next.
        newest: version of the newest ones.
        ended: whether the run does not train any more.
        n_loads: how often newer weights were taken.
        trouble: what is wrong with the weights; empty where the last token was well, or newer ones
            are there.
        died: what ended the thread before it was stopped.

    Concurrency: `start` and `cancel` are for the event loop's thread; the rest is for any.
    """

    def __init__(
        self, model: str, config: ServeConfig, say: Callable[[str], object] = lambda message: None
    ) -> None:
        self._spec, self._config, self._say = model, config, say
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._opened: Future[Served] = Future()
        self._jobs: set[Job] = set()
        self._rows: dict[int, tuple[Job, int]] = {}  # of the engine's thread
        self.loaded = Loaded(version=0, oldest=0)
        self.newest, self.ended, self.n_loads = 0, False, 0
        self.whose, self.note, self.counts_updates = "", "", True
        self.trouble = ""
        self.died: Exception | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlxhog-engine", daemon=True)
        self._thread.start()

    def wait(self) -> Served:
        """Wait until the model is loaded.

        Raises:
            MlxhogError: it cannot be; as `open_source` and `Follower`.
        """
        while True:
            with suppress(TimeoutError):  # Ctrl-C gets through between two waits
                return self._opened.result(timeout=0.2)

    @property
    def n_running(self) -> int:
        """Answers being written."""
        return self._engine.n_running

    @property
    def n_waiting(self) -> int:
        """Answers waiting for a place."""
        return self._engine.n_waiting

    @property
    def n_sessions(self) -> int:
        """Sessions that are kept."""
        return self._engine.n_sessions

    @property
    def n_answers(self) -> int:
        """Answers that are running or waiting."""
        return sum(job.n_open for job in self._jobs)

    @property
    def most_answers(self) -> int:
        """Answers that may run or wait."""
        return self._config.batch_size + self._config.queue

    def start(self, job: Job) -> None:
        """Begin to answer.

        Raises:
            Busy: there is no place to wait in.
        """
        if self.n_answers + len(job.requests) > self.most_answers:
            raise Busy(
                f"{self.n_answers} answers are running or waiting, of {self.most_answers} at most; "
                "try again in a second"
            )
        self._loop = asyncio.get_running_loop()
        self._jobs.add(job)
        self._commands.put(lambda: self._submit(job))

    def cancel(self, job: Job) -> None:
        """Stop answering; a job that has ended is no error."""
        if job in self._jobs:
            self._jobs.discard(job)
            self._commands.put(lambda: self._drop(job))

    def stop(self) -> None:
        """End the thread; answers that are being written are left."""
        self._stopping.set()
        self._commands.put(None)
        self._thread.join(timeout=30)

    # -- the engine's thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            source, model = self._open()
            self._follower = Follower(source, model.backend)
            self._source, self._model = source, model
            self._engine = Engine(
                model.backend,
                model.tokenizer,
                batch_size=self._config.batch_size,
                prefill_chunk=self._config.prefill_chunk,
                most_sessions=self._config.sessions,
            )
            self._looked = self._behind_since = 0.0
            self._look(self._follower.loaded())
        except BaseException as error:
            self._opened.set_exception(error)
            return
        name = served_name(model.checkpoint)
        self._opened.set_result(Served(name, model))
        try:
            while self._obey():
                if self._engine.is_busy:
                    self._advance()
                else:
                    if self._source.has_newer() and self.trouble:
                        self.trouble = ""  # the next answer shows whether these are well
                    self._look(self._follower.loaded())
        except Exception as error:  # of the source, while nobody asks for anything
            self.died = error
        finally:
            source.close()
            model.backend.close()

    def _open(self) -> tuple[WeightSource, Model]:
        """Open the model; one of a run that is being started, when it can be read."""

        def pause(seconds: float) -> None:
            if self._stopping.wait(seconds):
                raise RunError("the server ends before the run has begun")

        return open_newest(
            self._spec,
            root=Path(self._config.out),
            backend=self._config.backend,
            weights=self._config.weights,
            mode=self._config.mode,
            wait_s=self._config.wait,
            say=self._say,
            pause=pause,
        )

    def _obey(self) -> bool:
        """Do what the event loop asked for; wait for something where nothing is to be done."""
        while True:
            try:
                if self._engine.is_busy:
                    command = self._commands.get_nowait()
                else:
                    command = self._commands.get(timeout=POLL_S)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _look(self, loaded: Loaded) -> None:
        """Note what `/health` and `/metrics` tell."""
        self.n_loads += loaded.version != self.loaded.version
        self.loaded = loaded
        self.newest = self._source.newest()
        self.whose, self.note = self._source.whose, self._source.note
        self.counts_updates = self._source.counts_updates
        now = monotonic()
        if now - self._looked >= POLL_S:
            self._looked, self.ended = now, self._source.ended()

    def _advance(self) -> None:
        """Write a token of every answer, with newer weights where there are some."""
        try:
            self._follower.refresh(in_sequence=self._engine.n_running > 0)
            loaded = self._follower.loaded()
            self._look(loaded)
            self._engine.admits = not self._has_waited_too_long()
            for half in (self._engine.read, self._engine.write):  # first tokens do not wait
                if pieces := half():
                    self._call(self._deliver, [self._part(piece, loaded) for piece in pieces])
            self.trouble = ""
        except Exception as error:
            self._fail(error)

    def _has_waited_too_long(self) -> bool:
        """Whether newer weights wait for answers that keep theirs."""
        if self._source.mode != "pinned_per_sequence" or not self._source.has_newer():
            self._behind_since = 0.0
            return False
        self._behind_since = self._behind_since or monotonic()
        return self._engine.n_running > 0 and monotonic() - self._behind_since > PINNED_S

    def _submit(self, job: Job) -> None:
        try:
            for choice, request in enumerate(job.requests):
                number = self._engine.submit(self._continued(job, request))
                self._rows[number] = (job, choice)
                job.numbers.append(number)
        except Exception as error:
            self._drop(job)
            self._call(self._end, job, _for_clients(error))

    def _continued(self, job: Job, request: Request) -> Request:
        """Return a request as the engine takes it: after what its session holds already.

        Raises:
            ConfigError: the model has no positions for so many tokens.
        """
        n_tokens = len(request.prompt) + request.max_new_tokens
        session = None if request.session is None else self._engine.session(request.session)
        if session is not None:
            job.resumes = True
            n_tokens += session.n_tokens
            if job.joint is not None:
                request = replace(request, prompt=np.concatenate([job.joint, request.prompt]))
        families.check_length(self._model.config, n_tokens)
        return request

    def _drop(self, job: Job) -> None:
        for number in job.numbers:
            self._engine.cancel(number)
            self._rows.pop(number, None)

    def _fail(self, error: Exception) -> None:
        """End every answer with an error that came from the model, and go on with the next."""
        if isinstance(error, OF_WEIGHTS):
            self.trouble = f"{type(error).__name__}: {error}"
        error = _for_clients(error)
        jobs = {job for job, _ in self._rows.values()}
        self._engine.clear()
        self._rows.clear()
        for job in jobs:
            self._call(self._end, job, error)

    def _part(self, piece: Piece, loaded: Loaded) -> tuple[Job, Part]:
        job, choice = self._rows[piece.row]
        session_tokens = None
        if piece.finish_reason is not None:
            del self._rows[piece.row]
            name = job.requests[choice].session
            session = None if name is None else self._engine.session(name)
            session_tokens = None if session is None else session.n_tokens
        part = Part(choice, piece.token, piece.text, piece.finish_reason, loaded, session_tokens)
        return job, part

    # -- from the engine's thread to the event loop's ----------------------------------------------

    def _call(self, call: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(call, *arguments)

    def _deliver(self, parts: Sequence[tuple[Job, Part]]) -> None:
        for job, part in parts:
            if job in self._jobs:  # or its client has gone
                job.take(part)
                if not job.n_open:
                    self._jobs.discard(job)

    def _end(self, job: Job, error: Exception) -> None:
        self._jobs.discard(job)
        job.fail(error)


def _for_clients(error: Exception) -> MlxhogError:
    """Return what a client is told of an error."""
    if isinstance(error, MlxhogError):
        return error
    traceback.print_exception(error)
    return Failed(FAILED)


def served_name(path: Path) -> str:
    """Return the name under which clients ask for a model: the run's, or the folder's."""
    run = runs.run_of(path)
    return path.name if run is None else run.name
