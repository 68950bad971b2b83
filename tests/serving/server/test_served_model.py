"""The served model: newer weights between tokens, errors of the model, many clients."""

import asyncio
import shutil
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from starlette.responses import JSONResponse

from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.decoding.engine import GenerationRequest
from mlxhog.decoding.options import Sampling
from mlxhog.errors import Diverged
from mlxhog.serving.model import LoadedModel
from mlxhog.serving.server import served_model
from mlxhog.serving.server.app import Api
from mlxhog.serving.server.config import ServeConfig
from mlxhog.serving.server.replies import Reply
from mlxhog.serving.server.requests import RefusedRequest
from mlxhog.serving.server.served_model import AnswerJob, ServedModel
from mlxhog.serving.source import LoadedWeights, WeightSource
from tests.decoding.test_engine import HistoryModel
from tests.saved import SMALL, save, saved_run


class Letters(HistoryModel, WeightSource):
    """A model and its weights: version n says the n-th letter for ever, as often as the test lets.

    Newer weights have no error.
    """

    name = "letters"
    version, loaded, error, is_closed = 0, 0, None, False

    def __init__(self):
        super().__init__()
        self.may_say = threading.Semaphore(0)

    def logits(self, tokens, state):
        assert self.may_say.acquire(timeout=120)
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
        return LoadedWeights(version=self.version, oldest=self.version)

    def ended(self):
        return False

    def close(self):
        self.is_closed = True


@pytest.fixture
def start(monkeypatch):
    """Serves a model that waits for the test; returns its letters and the served model."""
    started = []

    def begin(mode="double_buffer", **how):
        letters = Letters()
        letters.mode = mode
        model = LoadedModel(letters, letters, SMALL, ByteTokenizer(), Path("letters"))
        monkeypatch.setattr(served_model, "load", lambda *_, **__: model)
        monkeypatch.setattr("mlxhog.serving.source.LOADING_SHARE", 1e9)  # load whenever newer
        served = ServedModel("letters", ServeConfig(**how))
        assert served.model.name == served.weights["weights"] == "letters"
        started.append((letters, served))
        return letters, served

    yield begin
    for letters, served in started:
        letters.may_say.release(10**6)
        served.close()
        assert letters.is_closed


def asked(served, n=4, model=""):
    """The job of one request for an answer."""
    sampling = Sampling(max_new_tokens=n, temperature=0)
    job = AnswerJob([GenerationRequest(prompt=[1, 2], sampling=sampling)], model)
    served.start(job)
    return job


def run(served, work):
    """Do the work of a test while the answers are written."""

    async def beside():
        tasks = [asyncio.create_task(one) for one in (work(), served.run())]
        done, _ = await asyncio.wait(tasks, timeout=120, return_when=asyncio.FIRST_COMPLETED)
        assert done, "no answer"
        for task in done:
            task.result()

    asyncio.run(beside())


async def rest(job):
    parts = []
    while some := await job.parts():
        parts += some
    return parts


def text(parts):
    return "".join(part.piece.text for part in parts)


def test_weights_change_between_two_tokens_and_every_part_names_its_own(start):
    letters, served = start()

    async def work():
        job = asked(served)
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

    run(served, work)


def test_pinned_answers_that_follow_each_other_do_not_keep_old_weights_for_ever(start, monkeypatch):
    monkeypatch.setattr(served_model, "PINNED_S", 0.0)
    letters, served = start("pinned_per_sequence", batch_size=2)

    async def work():
        first = asked(served, n=8)
        letters.may_say.release(2)
        parts = await first.parts()
        letters.version = 5
        letters.may_say.release(1)  # a step that had begun
        second = asked(served, n=2)  # there is a place, but it would get the old weights
        letters.may_say.release(20)
        assert text(parts + await rest(first)) == "a" * 8
        assert text(await rest(second)) == "ff"

    run(served, work)


def test_pinned_answers_start_at_once_while_newer_weights_cannot_be_loaded_yet(start, monkeypatch):
    monkeypatch.setattr(served_model, "PINNED_S", 0.0)
    letters, served = start("pinned_per_sequence", batch_size=2)
    monkeypatch.setattr("mlxhog.serving.source.LOADING_SHARE", 1e-12)  # the next load: in a year

    async def work():
        letters.version = 1
        first = asked(served, n=50)
        letters.may_say.release(2)
        parts = await first.parts()
        letters.version = 5
        letters.may_say.release(100)
        assert text(await rest(asked(served, n=2))) == "bb"
        assert first.n_open == 1  # it is not waited for
        assert text(parts + await rest(first)) == "b" * 50

    run(served, work)


