"""The model of a server, which decodes the answers of all clients with the newest weights.

The event loop drives it: each step runs in a thread of its own, and the parts of answers go to
their clients when the loop starts the next step. No step waits for a client. Between two steps
requests are admitted and cancelled, and newer weights are loaded.
"""

import asyncio
import threading
import traceback
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from mlxhog.backends.inference import InferenceModel
from mlxhog.base.paths import quoted
from mlxhog.base.resources import shortage
from mlxhog.checkpoint import checkpoint, formats, manifest
from mlxhog.checkpoint.formats.opening import refuse_not_finite
from mlxhog.decoding.engine import DecodingEngine, GenerationRequest, Piece
from mlxhog.display.views import Tell
from mlxhog.errors import ArenaError, CheckpointError, ConfigError, Diverged, RunError
from mlxhog.serving import LoadOptions
from mlxhog.serving.model import LoadedModel, load
from mlxhog.serving.server.config import ServeConfig, adapters_of
from mlxhog.serving.server.requests import FAILED, RefusedRequest
from mlxhog.serving.source import LoadedWeights

POLL_S = 0.5
"""Poll interval for newer weights of an idle server, and for the run's end of a busy one."""

PINNED_S = 10.0
"""Longest wait of weights that are due for running answers; then new answers wait for them."""

PREFILL_CHUNK = 256  # tokens of a prompt that are read between two tokens of the other answers

OF_WEIGHTS = (Diverged, CheckpointError, ArenaError)
"""Errors of the weights, which persist until newer weights are loaded."""


class AnswerPart(NamedTuple):
    """A piece of an answer to a request of a job, with the weights of its token."""

    choice: int
    piece: Piece
    loaded: LoadedWeights


News = list[AnswerPart] | RefusedRequest
"""New parts of a job's answers, or the error that ends them."""


class AnswerJob:
    """The requests of one client, and the queue of their answers.

    Of at least one request; `n_open` answers are unfinished. `model` is one of the served `names`;
    "" is the first.
    """

    def __init__(self, requests: Sequence[GenerationRequest], model: str = "") -> None:
        self.requests, self.n_open, self.model = tuple(requests), len(requests), model
        self._news: asyncio.Queue[News] = asyncio.Queue()

    async def parts(self) -> list[AnswerPart]:
        """Wait for new parts; an empty list is the end.

        Raises:
            RefusedRequest: the answers cannot be written, or cannot be completed.
        """
        if not self.n_open and self._news.empty():
            return []
        news = await self._news.get()
        if isinstance(news, RefusedRequest):
            raise news
        return news

    def put(self, news: News) -> None:
        """Add parts, or end all answers with an error."""
        self._news.put_nowait(news)
        if isinstance(news, RefusedRequest):
            self.n_open = 0
        else:
            self.n_open -= sum(part.piece.finish_reason is not None for part in news)


