"""A run ends within its budget of time, with its evaluation, a checkpoint and a sample."""

import itertools
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mlxhog import train
from mlxhog.arena.control import RECORD, Command, Ring
from mlxhog.arena.process import monotonic_ns
from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.cli.train import summary
from mlxhog.report.metrics import Activity
from mlxhog.training import checkpoints, deadlines, trainer, worker
from mlxhog.training.deadlines import Deadlines
from mlxhog.training.evaluation import HeldOutTexts, TextJobs
from mlxhog.training.gradients import Gradients
from tests.training.small import end_the_time_when, small_config


@pytest.mark.slow
def test_the_last_evaluation_needs_no_record_in_any_ring(tmp_path, monkeypatch):
    # All records are lost, as where the supervisor stalls while workers fill their rings.
    monkeypatch.setattr(Ring, "drain", lambda ring: np.empty(0, RECORD))
    result = train(small_config(tmp_path, steps=4, eval_every="1h"))
    assert (result.status, result.val_at_end, result.final_share) == ("done", True, 1.0)
    assert result.val_bits_per_byte is not None


@pytest.mark.slow
def test_an_evaluation_without_time_says_that_it_covers_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Deadlines, "evaluation_ns", lambda deadlines, **_: 1)
    result = train(small_config(tmp_path, steps=4, eval_every="1h"))
    assert (result.status, result.val_at_end, result.val_bits_per_byte) == ("done", False, None)
    assert result.to_json()["final_bits_per_byte"] is None
    assert "held-out text: no time was left to evaluate it" in summary(result)


@pytest.mark.slow
def test_the_last_line_names_the_fixed_part_and_the_larger_score_each_with_its_share(tmp_path):
    result = train(small_config(tmp_path, steps=4, eval_every="1h"))
    assert (result.val_tokens, result.val_bytes, result.final_tokens) == (1024, 1024, 3113)
    bits, final = result.val_bits_per_byte, result.final_bits_per_byte
    part = f"{bits:.3f} bits per byte of the same 33% as in every evaluation"
    assert f"held-out text: {part}; {final:.3f} of all of it\n" in summary(result)
    cut = replace(result, final_share=0.38)
    assert f"; {final:.3f} of 38%\n" in summary(cut)
    early = replace(result, val_step=2, final_bits_per_byte=None)
    at = "bits per byte at step 2 of 4 of the same 33% as in every evaluation"
    assert f"{bits:.3f} {at}; no time was left to evaluate the end" in summary(early)
    whole = replace(result, val_share=1.0, final_bits_per_byte=None)
    assert f"held-out text: {bits:.3f} bits per byte\n" in summary(whole)


def that_is_killed_in_the_larger_score(job):
    """A worker that is killed when it begins the larger score. Children import it."""
    score = HeldOutTexts.score

    def killed(texts, backend, place):
        if place >= texts.part.n_batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return score(texts, backend, place)

    HeldOutTexts.score = killed
    worker.main(job)


@pytest.mark.slow
def test_a_complete_run_whose_workers_keep_dying_in_the_larger_score_is_done_without_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(worker, "main", that_is_killed_in_the_larger_score)
    messages = Messages()
    config = small_config(tmp_path, steps=4, eval_every="1h", restarts=1)
    result = train(config, observer=messages)
    assert (result.status, result.steps, result.restarts) == ("done", 4, 1)
    assert (result.val_at_end, result.val_tokens) == (True, 1024)
    assert result.final_bits_per_byte is None
    (line,) = [text for text in messages if "larger held-out score" in text]
    why = "worker 1 (mlx:cpu) died 2 times in 10 minutes (last: signal SIGKILL"
    assert line.startswith(f"the larger held-out score was left out: {why}")
    assert Run(Path(result.run)).read_status()["status"] == "done"


def test_a_slow_start_shortens_a_training_unless_it_is_to_have_the_whole_time():
    began_ns = monotonic_ns() - int(40e9)
    cut, whole = (Deadlines(began_ns, 60.0, whole=whole) for whole in (False, True))
    assert cut.training_s(save_s=0.0, evaluates=False, samples=False) == pytest.approx(
        60 + 10 - 3 - 40, abs=1
    )
    assert whole.training_s(save_s=0.0, evaluates=False, samples=False) == 60.0


class Messages(list[str]):
    """An observer that keeps a run's messages."""

    def __call__(self, progress):
        if progress.message is not None:
            self.append(progress.message)


