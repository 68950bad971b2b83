"""A run resumes: with another strategy, other workers, its own budget or a new one."""

import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml

from mlxhog.checkpoint import checkpoint, new_run, run
from mlxhog.cli import main
from mlxhog.cli.train import summary
from mlxhog.config.budget import Budget
from mlxhog.config.config import TrainConfig
from mlxhog.data.split import KnownText
from mlxhog.display.record import resume_flags
from mlxhog.errors import CheckpointError, ConfigError, DataError
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.resume import Resumption
from mlxhog.training.supervisor import training
from mlxhog.training.supervisor.early_stopping import ValidationWatch
from mlxhog.training.supervisor.evaluations import Evaluations
from mlxhog.training.supervisor.run_folder import write_options
from mlxhog.training.supervisor.session import Session
from mlxhog.training.supervisor.training import train
from mlxhog.training.supervisor.workers import Workers
from tests.pairs import each_of
from tests.saved import save, saved_run
from tests.training.small import checkpoint_of, filled, identical, parameters, small_config

MUON = {"optimizer": "muon", "lr": 3e-3, "schedule": "constant", "warmup": 0}


def run_interrupted_after(steps, config):
    """Train until Ctrl-C, which comes as soon as n steps are reported.

    After ten steps the workers wait, so that the run cannot end before it.
    """
    pressed, begin = [], Session.begin

    def press(progress):
        if progress.step >= steps and not pressed:
            pressed.append(progress.step)
            signal.raise_signal(signal.SIGINT)

    with mock.patch.object(Session, "begin", lambda run, limit, until: begin(run, limit, 10)):
        return train(config, observer=press)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The configuration of a small run that is done, and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "other.txt").write_text("another text altogether. " * 2000)
    options = {"optimizer": "apollo", "projection_rank": 4, "strategy": "serial"}
    config = small_config(folder, steps=2, **options)
    return config, Path(train(config).run)


@each_of(
    ("options", "words"),
    [
        ({"steps": None}, r"done: it has used up its budget, steps 2;.*--resume .* --steps 2"),
        ({"tokenizer": "bpe:300"}, "was trained with tokenizer bytes .*use the same"),
        (
            {"data": "other.txt"},
            r"trained with other text than .*other\.txt holds now; begin a new",
        ),
        ({"set": "hidden_size=64"}, "hidden_size.*32.*64"),
        ({"set": "vocab_size=640"}, "vocab_size.*320.*640"),
        ({"optimizer": "apollo(projection_rank=2)"}, "state m.1/.* has shape .* this run keeps"),
        ({"optimizer": "adamw"}, "optimizer apollo, this is adamw.*--reset-optimizer"),
        ({"embedding_init": "random"}, "embedding_init: random, but resume .* has embeddings"),
    ],
)
def test_a_resume_that_does_not_fit_is_refused_with_the_way_out(finished, options, words):
    config, directory = finished
    if "data" in options:
        options = {"data": str(directory.parents[1] / options["data"])}
    before = (directory / "run.json").read_bytes()
    with pytest.raises((CheckpointError, ConfigError), match=words):
        train(replace(config, resume=str(directory), **options))
    assert (directory / "run.json").read_bytes() == before or "optimizer" in options


@each_of(("own", "flags"), [("steps", " --steps 7"), ("tokens", " --tokens 7"),
                            ("epochs", " --epochs 7"), ("time", " --steps 1000")])  # fmt: skip
def test_a_run_in_rounds_is_continued_in_the_unit_of_its_own_budget(tmp_path, own, flags):
    options = TrainConfig(**{own: 7}).to_yaml().replace("determinism: none", "determinism: rounds")
    of = new_run.create(tmp_path, "rounds", options)
    assert resume_flags(of, is_done=True) == flags
    assert resume_flags(of, is_done=False) == ""


