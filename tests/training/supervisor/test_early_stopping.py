"""The best checkpoint of a run, kept and named, and early stopping."""

from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from mlxhog.checkpoint import checkpoint
from mlxhog.checkpoint.run import Run
from mlxhog.checkpoint.run_files import BestScore
from mlxhog.cli import main
from mlxhog.config.config import TrainConfig
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.display import card
from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.progress import Progress
from mlxhog.serving.opening import open_source
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.resume import Resumption
from mlxhog.training.supervisor import checkpoints
from mlxhog.training.supervisor.early_stopping import ValidationWatch
from mlxhog.training.supervisor.training import train
from tests.pairs import each_of
from tests.saved import SMALL, save, saved_run
from tests.training.small import Messages, small_config


def ends(watch, step, bits, save):
    state = Progress(val_bits_per_byte=bits, val_step=step)
    return watch.look(mock.Mock(evaluations=step + 1, state=state, val_nats=[]), save, print)


def test_a_best_that_could_not_be_saved_keeps_no_worse_one_from_being_saved():
    watch, saves = ValidationWatch(TrainConfig(eval_every=5, keep_best=True), None, ""), []
    for step, (bits, fits) in enumerate([(3.0, True), (1.0, False), (2.0, True), (2.5, True)]):
        assert not ends(watch, step, bits, lambda bits=bits, fits=fits: saves.append(bits) or fits)
    assert saves == [3.0, 1.0, 2.0]
    assert (watch.best.bits_per_byte, watch.best.step, watch.since) == (2.0, 2, 1)


@each_of(
    ("end", "more", "rose"),
    [
        (2.01, [], False), (2.03, [], True), (2.03, [1, 1, 1], True),  # too few: 1 %
        (2.01, [0.9, 1, 1.1, 1], True), (2.03, [9, -8, 8, -5], False),
    ],
)  # fmt: skip
def test_a_validation_loss_that_rose_by_more_than_its_noise_is_said_and_the_best_is_taken(
    tmp_path, end, more, rose
):
    run, messages = saved_run(tmp_path, step=0), []
    save(run, step=1, state={"best": {"bits_per_byte": 2.0, "step": 1}})
    checkpoint.mark_best(run, run.checkpoints / "step-00000001")
    last = save(run, step=2)
    watch = ValidationWatch(TrainConfig(eval_every=1), None, "")
    own = (40.0, 50.0, 60.0, 70.0)[: len(more)]
    watch.best = BestScore(bits_per_byte=2.0, step=1, nats=own)
    now = Progress(step=2, val_bits_per_byte=end, val_step=2, val_bytes=160)
    nats = [a + b for a, b in zip(own, more, strict=True)]
    watch.close(run, last, mock.Mock(val_nats=nats, progress=lambda: now), messages.append)
    assert checkpoint.best(run).name == "step-00000001"
    assert [line.startswith("validation loss rose") for line in messages] == [True] * rose
    result = {"steps": 2, "val_bits_per_byte": end}
    status = {"status": "done", "checkpoint": str(last), "result": result}
    run.write_status({**status, "best": watch.to_json()})
    chosen = checkpoint.choose(run)
    assert chosen == (checkpoint.best(run) if rose else last)
    assert run.model.resolve() == chosen.resolve()
    card.write(run, SMALL)
    how = {"weights": "float32", "mode": "checkpoint", "wait_s": 0, "say": print, "pause": print}
    source, *_, path = open_source(str(run.directory), tmp_path, **how)  # of generate, eval, serve
    source.close()
    assert path == chosen
    words = ["convert", str(run.directory), str(tmp_path / "hf"), "--format", "hf", "--quiet"]
    assert main(words) == 0
    of_best = (checkpoint.best(run) / "README.md").read_text()
    assert "2.000 bits per byte of validation text at step 1, the best of training" in of_best
    assert ("the best of training" in (tmp_path / "hf" / "README.md").read_text()) == rose


