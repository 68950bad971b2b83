"""The thread that owns the model and writes the answers of all clients, with the newest weights.

The event loop gives it jobs and receives parts of answers; neither waits for the other, and no
thread waits for a client. Between two tokens the thread admits and cancels requests and loads newer
weights.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from mlxhog.decoding.engine import Engine, Piece, Request
from mlxhog.decoding.model import Model
from mlxhog.errors import ArenaError, CheckpointError, Diverged, MlxhogError, RunError
from mlxhog.live.opening import open_source
from mlxhog.live.serving.config import ServeConfig
from mlxhog.live.serving.requests import FAILED, RefusedRequest
from mlxhog.live.source import Loaded, WeightFollower, WeightSource
from mlxhog.report.views import Tell

POLL_S = 0.5
"""Interval at which an idle thread checks for newer weights, and a busy one for the run's end."""

PINNED_S = 10.0
"""After this time newer weights no longer wait for new answers: new answers wait instead."""

PREFILL_CHUNK = 256
"""Tokens of a prompt that are read between two tokens of the other answers."""

OF_WEIGHTS = (Diverged, CheckpointError, ArenaError)
"""Errors of the weights, not of a request; they persist until newer weights are loaded."""


class AnswerPart(NamedTuple):
    """A piece of an answer to a request of a job, with the weights of its token."""

    choice: int
    piece: Piece
    loaded: Loaded


News = list[AnswerPart] | RefusedRequest
"""New parts of the answers of a job, or why they end."""