class ServedModel:
    """A model, the answers that it decodes, and its thread, in which all framework calls run.

    With adapters, each has an engine of its own; all share the weights of the model, which do not
    change then. `names` are those of the model and of its adapters.

    Concurrency: `_step` and the methods that it calls run in the thread, one step at a time, the
    others in one event loop.
    """

    def __init__(self, model: str, config: ServeConfig, say: Tell = lambda message: None) -> None:
        """Load a run or a checkpoint; `say` is called with a message if a run must begin first.

        Raises:
            MlxhogError: it cannot be loaded; as for `mlxhog.load`.
        """
        self._closing = threading.Event()
        self._thread = ThreadPoolExecutor(1, "mlxhog-engine")
        self._jobs: set[AnswerJob] = set()
        self._changes: deque[tuple[AnswerJob, bool]] = deque()  # that begin, or end
        self._changed = asyncio.Event()
        self._rows: dict[tuple[str, int], tuple[AnswerJob, int]] = {}  # job, choice of engine's row
        self.weights: dict[str, Any] = {}  # of the last token, or of the next one, for `/health`
        self.trouble = ""  # error of the weights, until a token has none or newer ones are there
        self.max_answers = config.batch_size + config.queue  # that run or wait
        self._polled, self._trains, self._behind_since = -POLL_S, True, 0.0
        try:
            self._thread.submit(self._open, model, config, say).result()
        except BaseException:
            self._closing.set()
            self._thread.shutdown()
            raise

    def _open(self, name: str, config: ServeConfig, say: Tell) -> None:
        def pause(seconds: float) -> None:
            if self._closing.wait(seconds):
                raise RunError("the server was stopped before the run began")

        adapters = adapters_of(config)
        root = Path(config.runs_dir)
        name = str(checkpoint.locate(name, root)) if adapters else name  # which does not change
        how: dict[str, Any] = {one.name: getattr(config, one.name) for one in fields(LoadOptions)}
        self.model: LoadedModel = load(name, **how, say=say, pause=pause)
        self._follower = self.model.follower
        new = partial(
            DecodingEngine, tokenizer=self.model.tokenizer, batch_size=config.batch_size,
            prefill_chunk=PREFILL_CHUNK,
        )  # fmt: skip
        self._engine = new(self._follower.backend)
        self._engines = {self.model.name: self._engine}
        self._loaded = dict[str, LoadedWeights]()  # of the adapters
        for own, path in adapters.items():
            if own in self._engines:
                raise ConfigError(f"--adapter {own}={path}: the model itself is {own}; rename it")
            adapted, self._loaded[own] = self._with_adapter(checkpoint.locate(path, root))
            self._engines[own] = new(adapted)
        self.names = list(self._engines)
        self._update_health(self._follower.loaded())

    def _with_adapter(self, path: Path) -> tuple[InferenceModel, LoadedWeights]:
        """Return the model with an adapter, and the adapter's version.

        Raises:
            ConfigError: it is no adapter, or has another tokenizer.
            CheckpointError: it is an adapter for another model, or its numbers are not finite.
        """
        base = formats.open(self.model.checkpoint, verify=False)
        opened = formats.open(path, base=base)
        if opened.config.adapter is None:
            raise ConfigError(
                f"{path} is a whole model, not an adapter; serve it by itself: mlxhog serve "
                f"{quoted(path)}"
            )
        own, there = opened.text_tokenizer(), self.model.tokenizer
        if (own.sha256, own.bos) != (there.sha256, there.bos):
            raise ConfigError(
                f"{path} has another tokenizer than {base.title}; serve it by itself: mlxhog serve "
                f"{quoted(path)}"
            )
        adapted, faults = self._follower.backend.with_adapter(opened.config, opened.tensors)
        refuse_not_finite(faults, path)
        step = manifest.read(path)["step"] if (path / manifest.NAME).is_file() else 0
        return adapted, LoadedWeights(version=step, oldest=step)

    def health(self) -> dict[str, Any]:
        """Return the state of the weights, and the number of running and of waiting answers."""
        return {
            "status": "trouble" if self.trouble else "ok",
            "trouble": self.trouble or None,
            **self.weights,
            "running": sum(one.n_running for one in self._engines.values()),
            "waiting": sum(one.n_waiting for one in self._engines.values()),
        }

    def start(self, job: AnswerJob) -> None:
        """Begin to answer a job.

        Raises:
            RefusedRequest: more answers are requested than may run and wait.
        """
        n_answers = sum(one.n_open for one in self._jobs)
        if n_answers + len(job.requests) > self.max_answers:
            raise RefusedRequest(
                f"{n_answers} answers are running or waiting, and the limit is "
                f"{self.max_answers}; try again in a second",
                status=429,
                headers={"Retry-After": "1"},
            )
        self._jobs.add(job)
        self._change(job, begins=True)

    def cancel(self, job: AnswerJob) -> None:
        """Stop answering a job; no effect on a job that has ended."""
        if job in self._jobs:
            self._jobs.discard(job)
            self._change(job, begins=False)

    def _change(self, job: AnswerJob, *, begins: bool) -> None:
        self._changes.append((job, begins))
        self._changed.set()

    async def run(self) -> None:
        """Answer jobs until cancelled; raises errors that concern no client."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            news = await loop.run_in_executor(self._thread, self._step)
            for job, one in news.items():
                job.put(one)
            if not self._is_busy():
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._changed.wait()

    def close(self) -> None:
        """End the thread after its step, and release the model."""
        self._thread.submit(self.model.close)
        self._thread.shutdown()

    def _step(self) -> dict[AnswerJob, News]:
        """Admit and cancel jobs, then decode a token of every answer; return the news by job."""
        while self._changes:
            job, begins = self._changes.popleft()
            model = job.model or self.names[0]
            engine = self._engines[model]
            if begins:
                for choice, request in enumerate(job.requests):
                    self._rows[model, engine.submit(request)] = (job, choice)
            else:
                for row in [row for row, (one, _) in self._rows.items() if one is job]:
                    engine.cancel(row[1])
                    del self._rows[row]
        if self._is_busy():
            return self._write()
        if self._follower.has_newer():
            self.trouble = ""  # the next answer shows whether these weights are usable
        self._update_health(self._follower.loaded())
        return {}

    def _is_busy(self) -> bool:
        return any(engine.is_busy for engine in self._engines.values())

    def _write(self) -> dict[AnswerJob, News]:
        """Decode a token of every answer, with newer weights if there are any."""
        parts = defaultdict[AnswerJob, list[AnswerPart]](list)
        try:
            self._follower.refresh(in_sequence=self._engine.n_running > 0)
            loaded = self._follower.loaded()
            self._update_health(loaded)
            self._engine.admits = not self._has_waited_too_long()
            for model, engine in self._engines.items():
                for piece in engine.step() if engine.is_busy else ():
                    row = model, piece.row
                    job, choice = self._rows[row]
                    if piece.finish_reason is not None:
                        del self._rows[row]
                    own = self._loaded.get(model, loaded)
                    parts[job].append(AnswerPart(choice, piece, own))
            self.trouble = ""
            return {**parts}
        except Exception as error:  # refuses every answer that is not done; later ones are served
            if isinstance(error, OF_WEIGHTS):
                self.trouble = f"{type(error).__name__}: {error}"
            jobs = [job for job, _ in self._rows.values()]
            for engine in self._engines.values():
                engine.clear()
            self._rows.clear()
            return {**parts, **dict.fromkeys(jobs, _refusal(error))}

    def _update_health(self, loaded: LoadedWeights) -> None:
        source, now = self._follower.source, monotonic()
        if now - self._polled >= POLL_S:
            self._polled, self._trains = now, source.trains()
        self.weights = {
            "weights": source.name,
            "note": source.note if source.note and self._trains else None,
            "training": self._trains,
            "version": loaded.version if source.counts_updates else None,
            "newest": source.newest() if source.counts_updates else None,
            "age_s": round(loaded.age_s, 3),
        }

    def _has_waited_too_long(self) -> bool:
        if self._follower.source.mode != "pinned_per_sequence" or not self._follower.is_due():
            self._behind_since = 0.0
            return False
        self._behind_since = self._behind_since or monotonic()
        return self._engine.n_running > 0 and monotonic() - self._behind_since > PINNED_S


def _refusal(error: Exception) -> RefusedRequest:
    if isinstance(error, OF_WEIGHTS):
        code = "not_finite" if isinstance(error, Diverged) else "no_weights"
        return RefusedRequest(str(error), status=503, code=code)
    if words := shortage(error):
        return RefusedRequest(words, status=503, code="no_memory")
    traceback.print_exception(error)
    return RefusedRequest(FAILED, status=500)