def test_a_resume_that_trained_nothing_leaves_the_run_as_it_was(tmp_path, monkeypatch):
    first = train(small_config(tmp_path, steps=2, eval_every="1h"), observer=None)
    of = run.Run(Path(first.run))
    of.append_metrics({"step": 9, "elapsed_s": 99.0})  # after the checkpoint
    before, spawn = of.read_status(), Workers.spawn
    starting = {}
    files = {path: path.read_bytes() for path in (of.config_path, of.metrics_path)}

    def interrupted(workers):
        spawn(workers)
        starting.update(of.read_status())  # as it stays after a kill
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Workers, "spawn", interrupted)
    config = small_config(tmp_path, steps=5, eval_every="1h", resume=first.run, seed=9)
    again = train(config, observer=None)
    assert (again.status, again.steps, again.checkpoint) == ("interrupted", 2, first.checkpoint)
    after = of.read_status()
    for name in ("checkpoint", "result", "best"):
        assert starting["earlier"][name] == before[name], name
    for name in ("status", "checkpoint", "result", "error", "best", "commands", "resumed"):
        assert after[name] == before[name], name
    assert {path: path.read_bytes() for path in files} == files
    shown = summary(again)
    assert "are lost" not in shown
    assert shown.endswith(" --time 10m")  # as the run is done


def test_the_end_of_a_run_is_its_best_after_a_resume_was_killed_before_its_first_save(tmp_path):
    of, score = saved_run(tmp_path), {"bits_per_byte": 6.9, "step": 4, "text": ""}
    last = save(of, step=6, state={"best": score, "used": {"steps": 6}})
    checkpoint.mark_best(of, last)
    of.write_status({"status": "running", "best": {**score, "bits_per_byte": 6.5, "step": 6}})
    resumption = Resumption(TrainConfig(), of, checkpoint.load(last), None)
    watch = ValidationWatch(TrainConfig(), resumption, "")
    assert (watch.best.bits_per_byte, watch.best.step) == (6.5, 6)


def test_a_best_to_which_no_link_leads_after_a_kill_is_not_the_score_of_the_one_before(tmp_path):
    of, saved = saved_run(tmp_path), []
    for bits, step in ((2.0, 4), (1.0, 8)):
        score = {"bits_per_byte": bits, "step": step, "text": ""}
        saved.append(save(of, step=step, state={"best": score, "used": {"steps": step}}))
    checkpoint.mark_best(of, saved[0])
    resumption = Resumption(TrainConfig(), of, checkpoint.load(saved[1]), None)
    watch = ValidationWatch(TrainConfig(), resumption, "")
    assert (watch.best.bits_per_byte, watch.best.step) == (2.0, 4)
    counted = ValidationWatch(TrainConfig(keep_best=False), resumption, "")
    assert counted.best.bits_per_byte == 1.0  # of early stopping alone


def test_a_killed_resume_without_a_save_is_told_from_a_run_that_is_done(tmp_path):
    first = train(small_config(tmp_path, steps=2))
    of = run.Run(Path(first.run))
    write_options(of, make_plan(small_config(tmp_path, steps=5, resume=first.run)))
    of.write_status({**of.read_status(), "status": "running"})
    words = "steps 2, is used up, .* with --steps 5, .*: mlxhog train --resume .* --steps 5$"
    with pytest.raises(ConfigError, match=words):
        make_plan(small_config(tmp_path, steps=None, resume=first.run))
    write_options(of, make_plan(small_config(tmp_path, steps=2, resume=first.run)))
    assert make_plan(small_config(tmp_path, steps=None, resume=first.run)).budget.is_used_up


def test_latest_stays_the_run_that_is_locked_where_another_begins_meanwhile(tmp_path, monkeypatch):
    first, root = saved_run(tmp_path / "runs"), tmp_path / "runs"
    planned = []

    def begin_another(*_):
        new_run.create(root, "other")

    def plan(config, **_):
        planned.append(config.resume)
        raise DataError("enough")

    monkeypatch.setattr(training, "require_descriptors", begin_another)
    monkeypatch.setattr(training, "make_plan", plan)
    with pytest.raises(DataError, match="enough"):
        train(TrainConfig(resume="latest", runs_dir=str(root)))
    assert planned == [str(checkpoint.latest(first))]


