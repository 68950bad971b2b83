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
from mlxhog.errors import Diverged
from mlxhog.live.serving import engine_thread
from mlxhog.live.serving.app import Api
from mlxhog.live.serving.config import ServeConfig
from mlxhog.live.serving.engine_thread import AnswerJob, EngineThread
from mlxhog.live.serving.requests import RefusedRequest
from mlxhog.live.source import Loaded, WeightSource
from tests.decoding.readers import Reader
from tests.saved import SMALL
from tests.threads import wait_until


class Letters(Reader, WeightSource):
    """A model and its weights: version n says the n-th letter for ever, as often as the test lets.

    Newer weights have no error.
    """

    whose, version, loaded, error, is_closed = "letters", 0, 0, None, False

    def __init__(self):
        super().__init__()
        self.may_say = threading.Semaphore(0)

    def logits(self, tokens, state):
        assert self.may_say.acquire(timeout=30)
        if self.error is not None:
            raise self.error
        return super().logits(tokens, state)

    def says(self, history):
        return 40 * (np.arange(320) == ord("a") + self.loaded).astype(np.float32)

    def newest(self):
        return self.version

    def has_newer(self):
        return self.version != self.loaded

    def load(self, backend):
        self.loaded, self.error = self.version, None
        return Loaded(version=self.version, oldest=self.version)

    def ended(self):
        return False

    def close(self):
        self.is_closed = True


@pytest.fixture
def start(monkeypatch):
    """Starts an engine's thread with a model that waits for the test; returns both."""
    started = []

    def begin(mode="double_buffer", **how):
        letters = Letters()
        letters.mode = mode
        model = SimpleNamespace(
            backend=letters, tokenizer=ByteTokenizer(), name="letters", end_tokens=frozenset(),
            config=SMALL,
        )  # fmt: skip
        monkeypatch.setattr(engine_thread, "open_source", lambda *_, **__: (letters, model))
        monkeypatch.setattr("mlxhog.live.source.LOADING_PART", 1e9)  # load whenever newer
        thread = EngineThread("letters", ServeConfig(**how))
        assert thread.wait().name == thread.weights["weights"] == "letters"
        started.append((letters, thread))
        return letters, thread

    yield begin
    for letters, thread in started:
        letters.may_say.release(10**6)
        thread.stop()
        assert letters.is_closed


def asked(thread, n=4):
    """The job of one request for an answer."""
    job = AnswerJob([Request(prompt=[1, 2], sampling=Sampling(max_new_tokens=n, temperature=0))])
    thread.start(job)
    return job


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


def test_weights_change_between_two_tokens_and_every_part_names_its_own(start):
    letters, thread = start()

    @run
    async def work():
        job = asked(thread)
        letters.may_say.release(2)  # the prompt, of which the first token comes, and a token
        parts = await job.parts()
        while len(parts) < 2:
            parts += await job.parts()
        # The thread waits in the third step, whose weights it took before.
        letters.version = 5
        letters.may_say.release(3)
        parts += await rest(job)
        assert text(parts) in ("aaaf", "aaff")
        versions = [0 if letter == "a" else 5 for letter in text(parts)]
        assert [part.loaded.version for part in parts] == versions
        assert parts[-1].piece.finish_reason == "length"


def test_pinned_answers_that_follow_each_other_do_not_keep_old_weights_for_ever(start, monkeypatch):
    monkeypatch.setattr(engine_thread, "PINNED_S", 0.0)
    letters, thread = start("pinned_per_sequence", batch_size=2)

    @run
    async def work():
        first = asked(thread, n=8)
        letters.may_say.release(2)
        parts = await first.parts()
        letters.version = 5
        letters.may_say.release(1)  # a step that had begun
        second = asked(thread, n=2)  # there is a place, but it would get the old weights
        letters.may_say.release(20)
        assert text(parts + await rest(first)) == "a" * 8
        assert text(await rest(second)) == "ff"


def test_weights_that_are_not_finite_are_a_status_until_newer_ones_are_there(start):
    """A stream is refused with the status of the whole answer."""
    letters, thread = start()
    api = Api(thread, thread.wait(), ServeConfig(), None)

    @run
    async def work():
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

            async def ask(**fields):
                body = {"model": "letters", "prompt": "ab", "max_tokens": 4} | fields
                answer = await client.post("/v1/completions", json=body)
                return answer.status_code, answer.json()

            letters.may_say.release(100)
            letters.error = Diverged("the logits are not finite")
            for stream in (False, True):
                status, body = await ask(stream=stream)
                assert (status, body["error"]["code"]) == (503, "not_finite")
            health = await client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "trouble")
            for wrong in (999, 2**40, 2**70):
                assert (await ask(prompt=[wrong]))[1]["error"]["param"] == "prompt"
            letters.version = 3
            while thread.trouble:  # no client asks for anything
                await asyncio.sleep(0.01)
            status, body = await ask(temperature=0)
            assert (status, body["choices"][0]["text"]) == (200, "dddd")


def test_an_error_of_the_program_is_told_as_such_and_printed(start, capfd):
    letters, thread = start()

    @run
    async def work():
        letters.may_say.release(100)
        letters.error = ZeroDivisionError("of a kernel")
        with pytest.raises(RefusedRequest, match="its terminal shows the error"):
            await rest(asked(thread))
        assert thread.trouble == ""  # the weights are well
        letters.error = None
        assert text(await rest(asked(thread))) == "aaaa"

    assert "ZeroDivisionError: of a kernel" in capfd.readouterr().err


def test_a_source_that_breaks_ends_the_thread_with_its_error(start, monkeypatch):
    letters, thread = start()

    def broken():
        raise OSError("the run's folder is gone")

    monkeypatch.setattr(letters, "ended", broken)
    assert "folder is gone" in str(wait_until(lambda: thread.died))
