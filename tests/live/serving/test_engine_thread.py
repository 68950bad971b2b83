"""The engine's thread: newer weights between tokens, errors of the model, many clients."""

import asyncio
import threading
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.decoding.engine import Request
from mlxhog.decoding.options import Sampling
from mlxhog.live.serving import engine_thread
from mlxhog.live.serving.app import Api
from mlxhog.live.serving.config import ServeConfig
from mlxhog.live.serving.engine_thread import AnswerJob, EngineThread
from mlxhog.live.serving.requests import RefusedRequest
from mlxhog.live.source import Loaded, WeightSource
from tests.decoding.readers import Reader
from tests.saved import SMALL
from tests.threads import wait_until


class Letter(Reader):
    """Says one letter for ever: that of its weights. The test lets it say each."""

    letter = ord("a")
    error = None

    def __init__(self):
        super().__init__()
        self.may_say = threading.Semaphore(0)

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
    version = loaded = 0
    is_closed = False

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
        self.backend, self.source = Letter(), Letters()
        self.source.mode = mode
        model = SimpleNamespace(
            backend=self.backend, tokenizer=ByteTokenizer(), name="letters", end_tokens=frozenset(),
            config=SMALL,
        )  # fmt: skip
        monkeypatch.setattr(engine_thread, "open_source", lambda *_, **__: (self.source, model))
        monkeypatch.setattr("mlxhog.live.source.LOADING_PART", 1e9)  # load whenever newer
        self.thread = EngineThread("letters", ServeConfig(**how))
        assert self.thread.wait().name == self.thread.weights["weights"] == "letters"

    def begin(self, n=4):
        sampling = Sampling(max_new_tokens=n, temperature=0)
        job = AnswerJob([Request(prompt=[1, 2], sampling=sampling)])
        self.thread.start(job)
        return job

    def say(self, tokens):
        self.backend.may_say.release(tokens)


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
        await asyncio.wait_for(work(), timeout=60)

    asyncio.run(soon())


async def rest(job):
    parts = []
    while some := await job.parts():
        parts += some
    return parts


def text(parts):
    return "".join(part.piece.text for part in parts)


def test_weights_change_between_two_tokens_and_every_part_names_its_own(bench):
    b = bench()

    @run
    async def work():
        job = b.begin(n=4)
        b.say(2)  # the prompt, of which the first token comes, and a token
        parts = await job.parts()
        while len(parts) < 2:
            parts += await job.parts()
        # The thread waits in the third step, whose weights it took before.
        b.source.version = 5
        b.say(3)
        parts += await rest(job)
        assert text(parts) in ("aaaf", "aaff")
        versions = [0 if letter == "a" else 5 for letter in text(parts)]
        assert [part.loaded.version for part in parts] == versions
        assert parts[-1].piece.finish_reason == "length"


def test_pinned_answers_that_follow_each_other_do_not_keep_old_weights_for_ever(bench, monkeypatch):
    monkeypatch.setattr(engine_thread, "PINNED_S", 0.0)
    b = bench("pinned_per_sequence", batch_size=2)

    @run
    async def work():
        first = b.begin(n=8)
        b.say(2)
        parts = await first.parts()
        b.source.version = 5
        b.say(1)  # a step that had begun
        second = b.begin(n=2)  # there is a place, but it would get the old weights
        b.say(20)
        assert text(parts + await rest(first)) == "a" * 8
        assert text(await rest(second)) == "ff"


def test_weights_that_are_not_finite_are_a_status_until_newer_ones_are_there(bench):
    """A stream is refused with the status of the whole answer."""
    b = bench()
    api = Api(b.thread, b.thread.wait(), ServeConfig(), None)

    @run
    async def work():
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

            async def ask(**fields):
                body = {"model": "letters", "prompt": "ab", "max_tokens": 4} | fields
                answer = await client.post("/v1/completions", json=body)
                return answer.status_code, answer.json()

            b.say(100)
            b.backend.letter = np.nan
            for stream in (False, True):
                status, body = await ask(stream=stream)
                assert (status, body["error"]["code"]) == (503, "not_finite")
            health = await client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "trouble")
            for wrong in (999, 2**40, 2**70):
                assert (await ask(prompt=[wrong]))[1]["error"]["param"] == "prompt"
            b.source.version = 3
            while b.thread.trouble:  # nobody asks for anything
                await asyncio.sleep(0.01)
            status, body = await ask(temperature=0)
            assert (status, body["choices"][0]["text"]) == (200, "dddd")


def test_an_error_of_the_program_is_told_as_such_and_printed(bench, capfd):
    b = bench()

    @run
    async def work():
        b.say(100)
        b.backend.error = ZeroDivisionError("of a kernel")
        with pytest.raises(RefusedRequest, match="its terminal shows the error"):
            await rest(b.begin())
        assert b.thread.trouble == ""  # the weights are well
        b.backend.error = None
        assert text(await rest(b.begin())) == "aaaa"

    assert "ZeroDivisionError: of a kernel" in capfd.readouterr().err


def test_a_source_that_breaks_ends_the_thread_with_its_error(bench, monkeypatch):
    b = bench()

    def broken():
        raise OSError("the run's folder is gone")

    monkeypatch.setattr(b.source, "ended", broken)
    assert "folder is gone" in str(wait_until(lambda: b.thread.died))