def test_health_says_that_a_run_trains_whose_checkpoints_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("mlxhog.serving.source.LOADING_SHARE", 1e9)
    trained = saved_run(tmp_path)
    how = {"runs_dir": str(tmp_path), "mode": "checkpoint", "backend": "torch:cpu"}
    served = ServedModel(trained.name, ServeConfig(**how))

    async def until(training, version):
        while (served.weights["training"], served.weights["newest"]) != (training, version):
            await asyncio.sleep(0.01)

    async def work():
        await until(False, 0)
        with trained.lock():
            await until(True, 0)
            save(trained, step=5)
            shutil.rmtree(trained.checkpoints / "step-00000000")
            await until(True, 5)
        await until(False, 5)

    try:
        run(served, work)
    finally:
        served.close()


def test_many_scores_and_cancels_stand_in_no_other_client_s_way(start, monkeypatch):
    """Scores are formatted in threads; answers are canceled in the event loop, which owns them."""
    letters, served = start()
    api, formats, cancels = Api(served, ServeConfig(), None), [], []

    def noted(owner, name, threads):
        before = getattr(owner, name)

        def call(*args, **how):
            threads.append(threading.current_thread())
            return before(*args, **how)

        monkeypatch.setattr(owner, name, call)

    noted(Reply, "_token_text", formats)
    noted(JSONResponse, "render", formats)
    noted(served, "cancel", cancels)

    async def work():
        letters.may_say.release(10**6)
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for stream in (False, True):
                body = {"prompt": "ab" * 50, "echo": True, "logprobs": 1, "max_tokens": 0}
                answer = await client.post("/v1/completions", json=body | {"stream": stream})
                assert answer.status_code == 200
                assert answer.text.count('"text_offset"') == 1

    run(served, work)
    assert len(formats) > 200
    assert threading.main_thread() not in formats
    assert set(cancels) == {threading.main_thread()}
    assert len(cancels) == 3  # a stream's end, and the end of its response


def test_weights_that_are_not_finite_are_a_status_until_newer_ones_are_there(start):
    """A stream is refused with the status of the whole answer."""
    letters, served = start()
    api = Api(served, ServeConfig(), None)

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
            while served.trouble:  # no client asks for anything
                await asyncio.sleep(0.01)
            status, body = await ask(temperature=0)
            assert (status, body["choices"][0]["text"]) == (200, "dddd")

    run(served, work)


def test_an_answer_that_ends_beside_an_error_of_another_model_is_sent(start):
    letters, served = start()
    engine = served._engines["other"] = served_model.DecodingEngine(
        other := Letters(), tokenizer=ByteTokenizer(), batch_size=2, prefill_chunk=8
    )
    other.error = Diverged("the logits are not finite")

    async def work():
        letters.may_say.release(100)
        other.may_say.release(100)
        whole, refused = asked(served, n=1), asked(served, model="other")
        assert text(await rest(whole)) == "a"
        with pytest.raises(RefusedRequest, match="not finite"):
            await rest(refused)
        assert not engine.is_busy

    run(served, work)


def test_an_error_of_the_program_is_told_as_such_and_printed(start, capfd):
    letters, served = start()

    async def work():
        letters.may_say.release(100)
        letters.error = ZeroDivisionError("of a kernel")
        with pytest.raises(RefusedRequest, match="its terminal shows the error"):
            await rest(asked(served))
        assert served.trouble == ""  # the weights are well
        letters.error = MemoryError()
        with pytest.raises(RefusedRequest, match="the memory is used up: .* available") as refusal:
            await rest(asked(served))
        assert refusal.value.status_code == 503
        letters.error = None
        assert text(await rest(asked(served))) == "aaaa"

    run(served, work)
    assert "ZeroDivisionError: of a kernel" in capfd.readouterr().err


def test_a_source_that_breaks_ends_the_answers_with_its_error(start, monkeypatch):
    letters, served = start()

    def broken():
        raise OSError("the run's folder is gone")

    monkeypatch.setattr(letters, "ended", broken)
    with pytest.raises(OSError, match="folder is gone"):
        asyncio.run(asyncio.wait_for(served.run(), 60))