class AnswerJob:
    """The requests of one client, and the queue of their answers; for the event loop's thread.

    Of at least one request; `n_open` answers are unfinished.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests, self.n_open = tuple(requests), len(requests)
        self._news: asyncio.Queue[News] = asyncio.Queue()

    async def parts(self) -> list[AnswerPart]:
        """Wait for new parts and return them; an empty list is the end.

        Raises:
            RefusedRequest: the answers cannot be written, or cannot be completed.
        """
        if not self.n_open and self._news.empty():
            return []
        news = await self._news.get()
        if isinstance(news, RefusedRequest):
            raise news
        return news

    def take(self, news: News) -> None:
        """Add parts, or end all answers with an error."""
        self._news.put_nowait(news)
        if isinstance(news, RefusedRequest):
            self.n_open = 0
        else:
            self.n_open -= sum(part.piece.finish_reason is not None for part in news)


class EngineThread:
    """The thread that owns the source of the weights, the backend and the engine. Starts at once.

    Concurrency: `start` and `cancel` are for the event loop's thread; the rest is for any thread.
    """

    def __init__(self, model: str, config: ServeConfig, say: Tell = lambda message: None) -> None:
        """Open a run or a checkpoint; `say` is called on this thread if a run is waited for."""
        self._spec, self._config, self._say = model, config, say
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._opened: Future[Model] = Future()
        self._jobs: set[AnswerJob] = set()
        self._rows: dict[int, tuple[AnswerJob, int]] = {}  # of the engine's thread
        self.weights: dict[str, Any] = {}  # of the last token, or of the next one, for `/health`
        self.trouble = ""  # error of the weights, until a token has none or newer ones are there
        self.most_answers = config.batch_size + config.queue  # that run or wait
        self.died: Exception | None = None  # the error that ended the thread
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlxhog-engine", daemon=True)
        self._thread.start()

    def wait(self) -> Model:
        """Wait until the model is loaded.

        Raises:
            MlxhogError: it cannot be loaded; as for `open_source` and `WeightFollower`.
        """
        while True:
            with suppress(TimeoutError):  # Ctrl-C is handled between two waits
                return self._opened.result(timeout=0.2)

    def health(self) -> dict[str, Any]:
        """Return the state of the weights, and the number of running and of waiting answers."""
        return {
            "status": "trouble" if self.trouble else "ok",
            "trouble": self.trouble or None,
            **self.weights,
            "running": self._engine.n_running,
            "waiting": self._engine.n_waiting,
        }

    def start(self, job: AnswerJob) -> None:
        """Begin to answer a job, which is cancelled when its client has all or has left.

        Raises:
            RefusedRequest: more answers are requested than may run and wait.
        """
        n_answers = sum(one.n_open for one in self._jobs)
        if n_answers + len(job.requests) > self.most_answers:
            raise RefusedRequest(
                f"{n_answers} answers are running or waiting, and the limit is "
                f"{self.most_answers}; try again in a second",
                status=429,
                headers={"Retry-After": "1"},
            )
        self._loop = asyncio.get_running_loop()
        self._jobs.add(job)
        self._commands.put(partial(self._submit, job))

    def cancel(self, job: AnswerJob) -> None:
        """Stop answering a job; no effect on a job that has ended."""
        if job in self._jobs:
            self._jobs.discard(job)
            self._commands.put(partial(self._drop, job))

    def stop(self) -> None:
        """End the thread without completing the current answers."""
        self._stopping.set()
        self._commands.put(None)
        self._thread.join(timeout=30)

    # -- the engine's thread -----------------------------------------------------------------------

    def _run(self) -> None:
        config = self._config
        try:
            source, model = self._open()
            self._follower = WeightFollower(source, model.backend)
            sizes = {"batch_size": config.batch_size, "prefill_chunk": PREFILL_CHUNK}
            self._engine = Engine(model.backend, model.tokenizer, **sizes)
            self._looked, self._trains, self._behind_since = -POLL_S, True, 0.0
            self._look(self._follower.loaded())
        except BaseException as error:
            self._opened.set_exception(error)
            return
        self._opened.set_result(model)
        try:
            while self._run_commands():
                if self._engine.is_busy:
                    self._advance()
                else:
                    if self._follower.has_newer():
                        self.trouble = ""  # the next answer shows whether these weights are usable
                    self._look(self._follower.loaded())
        except Exception as error:  # an error of the source, without a request to report it to
            self.died = error
        finally:
            self._follower.source.close()
            model.backend.close()

    def _open(self) -> tuple[WeightSource, Model]:
        """Open the model; wait for a run that is starting."""

        def pause(seconds: float) -> None:
            if self._stopping.wait(seconds):
                raise RunError("the server was stopped before the run began")

        config = self._config
        return open_source(
            self._spec,
            root=Path(config.out),
            backend=config.backend,
            weights=config.weights,
            mode=config.mode,
            wait_s=config.wait,
            say=self._say,
            pause=pause,
        )

    def _run_commands(self) -> bool:
        """Run the event loop's commands; if idle, wait for one. False is the command to stop."""
        while True:
            try:
                command = self._commands.get(not self._engine.is_busy, POLL_S)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _look(self, loaded: Loaded) -> None:
        """Replace what `/health` says of the weights."""
        source, now = self._follower.source, monotonic()
        if now - self._looked >= POLL_S:
            self._looked, self._trains = now, not source.ended()
        self.weights = {
            "weights": source.whose,
            "note": source.note or None,
            "training": self._trains,
            "version": loaded.version if source.counts_updates else None,
            "newest": source.newest() if source.counts_updates else None,
            "age_s": round(loaded.age_s, 3),
        }

    def _advance(self) -> None:
        """Write a token of every answer, with newer weights if there are any."""
        engine = self._engine
        try:
            self._follower.refresh(in_sequence=engine.n_running > 0)
            loaded = self._follower.loaded()
            self._look(loaded)
            engine.admits = not self._has_waited_too_long()
            for half in (engine.read, engine.write):  # first tokens do not wait
                parts = defaultdict[AnswerJob, list[AnswerPart]](list)
                for piece in half():
                    job, choice = self._rows[piece.row]
                    if piece.finish_reason is not None:
                        del self._rows[piece.row]
                    parts[job].append(AnswerPart(choice, piece, loaded))
                self._send(parts)
            self.trouble = ""
        except Exception as error:  # ends every answer; later requests are served
            if isinstance(error, OF_WEIGHTS):
                self.trouble = f"{type(error).__name__}: {error}"
            self._send(dict.fromkeys((job for job, _ in self._rows.values()), _refusal(error)))
            engine.clear()
            self._rows.clear()

    def _has_waited_too_long(self) -> bool:
        """Whether newer weights have waited for longer than `PINNED_S` for running answers."""
        if self._follower.source.mode != "pinned_per_sequence" or not self._follower.has_newer():
            self._behind_since = 0.0
            return False
        self._behind_since = self._behind_since or monotonic()
        return self._engine.n_running > 0 and monotonic() - self._behind_since > PINNED_S

    def _submit(self, job: AnswerJob) -> None:
        try:
            for choice, request in enumerate(job.requests):
                self._rows[self._engine.submit(request)] = (job, choice)
        except Exception as error:
            self._drop(job)
            self._send({job: _refusal(error)})

    def _drop(self, job: AnswerJob) -> None:
        for number in [row for row, (one, _) in self._rows.items() if one is job]:
            self._engine.cancel(number)
            del self._rows[number]

    def _send(self, news: Mapping[AnswerJob, News]) -> None:
        """Hand news to the event loop's thread."""

        def deliver() -> None:
            for job, one in news.items():
                job.take(one)

        with suppress(RuntimeError):  # the event loop has ended
            if news:
                self._loop.call_soon_threadsafe(deliver)


def _refusal(error: Exception) -> RefusedRequest:
    """Return an error of the engine for clients, with the status of its cause."""
    if isinstance(error, OF_WEIGHTS):
        code = "not_finite" if isinstance(error, Diverged) else "no_weights"
        return RefusedRequest(str(error), status=503, code=code)
    if isinstance(error, MlxhogError):
        return RefusedRequest(str(error), code="invalid_value")
    traceback.print_exception(error)
    return RefusedRequest(FAILED, status=500)