@pytest.mark.slow
def test_a_run_whose_start_took_much_of_its_time_says_how_much_and_what_is_left(
    tmp_path, monkeypatch
):
    class AfterASlowStart(Deadlines):
        def __init__(self, began_ns, seconds, *, whole):
            super().__init__(began_ns - int(1000e9), seconds, whole=whole)

    messages = Messages()
    quick = train(small_config(tmp_path, steps=2, time=3000), observer=messages)
    assert not [text for text in messages if text.startswith("start-up")]
    assert quick.start_s is not None
    assert quick.to_json()["start_s"] == round(quick.start_s, 3) > 0
    assert quick.first_step_s is not None
    assert quick.start_s < quick.first_step_s < quick.start_s + quick.seconds

    monkeypatch.setattr(trainer, "Deadlines", AfterASlowStart)
    slow = train(small_config(tmp_path, steps=2, time=3000), observer=messages)
    (line,) = [text for text in messages if text.startswith("start-up")]
    assert line.startswith("start-up took 1")
    assert " s of 3000 s, which leaves " in line
    assert slow.start_s is not None
    assert slow.start_s - 1000 == pytest.approx(quick.start_s, abs=900)


class TimeIsOver(Deadlines):
    """Deadlines of a run whose end took longer than its remaining time."""

    def _rest_s(self):
        return -5.0


@pytest.mark.slow
def test_a_sample_is_written_in_the_end_however_late_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "Deadlines", TimeIsOver)
    config = small_config(tmp_path, steps=4, time=3000, sample_every="1h", eval_every="1h")
    result = train(config)
    assert (result.status, result.steps) == ("done", 4)
    assert result.sample is not None
    assert result.sample.startswith("The")


@pytest.mark.slow
def test_another_worker_writes_the_sample_where_one_dies_over_it(tmp_path, monkeypatch):
    killed = []

    def kill_the_sampling_worker(progress):
        if progress.doing is not None and progress.doing.activity == Activity.SAMPLING:
            killed[len(killed) :] = [] if killed else [progress.workers[0].pid]
            monkeypatch.setattr(worker, "main", plain)
            with suppress(ProcessLookupError):
                os.kill(killed[0], signal.SIGKILL)

    plain = worker.main
    monkeypatch.setattr(worker, "main", that_never_ends_a_sample)
    config = small_config(tmp_path, steps=4, sample_every="1h")
    result = train(config, observer=kill_the_sampling_worker)
    assert killed
    assert result.sample is not None
    assert result.sample.startswith("The")


def that_never_ends_a_sample(job):
    """A worker that hangs over a sample. Children import it."""
    TextJobs._sample = lambda jobs: time.sleep(600)
    worker.main(job)


def that_is_killed_over_a_sample(job):
    """A worker that is killed when it begins a sample. Children import it."""
    TextJobs._sample = lambda jobs: os.kill(os.getpid(), signal.SIGKILL)
    worker.main(job)


@pytest.mark.slow
def test_a_complete_run_whose_workers_keep_dying_over_its_sample_is_done_without_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(worker, "main", that_is_killed_over_a_sample)
    messages = Messages()
    options = {"workers": "mlx:cpu*2", "steps": 4, "sample_every": "1h", "restarts": 0}
    result = train(small_config(tmp_path, **options), observer=messages)
    assert (result.status, result.steps, result.sample) == ("done", 4, None)
    (line,) = [text for text in messages if text.startswith("no sample")]
    assert "(mlx:cpu) died 1 times in 10 minutes (last: signal SIGKILL" in line
    assert line.endswith("; mlxhog generate writes one")


IN_HAND = "last-step-in-hand"


def with_a_step_beyond_the_time(job, last):
    """A worker whose last gradient ends half a second after training. Children import it."""
    whole, calls = Gradients.of, itertools.count(1)

    def slow(gradients, batches):
        if next(calls) == last:
            (job.run_dir / IN_HAND).touch()
            while gradients._arena.counters.load("command") == Command.TRAIN:
                time.sleep(0.01)
            time.sleep(0.5)
        return whole(gradients, batches)

    Gradients.of = slow
    worker.main(job)


def end_amid_step(monkeypatch, tmp_path, number):
    """Let the time of a run be over once its only worker computes this gradient."""
    main = partial(with_a_step_beyond_the_time, last=number)
    monkeypatch.setattr(worker, "main", main)
    end_the_time_when(monkeypatch, lambda: any((tmp_path / "runs").glob(f"*/{IN_HAND}")))


