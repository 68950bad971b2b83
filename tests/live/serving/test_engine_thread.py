"""The engine's thread: newer weights between tokens, errors of the model, many clients."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.decoding.engine import Request
from mlxhog.decoding.options import Sampling
from mlxhog.errors import (
    Diverged,
)
from mlxhog.live.serving import engine_thread
from mlxhog.live.serving.app import Api
from mlxhog.live.serving.config import ServeConfig
from mlxhog.live.serving.engine_thread import (
    AnswerJob,
    EngineThread,
    ServerFailed,
)
from mlxhog.live.source import Loaded, WeightSource
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from tests.decoding.readers import Reader


class Letter(Reader):
    """Says one letter for ever: that of its weights. The test lets it say each."""

    def __init__(self):
        super().__init__()
        self.letter = ord("a")
        self.may_say = threading.Semaphore(0)
        self.error = None

    def logits(self, tokens, state):
        assert self.may_say.acquire(timeout=30)
        if self.error is not None:
            raise self.error
        return super().logits(tokens, state)

    def says(self, history):
        logits = np.zeros(320, np.float32)
        if np.isnan(self.letter):
            return logits + np.nan
        logits[int(self.letter)] = 40.0
        return logits

    def close(self):
        pass


class Letters(WeightSource):
    """Weights that are newer whenever the test says; see `WeightSource`."""

    whose = "letters"

    def __init__(self, mode):
        self.mode, self.version, self.loaded, self.is_closed = mode, 0, 0, False

    def newest(self):
        return self.version

    def has_newer(self):
        return self.version != self.loaded

    def load(self, backend):
        self.loaded = self.version
        backend.letter = ord("a") + self.version
        return Loaded(version=self.version, oldest=self.version)

    def ended(self):
        return False

    def close(self):
        self.is_closed = True


class Bench:
    """An engine's thread with a model that waits for the test."""

    def __init__(self, monkeypatch, mode, **how):
        self.backend, self.source = Letter(), Letters(mode)
        config = XLSTMLargeConfig(vocab_size=320, hidden_size=32, num_hidden_layers=1, num_heads=2)
        model = SimpleNamespace(
            backend=self.backend,
            tokenizer=ByteTokenizer(),
            name="letters",
            end_tokens=frozenset(),
            config=config,
        )
        monkeypatch.setattr(engine_thread, "open_source", lambda *_, **__: (self.source, model))
        monkeypatch.setattr("mlxhog.live.source.LOADING_PART", 1e9)  # load whenever newer
        self.thread = EngineThread("letters", ServeConfig(**how))
        assert self.thread.wait().name == "letters"
        assert self.thread.weights["weights"] == "letters"

    def job(self, n=4, count=1, **how):
        sampling = Sampling(max_new_tokens=n, temperature=0)
        request = Request(prompt=[1, 2], sampling=sampling, **how)
        return AnswerJob([request] * count)

    def say(self, tokens):
        self.backend.may_say.release(tokens)


Make = Callable[..., Bench]


@pytest.fixture
def bench(monkeypatch):
    results = []

    def make(mode="double_buffer", **how):
        results.append(Bench(monkeypatch, mode, **how))
        return results[-1]

    yield make
    for one in results:
        one.say(10**6)
        one.thread.stop()
        assert one.source.is_closed


def run(work):
    async def soon():
        await asyncio.wait_for(work, timeout=60)

    asyncio.run(soon())


async def rest(job):
    parts = []
    while some := await job.parts():
        parts += some
    return parts


def text(parts, choice=0):
    return "".join(part.piece.text for part in parts if part.choice == choice)


def test_weights_change_between_two_tokens_and_every_part_names_its_own(bench):
    b = bench()

    async def work():
        job = b.job(n=4)
        b.thread.start(job)
        b.say(1)  # the prompt; the first token comes of it
        b.say(1)
        parts = await job.parts()
        while len(parts) < 2:
            parts += await job.parts()
        # The thread waits in the third step, whose weights it took before.
        b.source.version = 5
        b.say(3)
        parts += await rest(job)
        assert text(parts) in ("aaaf", "aaff")
        assert [part.loaded.version for part in parts] == [
            0 if letter == "a" else 5 for letter in text(parts)
        ]
        assert parts[-1].piece.finish_reason == "length"

    run(work())


def test_pinned_answers_that_follow_each_other_do_not_keep_old_weights_for_ever(bench, monkeypatch):
    monkeypatch.setattr(engine_thread, "PINNED_S", 0.0)
    b = bench("pinned_per_sequence", batch_size=2)

    async def work():
        first = b.job(n=8)
        b.thread.start(first)
        b.say(2)
        parts = await first.parts()
        b.source.version = 5
        b.say(1)  # a step that had begun
        second = b.job(n=2)
        b.thread.start(second)  # there is a place, but it would get the old weights
        b.say(20)
        assert text(parts + await rest(first)) == "a" * 8
        assert text(await rest(second)) == "ff"

    run(work())


def test_weights_that_are_not_finite_end_answers_until_newer_ones_are_there(bench):
    b = bench()

    async def work():
        b.say(100)
        b.backend.letter = np.nan
        jobs = [b.job(), b.job()]
        for job in jobs:
            b.thread.start(job)
            with pytest.raises(Diverged):
                await rest(job)
        assert "not finite" in b.thread.trouble
        b.source.version = 3
        while b.thread.trouble:  # nobody asks for anything
            await asyncio.sleep(0.01)
        b.thread.start(job := b.job())
        assert text(await rest(job)) == "dddd"

    run(work())


def test_an_error_of_the_program_is_told_as_such_and_printed(bench, capfd):
    b = bench()

    async def work():
        b.say(100)
        b.backend.error = ZeroDivisionError("of a kernel")
        b.thread.start(job := b.job())
        with pytest.raises(ServerFailed, match="its terminal shows the error"):
            await rest(job)
        assert b.thread.trouble == ""  # the weights are well
        b.backend.error = None
        b.thread.start(job := b.job())
        assert text(await rest(job)) == "aaaa"

    run(work())
    assert "ZeroDivisionError: of a kernel" in capfd.readouterr().err


def test_a_source_that_breaks_ends_the_thread_with_its_error(bench, monkeypatch):
    b = bench()

    def broken():
        raise OSError("the run's folder is gone")

    monkeypatch.setattr(b.source, "ended", broken)
    for _ in range(600):
        if b.thread.died is not None:
            break
        threading.Event().wait(0.05)
    b.thread.stop()
    assert "folder is gone" in str(b.thread.died)
    assert b.source.is_closed


@pytest.mark.parametrize("stream", [False, True])
def test_a_stream_is_refused_with_the_status_of_the_whole_answer(bench, stream):
    b = bench()
    api = Api(b.thread, b.thread.wait(), ServeConfig(), None)
    fields = {"model": "letters", "prompt": "ab", "stream": stream}

    async def work():
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            b.say(100)
            b.backend.letter = np.nan
            answer = await client.post("/v1/completions", json=fields)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_finite")
            health = await client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "trouble")
            wrong = await client.post("/v1/completions", json=fields | {"prompt": [999]})
            assert wrong.status_code == 400

    run(work())