def test_further_tokens_of_a_cluster_count_from_those_of_its_other_machines():
    state = {
        "left": {},
        "used": {"steps": 9, "tokens": 500, "seconds": 1.0},
        "cluster": {"tokens": 1000, "committed": 500},
    }
    saved, asked = mock.Mock(state=state), Budget(tokens=300)
    config = mock.Mock(cluster="studio:29400")
    assert Resumption(config, None, saved, None).budget(asked, 1.0).tokens == 800
    assert Resumption(config, None, saved, asked).budget(asked, 1.0).tokens == 300
    alone = mock.Mock(cluster=None)
    assert Resumption(alone, None, saved, None).budget(asked, 1.0).tokens == 300


def test_a_run_that_keeps_no_best_says_how_to(tmp_path):
    run = train(small_config(tmp_path, steps=1, keep_best=False)).run
    with pytest.raises(CheckpointError, match="keeps no best checkpoint.*--keep-best.*/latest"):
        checkpoint.locate(f"{run}/best", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", [{"moments": "shared"}, {"moments": "private"}, {"async_after": 0.5}]
)
def test_a_resumed_run_has_its_state_or_on_request_none_of_its_optimizer(tmp_path, option):
    options = {**MUON, "workers": "mlx:cpu*2", "steps": 20, **option}
    first = train(small_config(tmp_path, **options))
    saved = checkpoint_of(first)
    for reset in (False, True):
        config = small_config(tmp_path, resume=first.run, reset_optimizer=reset, **options)
        with filled(config) as (plan, arena, _):
            own = {} if reset else plan.strategy.state(arena)
            assert own == {name: saved.state[name] for name in own}
            for key, value in saved.optimizer.items():
                segment, _, name = key.partition("/")
                now = arena.views(segment)[name]
                assert not now.any() if reset else np.array_equal(now, value), key
            for slot, steps in saved.state["opt_steps"].items():
                assert arena.workers.entry(int(slot)).opt_step == (0 if reset else steps)


@pytest.mark.slow
def test_the_rest_of_a_budget_in_epochs_is_the_same_text_for_other_workers(tmp_path):
    options = {"epochs": 1, "steps": None}
    config = small_config(tmp_path, workers="mlx:cpu*2", strategy="sync", **options)
    steps = make_plan(config).budget.steps
    first = run_interrupted_after(3, config)
    resumed = replace(config, epochs=None, resume=first.run)
    same = make_plan(resumed).budget
    assert (same.steps, same.equal_steps_before) == (steps - first.steps, first.steps)
    alone = replace(resumed, workers="mlx:cpu", strategy="serial")
    other = make_plan(alone).budget
    assert (other.steps, other.equal_steps_before) == (2 * same.steps, 2 * first.steps)
    assert other.progress(steps=0, tokens=0, seconds=0.0) == first.steps / steps
    second = run_interrupted_after(first.steps + 3, alone)
    again = make_plan(resumed).budget
    done = first.steps + (second.steps - first.steps) / 2
    assert (again.steps, again.equal_steps_before) == (math.ceil(steps - done), done)


def test_epochs_of_a_schedule_continue_where_the_text_was_left(tmp_path):
    options = {"schedule": "backoff", "backoff_epochs": 1, "backoff_beta": 0.5, "steps": 2}
    config = small_config(tmp_path, workers="mlx:cpu*2", strategy="sync", **options)
    first = train(config)
    plan = make_plan(replace(config, workers="mlx:cpu", strategy="serial", resume=first.run))
    n, schedule = plan.layout.n_tickets, plan.schedule(0.0)
    assert checkpoint_of(first).state["version"] == 2  # of two batches each
    assert schedule(0.0, 2 + n - 4 - 1) == 2 * schedule(0.0, 2 + n - 4)