@pytest.mark.slow
def test_the_last_worker_is_waited_for_since_it_evaluates_and_writes_the_sample(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer, "GRACE_S", 0.1)
    end_amid_step(monkeypatch, tmp_path, number=2)
    ends = {"steps": None, "time": 600.0, "sample_every": "1h", "eval_every": "1h"}
    result = train(small_config(tmp_path, **ends))
    assert (result.status, result.steps) == ("done", 2)
    assert result.val_share
    assert result.sample


NOW_NS = 10**12


def test_a_training_leaves_time_for_the_last_evaluation_which_has_it_however_late_it_is(
    monkeypatch,
):
    monkeypatch.setattr(deadlines, "monotonic_ns", lambda: NOW_NS)
    begun = Deadlines(NOW_NS - int(12e9), 60.0)
    trained_s = begun.training_s(save_s=0.0, evaluates=True, samples=False, evaluation_s=4.0)
    assert trained_s == 60 + 10 - 3 - 12 - 2 * 4
    trained_s = begun.training_s(save_s=0.0, evaluates=False, samples=False, evaluation_s=4.0)
    assert trained_s == 60 + 10 - 3 - 12
    late = Deadlines(NOW_NS - int(80e9), 60.0)
    left_ns = late.evaluation_ns(parts=1, trained_s=1.0, least_s=5.0) - NOW_NS
    assert left_ns == 5e9


@pytest.mark.slow
def test_a_step_that_exceeds_the_time_is_abandoned_and_its_batch_returned(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "GRACE_S", 0.5)
    stopped = []

    def stop_the_second_worker(progress):
        second = progress.workers[1]
        if progress.step >= 1 and not stopped:
            stopped.append(second.pid)
            os.kill(second.pid, signal.SIGSTOP)

    config = small_config(
        tmp_path,
        workers="mlx:cpu*2",
        write="racy",  # without locks, for which the other worker would wait
        steps=None,
        time=600.0,
        eval_every="1h",
        sample_every="1h",
    )
    end_the_time_when(monkeypatch, lambda: bool(stopped))
    result = train(config, observer=stop_the_second_worker)
    assert stopped
    assert (result.status, result.val_at_end, result.restarts) == ("done", True, 0)
    assert result.checkpoint is not None
    state = checkpoint.load(Path(result.checkpoint)).state
    ledger = state["ledger"]
    tickets = ledger["epoch"] * ledger["n"] + ledger["watermark"] + len(ledger["done"])
    # A worker that was stopped amid its write counts as torn, as after a kill there.
    assert result.steps <= tickets <= result.steps + 1
    assert state["over"] is True


@pytest.mark.slow
def test_a_first_step_is_waited_for_as_long_as_the_run_still_ends_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "GRACE_S", 0.1)
    end_amid_step(monkeypatch, tmp_path, number=1)
    result = train(small_config(tmp_path, steps=None, time=600.0))
    assert (result.status, result.steps) == ("done", 1)


def test_a_first_step_leaves_time_for_its_checkpoint(monkeypatch):
    monkeypatch.setattr(deadlines, "monotonic_ns", lambda: NOW_NS)
    late = Deadlines(NOW_NS - int(9e9), 6.0)
    assert late.step_s(1.0) == 6 + 10 - 3 - 9 - 1


@pytest.mark.slow
def test_the_checkpoint_that_time_is_left_for_is_as_large_as_the_one_that_is_saved(
    tmp_path, monkeypatch
):
    sizes = []
    n_bytes = checkpoints.n_bytes

    def noted(plan, n_slots):
        sizes.append(n_bytes(plan, n_slots))
        return sizes[-1]

    monkeypatch.setattr(checkpoints, "n_bytes", noted)
    options = {"workers": "mlx:cpu*2", "strategy": "sync", "steps": 2, "time": 60}
    result = train(small_config(tmp_path, **options))
    assert result.checkpoint is not None
    saved = sum(file.stat().st_size for file in Path(result.checkpoint).glob("*.safetensors"))
    assert sizes[0] == pytest.approx(saved, rel=0.1)


@pytest.mark.slow
def test_training_leaves_time_for_a_large_checkpoint_but_takes_a_fifth_of_it(tmp_path, monkeypatch):
    limits = []
    training_s = Deadlines.training_s

    def noted(self, **values):
        limits.append(training_s(self, **values))
        return limits[-1]

    monkeypatch.setattr(checkpoints, "n_bytes", lambda plan, n_slots: 10**15)
    monkeypatch.setattr(Deadlines, "training_s", noted)
    result = train(small_config(tmp_path, steps=None, time=2.0))
    assert limits == [2.0 / 5]
    assert result.checkpoint is not None
