"""Validation scores: of the same text, of a named step."""

import json
import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from mlxhog.arena.control import EVAL_ROUND
from mlxhog.checkpoint import manifest
from mlxhog.checkpoint.run import Run
from mlxhog.cli import main
from mlxhog.cli.train import summary
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.config.train_options import EMULATED
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter
from mlxhog.display.record import RunRecord
from mlxhog.display.run_page import tiles
from mlxhog.errors import WorkerFailed
from mlxhog.progress import NGRAM, Phase
from mlxhog.training.plan import validation_subset
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.validation_subset import texts_of
from mlxhog.training.supervisor import evaluations as evaluation
from mlxhog.training.supervisor.training import train
from mlxhog.training.worker import process
from mlxhog.training.worker.background_tasks import BackgroundTasks
from tests.display.sample_run import VALIDATION, lines, write_run
from tests.training.small import Messages, small_config


def validation_file(folder, n_bytes):
    path = folder / "val.bin"
    with TokenWriter(path, ByteTokenizer(), split="val", source="test") as writer:
        for k in range(40):
            writer.add(b"%02d" % k + b"x" * (n_bytes // 40 - 2))
    return TokenFile.open(path)


def test_the_size_of_the_part_follows_from_the_model_and_is_64_kib_where_it_can_be(tmp_path):
    file = validation_file(tmp_path, 1_000_000)
    for config, parameters, size in (
        (TrainConfig(time=36_000), 940_000, 65_536),
        (TrainConfig(steps=20), 10_400_000, 32_768),
        (TrainConfig(steps=20), 10**13, validation_subset.MIN_BYTES),
        (TrainConfig(steps=20, kernels=EMULATED), 940_000, 4_096),
        (TrainConfig(time=60, val_subset_tokens=5000), 10**13, 5000),
    ):
        assert validation_subset.choose_bytes(config, parameters, file) == size


def test_the_larger_text_is_all_of_it_or_as_much_as_a_model_scores_soon(tmp_path):
    file, config = validation_file(tmp_path, 40_000), TrainConfig(seq_len=50)
    assert texts_of(file, config, 1000, 8000)[1] is file
    assert texts_of(file, config, 50_000_000, 8000)[1].header["bytes"] < 30_000
    for parameters, asked, kernels in ((1000, 40_000, "auto"), (10**8, 8000, EMULATED)):
        assert len(texts_of(file, replace(config, kernels=kernels), parameters, asked)) == 1


class Asked:
    """Evaluations of a run of two workers for 100 s, which records of scored batches fill."""

    def __init__(self, **options):
        self.session, self.reporter, self.words = mock.Mock(), mock.Mock(), {}
        part = mock.Mock(batches=3)
        self.session.plan = mock.Mock(config=TrainConfig(**options), validation=part)
        self.session.strategy.workers = 2
        self.session.workers.n_ended.return_value = self.session.interrupts.return_value = 0
        self.session.arena.counters.store = self.words.__setitem__
        self.monitor = self.reporter.monitor
        self.monitor.evaluations, self.monitor.evaluating_s = 0, 0.0
        self.monitor.clock.seconds.return_value, self.monitor.budget = 100.0, Budget()
        self.session.arena.counters.load = lambda name: self.words.get(name, 0)
        self.session.has_background_task.return_value = True
        self.evaluations = evaluation.Evaluations(self.session, self.reporter)

    def asks(self):
        self.session.ask.reset_mock()
        self.evaluations.ask_for_next()
        return self.session.ask.called

    def score(self, *places, seconds=1.0):
        for place in places:
            number = self.words["eval_next"] // EVAL_ROUND * EVAL_ROUND + place
            record = {"version": number, "staleness": 5, "nats": 2.0, "n_bytes": 4, "tokens": 3}
            self.monitor.on_score({**record, "compute_s": seconds})


def test_an_evaluation_that_does_not_score_all_of_its_text_has_no_score():
    asked = Asked(eval_every=5)
    assert asked.asks()
    asked.score(0, 1)
    assert not asked.asks()  # one at a time
    asked.session.workers.n_ended.return_value += 1  # perhaps of the worker that evaluates
    assert asked.asks()
    asked.score(2)  # of the new one
    assert not asked.monitor.add_evaluation.called
    asked.score(0, 1)
    asked.monitor.add_evaluation.assert_called_once_with(6.0, 12, 9, 5)
    assert asked.monitor.evaluations == 1


def test_an_evaluation_whose_records_a_stalled_supervisor_lost_is_followed_by_another():
    asked = Asked(eval_every=5)
    assert asked.asks()
    asked.score(0)
    asked.session.has_background_task.return_value = False
    assert not asked.asks()  # its worker may have ended it since the records were read
    asked.score(1)
    assert not asked.asks()
    assert asked.asks()
    asked.words["eval_asked"] = 1  # no worker has claimed it yet
    assert not any(asked.asks() for _ in range(3))


def test_batches_whose_records_were_lost_at_the_end_of_a_run_are_scored_again():
    asked, rounds = Asked(eval_every=5), [(0, 2), (1, 2)]
    asked.session.plan.validation.all_batches = 3

    def until(is_over, doing, limit_s):
        places = rounds.pop(0)
        assert asked.words["eval_next"] % EVAL_ROUND == places[0]
        asked.score(*places)
        asked.words["eval_next"] += 3 - places[0]
        return is_over()

    asked.session.until, asked.session.strategy.own_copies.return_value = until, True
    asked.session.strategy.each_copy = lambda arena: nullcontext(())
    asked.monitor.totals.return_value = (20, 60)
    asked.evaluations.begin_last()
    asked.evaluations.finish()
    asked.monitor.add_evaluation.assert_called_once_with(6.0, 12, 9, 20)
    assert not rounds


def test_a_worker_lost_before_the_first_step_ends_the_run_and_after_the_last_it_costs_a_score():
    asked, lost = Asked(eval_every=5), WorkerFailed("worker 1 died 6 times")
    asked.session.plan.validation.all_batches, asked.session.until.side_effect = 3, lost
    asked.monitor.totals.return_value = (20, 60)
    with pytest.raises(WorkerFailed, match="died 6 times"):
        asked.evaluations.score_base()
    assert not asked.session.report.called
    asked.evaluations.begin_last()
    asked.evaluations.finish()
    asked.session.report.assert_called_once_with(f"the end was not evaluated: {lost}")


def test_evaluations_by_time_take_a_twentieth_of_the_workers_time_and_those_by_steps_any():
    for every, goes_on in (("10s", False), (5, True)):
        asked = Asked(eval_every=every)
        for seconds in (3.0, 4.0, 3.0, 0.1):  # of 2 x 100 s
            assert asked.asks()
            asked.score(0, 1, 2, seconds=seconds / 3)
        assert asked.asks() == goes_on


VERDICT = "does not beat it"


@pytest.fixture
def interrupted_run(tmp_path, monkeypatch):
    """A run of 400 steps whose only evaluation scored step 100, beside better counts."""
    at = {True: {"val_bits_per_byte": 2.355, "val_step": 100}}
    metrics = [{**line, **at.get(k == 6, dict.fromkeys(at[True])), "baselines": {NGRAM: 1.4}}
               for k, line in enumerate(lines(20))]  # fmt: skip
    status = {"status": "interrupted", "validation": {**VALIDATION, "share": 1.0}}
    status["result"] = {"steps": 400, **at[True]}
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "runs", metrics=metrics, status=status)


def test_every_view_of_a_run_names_the_step_and_gives_no_verdict(interrupted_run, capsys):
    folder = interrupted_run.directory
    for command in ("show", "watch", "plot", "report", "runs"):
        assert main([command, *[str(folder)] * (command != "runs")]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        if command == "report":
            shown = (folder / "report.html").read_text()
        assert "at step 100 of 400" in shown, command
        assert VERDICT not in shown
    assert "at step 100 of 400" in str(tiles(RunRecord(interrupted_run)))


@pytest.mark.slow
def test_the_last_line_names_its_step_its_part_and_the_larger_score_and_only_the_end_has_a_verdict(
    tmp_path,
):
    result = train(small_config(tmp_path, steps=4, eval_every="1h"))
    assert (result.val_tokens, result.val_bytes, result.final_tokens) == (1024, 1024, 3124)
    bits, final = result.val_bits_per_byte, result.final_bits_per_byte
    part = f"{bits:.3f} bits per byte (fixed 33% subset)"
    assert f"validation: {part}, {final:.3f} (full set)\n" in summary(result)
    cut = replace(result, final_share=0.38)
    assert f", {final:.3f} (38%)\n" in summary(cut)
    assert VERDICT in summary(cut)
    early = replace(result, val_step=2, final_bits_per_byte=None)
    at = "bits per byte at step 2 of 4 (fixed 33% subset)"
    assert f"{bits:.3f} {at}; the end was not evaluated" in summary(early)
    assert VERDICT not in summary(early)
    assert early.to_json()["val_at_end"] is False


def that_is_killed(pipe, job, where, often):
    """A worker that is killed when it scores the part, or the larger text. Children import it."""
    score, mark = BackgroundTasks.score, job.run_dir / "killed"

    def killed(jobs, place):
        is_larger = place >= jobs.part.batches
        if is_larger == (where == "larger") and (often or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return score(jobs, place)

    BackgroundTasks.score = killed
    process.main(pipe, job)


@pytest.mark.slow
def test_batches_of_a_dead_worker_are_scored_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "main", partial(that_is_killed, where="part", often=False))
    result = train(small_config(tmp_path, steps=4, eval_every="1h"))
    assert (result.status, result.restarts, result.val_tokens) == ("done", 1, 1024)
    assert result.final_share == 1.0
    assert main(["eval", result.run, "--json"]) == 0


@pytest.mark.slow
def test_a_complete_run_whose_workers_keep_dying_in_the_larger_score_is_done_without_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(process, "main", partial(that_is_killed, where="larger", often=True))
    messages = Messages()
    config = small_config(tmp_path, steps=4, eval_every="1h", restarts=1)
    result = train(config, observer=messages)
    assert (result.status, result.steps, result.restarts) == ("done", 4, 1)
    assert (result.val_at_end, result.val_tokens) == (True, 1024)
    assert result.final_bits_per_byte is None
    (line,) = [text for text in messages if "larger validation score is left out" in text]
    assert "worker 1 (mlx:cpu) died 2 times in 10 minutes (last: signal SIGKILL" in line
    assert Run(Path(result.run)).read_status()["status"] == "done"


def test_a_resumed_run_keeps_its_text_unless_another_size_is_asked_for(tmp_path):
    options = {"eval_every": "1h", "steps": 1}
    first = train(small_config(tmp_path, val_subset_tokens=512, **options))
    for size, n_bytes in ((None, 512), (2048, 2048)):
        config = small_config(tmp_path, resume=first.run, val_subset_tokens=size, **options)
        part = make_plan(config).validation
        assert part.asked_bytes == n_bytes
        assert (part.text == first.val_text) == (size is None)


def test_a_checkpoint_of_another_version_is_refused_in_one_sentence(tmp_path, capsys):
    first = train(small_config(tmp_path, steps=1))
    path = Path(str(first.checkpoint)) / "state.json"
    record = json.loads(path.read_text())
    for name in ("validation", "strategy"):
        del record["state"][name]
    record["sha256"] = manifest._own_digest(record)
    path.write_text(json.dumps(record))
    assert main(["train", "--resume", str(first.run), "--steps", "1"]) != 0
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{path.parent} has no strategy, validation: another version of mlxhog wrote it" in error
    assert f"mlxhog train --init-from {path.parent}" in error


class Interrupting(Messages):
    """Interrupts after the first evaluation and a step, and in the next one as often again."""

    def __init__(self, again=0):
        super().__init__()
        self.again, self.done = again, False

    def __call__(self, progress):
        super().__call__(progress)
        is_evaluating = progress.phase and progress.phase.activity is Phase.EVALUATING
        if not self.done and progress.val_step is not None and progress.step > progress.val_step:
            self.done = True
            signal.raise_signal(signal.SIGINT)
        elif self.done and self.again and is_evaluating:
            self.again -= 1
            signal.raise_signal(signal.SIGINT)


def interrupted(tmp_path, again=0):
    config = small_config(tmp_path, steps=100_000, eval_every=2, val_subset_tokens=10**6)
    messages = Interrupting(again)
    result = train(config, observer=messages)
    saved = f"saved step-{result.steps:08}"
    assert messages.index("finishing the step; again stops at once") < messages.index(saved)
    return result


@pytest.mark.slow
def test_an_interrupted_run_has_the_score_of_its_checkpoint(tmp_path, capsys):
    result = interrupted(tmp_path)
    assert (result.status, result.val_step, result.val_share) == ("interrupted", result.steps, 1.0)
    assert main(["eval", result.run, "--json"]) == 0
    bits = json.loads(capsys.readouterr().out)["bits_per_byte"]
    assert bits == pytest.approx(result.val_bits_per_byte, abs=1e-5)
    metrics = Run(Path(result.run)).read_metrics()
    scored = [line["val_step"] for line in metrics if line["val_loss"] is not None]
    assert sorted(set(scored)) == scored
    assert scored[-1] == result.steps


@pytest.mark.slow
def test_an_interrupted_run_whose_evaluation_is_long_names_the_step_that_it_scored(
    tmp_path, monkeypatch
):
    ask = evaluation.Evaluations.ask_for_next

    def ask_once(evaluations):
        if not evaluations._monitor.evaluations:
            ask(evaluations)

    monkeypatch.setattr(evaluation.Evaluations, "ask_for_next", ask_once)
    monkeypatch.setattr(evaluation, "INTERRUPTED_S", 0.0)
    result = interrupted(tmp_path)
    assert result.val_step < result.steps
    assert f"at step {result.val_step} of {result.steps}" in summary(result)


@pytest.mark.slow
def test_a_second_interrupt_ends_the_evaluation_and_keeps_the_checkpoint(tmp_path):
    result = interrupted(tmp_path, again=1)
    assert result.status == "interrupted"
    assert Path(result.checkpoint).is_dir()