@pytest.mark.slow
def test_an_automatic_learning_rate_is_that_of_the_strategy_that_resumes(tmp_path):
    options = {"optimizer": "muon", "lr": None, "workers": "mlx:cpu*2", "strategy": "sync"}
    first = train(small_config(tmp_path, steps=4, sync_shares="speed", **options))
    stored = run.Run(Path(first.run))
    sync, lock_free = (3e-3 * math.sqrt(n * 128 / 32) for n in (2, 1))
    for flags, lr, beta1 in [
        ([], sync, 0.75),
        (["--strategy", "hogwild"], lock_free, 0.75),
        (["--optimizer", "adamw", "--reset-optimizer", "--lr", "0.002"], 0.002, 0.9),
        (["--strategy", "sync"], 0.002, 0.9),
    ]:
        assert resume(first.run, "--steps", "2", *flags) == 0
        config = yaml.safe_load(stored.config_path.read_text())
        assert (config["lr"], config["optimizer"]["beta1"]) == (pytest.approx(lr), beta1), flags
        assert ("lr" in stored.automatic()) == (lr != 0.002)


def resume(directory, *flags):
    return main(["train", "--resume", directory, *flags, "--json"])


@pytest.mark.slow
def test_steps_tokens_time_and_metrics_count_on_over_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = train(small_config(tmp_path, steps=10, eval_every="1h"))
    stored = run.Run(Path(first.run))
    # Of steps behind the checkpoint, when it was killed.
    stored.append_metrics({**stored.read_metrics()[-1], "step": 99})
    for more, steps, tokens in ((4, 14, 896), (6, 20, 1280)):
        assert resume(first.run, "--steps", str(more)) == 0
        output, last = capsys.readouterr(), stored.read_metrics()[-1]
        assert f"resuming from step {steps - more}" in output.err
        result = json.loads(output.out)
        assert (result["steps"], result["tokens"]) == (steps, tokens)
        used = {"steps": steps, "tokens": tokens, "seconds": last["elapsed_s"]}
        assert checkpoint.load(Path(result["checkpoint"])).state["used"] == used
        assert round(last["elapsed_s"], 3) == result["seconds"] > first.seconds
    for name in ("step", "tokens", "elapsed_s"):
        values = [line[name] for line in stored.read_metrics()]
        assert values == sorted(values)


@pytest.mark.slow
def test_a_run_killed_in_its_last_evaluation_is_only_evaluated_by_a_resume(
    tmp_path, monkeypatch, capsys
):
    class Killed(BaseException):
        pass

    def die(evaluation):
        raise Killed

    config = small_config(tmp_path, steps=10, eval_every="1h")
    with monkeypatch.context() as patched:
        patched.setattr(Evaluations, "finish", die)
        with pytest.raises(Killed):
            train(config)
    (directory,) = (tmp_path / "runs").iterdir()
    before = checkpoint.load(checkpoint.latest(run.Run(directory)))
    assert resume(str(directory)) == 0
    output = capsys.readouterr()
    assert "resuming from step 10, its training is over: only the evaluation is left" in output.err
    result = json.loads(output.out)
    assert (result["status"], result["steps"], result["val_at_end"]) == ("done", 10, True)
    after = checkpoint.load(Path(result["checkpoint"]))
    assert after.state["ledger"] == before.state["ledger"]
    assert resume(str(directory)) == 2  # now it is done


def resumed_plan(tmp_path, run):
    """The plan of a resume, the file names of its validation text, and what it says of the text."""
    plan = make_plan(small_config(tmp_path, steps=2, resume=run))
    files = plan.data.inventory()["files"]
    validation = {Path(one["path"]).name for one in files if one["val_bytes"]}
    said = " ".join(note for note in plan.notes if "text" in note)
    return plan, validation, said