@pytest.fixture
def resumed(tmp_path, monkeypatch):
    """A call that resumes from step 10 of a run whose end, step 20, is its best.

    They are the run, the call's session, whose weights are zeros, its watch and its checkpoints.
    """
    run, text = saved_run(tmp_path, step=0), "some"
    for step in (10, 20):
        score = {"bits_per_byte": 1.5, "step": 10, "text": text}
        save(run, step=step, state={"best": score, "used": {"steps": step}})
    best = run.checkpoints / "step-00000020"
    checkpoint.mark_best(run, best)
    score = {"bits_per_byte": 1.0, "step": 20, "text": text}
    run.write_status({"status": "done", "checkpoint": str(best), "best": score})
    saved = checkpoint.load(run.checkpoints / "step-00000010")
    resumption = Resumption(TrainConfig(), run, saved, None)
    watch = ValidationWatch(TrainConfig(eval_every=5), resumption, text)
    session, spec = mock.Mock(), families.param_spec(SMALL)
    session.plan = mock.Mock(resumption=resumption, model=SMALL, base=None)
    session.plan.config, session.plan.data.tokenizer = TrainConfig(), ByteTokenizer()
    session.arena.layout.slots, session.network_bytes.return_value = spec, 0
    session.arena.param = lambda name: np.zeros(spec[name].shape, np.float32)
    session.paused.return_value = nullcontext(True)
    session.clock.seconds.return_value = 10.0
    monkeypatch.setattr(checkpoints, "dump", lambda *_: ({}, {"version": session.step}))
    saves = checkpoints.Checkpoints(session, mock.Mock(run=run), watch, None, mock.Mock())
    return run, session, watch, saves


def test_a_run_that_resumes_from_an_older_checkpoint_keeps_its_best_until_a_better_one(resumed):
    run, session, watch, saves = resumed
    assert (watch.best.bits_per_byte, watch.best.step) == (1.0, 20)
    session.step = 15
    assert not ends(watch, 15, 1.3, saves.save_best)
    assert checkpoint.best(run).name == "step-00000020"
    assert not ends(watch, 16, 0.9, saves.save_best)
    assert checkpoint.best(run).name == "step-00000015"
    assert checkpoint.load(checkpoint.best(run)).state["best"]["bits_per_byte"] == 0.9


def test_a_checkpoint_in_the_place_of_the_best_of_another_training_is_not_called_the_best(resumed):
    run, session, watch, saves = resumed
    session.step = 20
    last = saves.save()
    assert checkpoint.best(run) is None
    assert checkpoint.load(last).state["best"] is None
    now = Progress(step=20, val_bits_per_byte=1.6, val_step=20, val_bytes=160)
    watch.close(run, last, mock.Mock(val_nats=[], progress=lambda: now), print)
    assert checkpoint.best(run) == last
    assert (watch.best.bits_per_byte, watch.best.step) == (1.6, 20)


def test_a_new_best_in_the_place_of_another_and_a_second_save_of_it_stay_the_best(resumed):
    run, session, watch, saves = resumed
    session.step = 20
    assert not ends(watch, 20, 0.9, saves.save_best)
    saves.save()
    assert watch.best.bits_per_byte == 0.9
    assert checkpoint.load(checkpoint.best(run)).state["best"]["bits_per_byte"] == 0.9


def test_a_best_whose_weights_no_checkpoint_has_is_not_the_best_of_a_resume_that_keeps_one(resumed):
    run, session, _, saves = resumed
    (run.checkpoints / "best").unlink()  # as after --no-keep-best
    how = session.plan.resumption, "some"
    counted = ValidationWatch(TrainConfig(eval_every=5, keep_best=False), *how)
    assert counted.best.bits_per_byte == 1.5
    watch = ValidationWatch(TrainConfig(eval_every=5), *how)
    assert watch.best is None
    watch.best, session.step = BestScore(bits_per_byte=1.5, step=15, text="some"), 21
    now = Progress(step=21, val_bits_per_byte=3.4, val_step=21, val_bytes=160)
    last, messages = saves.save(), []  # the folder with the weights of step 15 was removed
    watch.close(run, last, mock.Mock(val_nats=[], progress=lambda: now), messages.append)
    assert checkpoint.best(run) == last
    assert (watch.best.bits_per_byte, watch.best.step, messages) == (3.4, 21, [])


