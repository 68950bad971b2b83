"""Every held-out number names the step that it scored, also after an interrupt."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog.checkpoint.run import Run
from mlxhog.cli import main
from mlxhog.cli.train import summary
from mlxhog.report.metrics import COUNTS, Activity
from mlxhog.report.record import RunRecord
from mlxhog.report.run_page import tiles
from mlxhog.training import evaluation
from mlxhog.training.resume import score_of
from mlxhog.training.run import train
from tests.cli.test_cli import RESULT
from tests.report.sample_run import HELD_OUT, lines, write_run
from tests.training.small import small_config

EARLY = replace(
    RESULT,
    status="interrupted",
    steps=16,
    val_bits_per_byte=2.355,
    val_step=3,
    counts_bits_per_byte=1.4,
    checkpoint="runs/a/checkpoints/step-00000016",
)
VERDICT = "does not beat them"


def test_a_result_of_an_earlier_step_names_it_and_has_no_verdict():
    shown = summary(EARLY)
    assert "held-out text: 2.355 bits per byte at step 3 of 16\n" in shown
    assert VERDICT not in shown
    assert EARLY.to_json()["val_at_end"] is False


@pytest.mark.parametrize("status", ["interrupted", "done"])
def test_a_result_of_the_last_step_has_a_verdict(status):
    shown = summary(replace(EARLY, status=status, val_step=16))
    assert "held-out text: 2.355 bits per byte\n" in shown
    assert VERDICT in shown


def interrupted_run(root, **result):
    """A run of 400 steps whose only evaluation scored step 100, beside better counts."""
    metrics = [
        {
            **line,
            "val_bits_per_byte": 2.355 if k == 6 else None,
            "val_step": 100 if k == 6 else None,
            "marks": {COUNTS: 1.4},
        }
        for k, line in enumerate(lines(20))
    ]
    scored = {"steps": 400, "val_bits_per_byte": 2.355, "val_step": 100, **result}
    status = {"status": "interrupted", "result": scored, "held_out": {**HELD_OUT, "share": 1.0}}
    return write_run(root / "runs", metrics=metrics, status=status)


@pytest.mark.parametrize("command", ["show", "watch", "plot", "report"])
def test_every_view_of_a_run_names_the_step_and_gives_no_verdict(tmp_path, capsys, command):
    run = interrupted_run(tmp_path)
    assert main([command, str(run.directory)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    if command == "report":
        shown = (run.directory / "report.html").read_text()
    assert "at step 100 of 400" in shown
    assert VERDICT not in shown
    assert "at step 100 of 400" in str(tiles(RunRecord(run)))


def test_the_list_of_runs_marks_the_number_and_names_the_step(tmp_path, capsys, monkeypatch):
    interrupted_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert " 2.355 at step 100 of 400 " in line


def test_a_checkpoint_has_the_score_of_the_run_that_ended_with_it(tmp_path):
    run, state = interrupted_run(tmp_path), {"used": {"steps": 400}, "val_bits_per_byte": 2.9}
    path = Path("elsewhere/checkpoints/step-00000400")  # the run was copied
    assert score_of(run, path, state) == "held-out 2.900"
    run.write_status({**run.read_status(), "checkpoint": str(path)})
    assert score_of(run, path, state) == "held-out 2.355 at step 100 of 400"
    assert score_of(None, path, {"used": {"steps": 9}}) == ""


# -- real runs -----------------------------------------------------------------------------------


class Interrupting:
    """An observer that interrupts after the first evaluation, and on the next as often again."""

    def __init__(self, again=0):
        self.again, self.done = again, False

    def __call__(self, progress):
        is_evaluating = progress.doing and progress.doing.activity is Activity.EVALUATING
        if not self.done and progress.val_step is not None:
            self.done = True
            signal.raise_signal(signal.SIGINT)
        elif self.again and is_evaluating:
            self.again -= 1
            signal.raise_signal(signal.SIGINT)


def interrupted(tmp_path, again=0):
    config = small_config(tmp_path, steps=100_000, eval_every=2, eval_tokens=10**6)
    return train(config, observer=Interrupting(again))


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
    monkeypatch.setattr(evaluation, "INTERRUPTED_S", 0.0)
    result = interrupted(tmp_path)
    assert result.val_step is not None
    assert result.val_step < result.steps
    assert f"at step {result.val_step} of {result.steps}" in summary(result)


@pytest.mark.slow
def test_a_second_interrupt_ends_the_evaluation_and_keeps_the_checkpoint(tmp_path):
    result = interrupted(tmp_path, again=1)
    assert result.status == "interrupted"
    assert result.checkpoint is not None
    assert Path(result.checkpoint).is_dir()