@pytest.mark.slow
def test_a_resumed_run_takes_new_text_in_the_order_and_on_the_sides_of_the_old(
    tmp_path, monkeypatch
):
    first, text = train(small_config(tmp_path, steps=2)), tmp_path / "text"
    before, validation, said = resumed_plan(tmp_path, first.run)
    assert (before.resumption.text, said) == ("same", "")
    for k in range(40):
        (text / f"00-{k}.txt").write_text(f"a new note {k} " * 20)
    plan, now, said = resumed_plan(tmp_path, first.run)
    new = {name for name in now if name.startswith("00-")}
    assert new
    assert now - new == validation
    assert f"40 new documents, {len(new)} of them for validation" in said
    assert "--follow" in said
    position = plan.resumption.position(plan.layout.n_tickets, 2)
    assert (position["watermark"], position["n"]) == (2, plan.layout.n_tickets)
    for ticket in range(before.layout.n_tickets - 1):  # the last may be short
        old, grown = (one.batches().at(0, ticket).x for one in (before, plan))
        assert np.array_equal(old, grown)
    write = KnownText.write
    for first_act in (lambda *to: None, write):  # ends around the write of what is known

        def killed(text, folder, first_act=first_act):
            first_act(text, folder)
            raise KeyboardInterrupt

        monkeypatch.setattr(KnownText, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            train(small_config(tmp_path, steps=2, resume=first.run))
    monkeypatch.setattr(KnownText, "write", write)
    again, validation, _ = resumed_plan(tmp_path, first.run)
    assert (validation, again.grown) == (now, plan.grown)
    assert again.data.train.digest == plan.data.train.digest
    assert again.resumption.position(again.layout.n_tickets, 2) == position
    result = train(small_config(tmp_path, steps=2, resume=first.run))
    assert result.steps == 4
    added = run.Run(Path(first.run)).read_status()["text_added"]
    assert [(one["step"], one["documents"]) for one in added] == [(2, 40)]
    assert resumed_plan(tmp_path, first.run)[0].grown == plan.grown


@pytest.mark.slow
def test_edited_text_keeps_its_side_and_begins_an_epoch_and_mostly_other_text_is_refused(tmp_path):
    first, text = train(small_config(tmp_path, steps=2)), tmp_path / "text"
    _, validation, _ = resumed_plan(tmp_path, first.run)
    (text / "pic.png").write_bytes(b"\0")  # which is skipped
    assert resumed_plan(tmp_path, first.run)[0].resumption.text == "same"
    for k in range(12):
        edits = f"edited {k} ", (text / f"{k:02}.txt").read_text(), f" more {k}"
        (text / f"{k:02}.txt").write_text("".join(edits[: 2 + k % 2][k % 2 :]))
    plan, now, said = resumed_plan(tmp_path, first.run)
    assert now == validation
    assert "the text of the run has changed, so a new epoch begins" in said  # edited or not
    position = plan.resumption.position(plan.layout.n_tickets, 2)
    assert (position["epoch"], position["watermark"]) == (1, 0)
    for k in range(8):
        (text / f"{k:02}.txt").write_bytes(b"\0")
    with pytest.raises(CheckpointError, match=r"other text than.*not UTF-8 text.*--init-from"):
        resumed_plan(tmp_path, first.run)


@pytest.mark.slow
def test_a_resume_and_initial_weights_keep_the_tokenizer_and_the_validation_text(tmp_path):
    words = np.random.default_rng(1).choice(["lock", "free", "adds", "never", "wait"], 3000)
    first = train(small_config(tmp_path, steps=2, tokenizer="bpe:280"))
    own, validation, _ = resumed_plan(tmp_path, first.run)
    for k in range(12):
        (tmp_path / "text" / f"00-{k}.txt").write_text(" ".join(words[k * 200 :][:200]) + "!" * k)
    plans = [
        make_plan(small_config(tmp_path, steps=2, tokenizer="bpe:280", resume=first.run)),
        make_plan(small_config(tmp_path, steps=2, model="auto", init_from=first.run)),
    ]
    for plan in plans:
        assert plan.data.tokenizer.sha256 == own.data.tokenizer.sha256
        files = plan.data.inventory()["files"]
        now = {Path(one["path"]).name for one in files if one["val_bytes"]}
        assert {name for name in now if "-" not in name} == validation


def test_a_run_resumes_elsewhere_with_its_own_options_and_the_text_at_its_full_path(
    tmp_path, monkeypatch
):
    config = small_config(tmp_path, steps=2, embedding_init="random")
    monkeypatch.chdir(tmp_path)
    first = train(replace(config, data="text", model="small.yaml"))
    copy = tmp_path / "elsewhere" / "copied-run"
    shutil.copytree(first.run, copy, symlinks=True)
    (tmp_path / "small.yaml").unlink()
    monkeypatch.chdir(copy.parent)
    assert main(["train", "--resume", str(copy), "--steps", "1", "--quiet"]) == 0
    assert run.Run(copy).read_status()["steps"] == 3
    stored = yaml.safe_load(run.Run(copy).config_path.read_text())
    assert (stored["embedding_init"], stored["init_from"]) == ("random", "none")


@pytest.mark.slow
def test_a_copied_run_keeps_the_folder_in_the_place_of_its_link_to_the_model(
    finished, tmp_path, capsys
):
    copy = tmp_path / "copied-run"
    shutil.copytree(finished[1], copy)  # which follows links, as `cp -rL` does
    (copy / "model" / "mine.txt").write_text("mine")
    assert main(["train", "--resume", str(copy), "--steps", "1"]) == 0
    assert "is a folder of its own" in " ".join(capsys.readouterr().err.split())
    assert (copy / "model" / "mine.txt").read_text() == "mine"
    assert checkpoint.latest(run.Run(copy)).name == "step-00000003"


def test_a_run_whose_text_is_gone_says_where_it_was_and_the_way_out(tmp_path, monkeypatch, capsys):
    stored = run.Run(tmp_path / "runs" / "20260101-000000-notes")
    stored.checkpoints.mkdir(parents=True)
    stored.config_path.write_text("data: notes\n")
    stored.write_status({"status": "done", "data_path": "/home/a/notes"})
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "notes"]) == 2
    error = capsys.readouterr().err
    assert "data notes, is not at /home/a/notes; put it back" in error
    assert "--data PATH" in error
    options = {name: value for name, (value, _) in stored.options(data="moved").items()}
    assert options["data"] == "notes"  # the user's own value is a layer above
    stored.write_status({"status": "done"})
    with pytest.raises(DataError, match=f"is not at {tmp_path}/notes; .*--data PATH"):
        stored.options()