@pytest.mark.parametrize(("every", "saved"), [("10s", [True, False, True]), (5, [True] * 3)])
def test_saves_of_the_best_at_an_interval_of_time_take_a_twentieth_of_it(
    tmp_path, monkeypatch, every, saved
):
    run, session, times = saved_run(tmp_path, step=1), mock.Mock(), iter([0, 2e9] * 3)
    session.plan.config.eval_every = TrainConfig(eval_every=every).eval_every
    session.clock.seconds.side_effect = [10.0, 39.0, 41.0]
    monkeypatch.setattr(checkpoints, "monotonic_ns", lambda: next(times))
    saves = checkpoints.Checkpoints(session, mock.Mock(run=run), None, None, None)
    saves.save_now_and_then = lambda what: run.checkpoints / "step-00000001"
    assert [saves.save_best() for _ in range(3)] == saved


def test_the_best_is_kept_by_default_where_a_run_evaluates():
    assert TrainConfig().keeps_best
    assert not TrainConfig(eval_every=0).keeps_best
    assert not TrainConfig(keep_best=False, patience=3).keeps_best


def test_a_loss_that_is_reached_ends_the_run_and_no_best_is_kept_unasked():
    watch = ValidationWatch(TrainConfig(eval_every=5, stop_at_loss=2.0, keep_best=False), None, "")
    assert [ends(watch, k, bits, pytest.fail) for k, bits in enumerate((2.1, 2.0))] == [False, True]
    assert "stop_at_loss is 2" in watch.ended


def test_a_loss_that_an_earlier_command_reached_does_not_end_a_resume_that_has_not_reached_it():
    watch = ValidationWatch(TrainConfig(eval_every=5, stop_at_loss=2.0, keep_best=False), None, "")
    watch.best = BestScore(bits_per_byte=1.95, step=100)
    states = [ends(watch, step, bits, pytest.fail) for step, bits in ((107, 2.1), (114, 1.98))]
    assert states == [False, True]
    assert "reached 1.980 bits per byte at step 114" in watch.ended


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A run that cannot get better, and its messages."""
    folder, messages = tmp_path_factory.mktemp("patient"), Messages()
    constant = {"lr": 1e-30, "schedule": "constant", "weight_decay": 0.0}
    config = small_config(folder, steps=100_000, eval_every=5, patience=2, **constant)
    return folder, train(config, observer=messages), messages


@pytest.mark.slow
def test_a_run_without_improvement_ends_early_and_its_best_is_found_by_name_and_path(
    patient, capsys
):
    folder, result, messages = patient
    assert result.status == "done"
    assert 15 <= result.steps < 100_000
    assert any("2 validation evaluations without improvement (patience)" in m for m in messages)
    run = Run(Path(result.run))
    best = checkpoint.best(run)
    assert best != checkpoint.latest(run)
    assert (run.checkpoints / "best").is_symlink()
    for spec in (f"{run.name}/best", "latest/best", str(run.checkpoints / "best")):
        assert checkpoint.locate(spec, folder / "runs") == best.resolve()
        assert checkpoint.resumable(spec, folder / "runs") == (run, best)
    words = ["generate", str(run.checkpoints / "best"), "--prompt", "lock", "--max-new-tokens", "3"]
    assert main([*words, "--backend", "mlx:cpu"]) == 0


@pytest.mark.slow
def test_a_run_resumes_from_its_best_and_a_finished_one_asks_for_a_budget(patient):
    folder, result, _ = patient
    saved = checkpoint.load(checkpoint.best(Run(Path(result.run))))
    config = small_config(folder, steps=3, eval_every=5, patience=2, resume=f"{result.run}/best")
    plan = make_plan(config)
    assert plan.resumption.checkpoint.step == saved.step
    watch = ValidationWatch(config, plan.resumption, plan.validation.text)
    assert watch.best.bits_per_byte == saved.state["best"]["bits_per_byte"]
    assert watch.best.nats
    assert ValidationWatch(config, plan.resumption, "another text").best is None
    with pytest.raises(ConfigError, match="without improvement"):
        make_plan(small_config(folder, steps=None, resume=result.run))