def test_a_data_set_in_a_relative_folder_is_found_from_elsewhere_and_never_on_the_hub(tmp_path):
    stored = run.Run(tmp_path / "runs" / "20260101-000000-squad")
    stored.checkpoints.mkdir(parents=True)
    stored.config_path.write_text("data: hf:squad,plain\n")
    assert stored.options()["data"][0] == "hf:squad,plain"  # of the hub
    full = f"hf:{tmp_path / 'squad'},plain"
    stored.write_status({"status": "done", "data_path": full})
    with pytest.raises(DataError, match=f"data hf:squad,plain, is not at {full}; put it back"):
        stored.options()
    (tmp_path / "squad").mkdir()
    assert stored.options()["data"][0] == full


@pytest.mark.slow
def test_other_workers_begin_with_the_state_of_one_where_bases_have_no_average(tmp_path):
    common = {"optimizer": "soap", "precondition_every": 3, "steps": 12}
    first = train(small_config(tmp_path, workers="mlx:cpu*2", **common))
    saved = checkpoint_of(first)
    steps = {int(slot): n for slot, n in saved.state["opt_steps"].items()}
    source = max(steps, key=lambda slot: steps[slot])
    config = small_config(tmp_path, workers="mlx:cpu*3", resume=first.run, **common)
    with filled(config) as (planned, arena, messages):
        assert any("soap keeps them in a basis" in message for message in messages)
        for kind in planned.optimizer.state_segments:
            for slot in (1, 2, 3):
                for name, view in arena.views(f"{kind}.{slot}").items():
                    assert np.array_equal(view, saved.optimizer[f"{kind}.{source}/{name}"])
                assert arena.workers.entry(slot).opt_step == steps[source]


@pytest.mark.slow
def test_a_run_resumes_from_an_earlier_checkpoint(tmp_path):
    first = train(small_config(tmp_path, steps=3))
    second = train(small_config(tmp_path, steps=3, resume=first.run))
    saved = parameters(second)  # before the other replaces it
    again = train(small_config(tmp_path, steps=3, resume=str(first.checkpoint)))
    assert (again.run, again.checkpoint) == (second.run, second.checkpoint)
    assert identical(parameters(again), saved)
