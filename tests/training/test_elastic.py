"""Requests of others: workers join and leave while a run trains, and it saves and samples."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlxhog import train
from mlxhog.arena import Arena, plan
from mlxhog.arena.requests import Refused, ask
from mlxhog.arena.workers import Phase, State
from mlxhog.checkpoint import checkpoint, run
from mlxhog.cli import main
from mlxhog.training import requests
from mlxhog.training.plan import make_plan
from tests.processes import alive
from tests.training.asking import Client, endless, trained, until
from tests.training.small import checkpoint_of, small_config


def tickets(result):
    """Batches that a run's ledger counts, and the state of its checkpoint."""
    state = checkpoint_of(result).state
    ledger = state["ledger"]
    return ledger["epoch"] * ledger["n"] + ledger["watermark"] + len(ledger["done"]), state


def works(slot, steps=1):
    """Whether the worker of a slot trains, and has taken at least n steps."""

    def condition(workers):
        one = workers.get(slot, {"state": "", "steps": 0})
        return one["state"] == "running" and one["steps"] >= steps

    return condition


def has_left(slot):
    return lambda workers: workers[slot]["state"] == "left"


@pytest.mark.slow
def test_a_worker_that_joins_takes_batches_of_the_same_ledger(tmp_path):
    def join(directory):
        answer = ask(directory, "join", workers="torch:cpu")["message"]
        assert answer.startswith("worker 2 (torch:cpu, 1 thread) joins")
        until(directory, works(2, steps=5))

    result = trained(endless(tmp_path, slow="0=5"), join)  # the other has a core to start on
    tickets_done, state = tickets(result)
    assert (
        result.steps
        == tickets_done
        == state["used"]["steps"]
        == sum(w.steps for w in result.workers)
    )
    assert [(w.slot, w.backend) for w in result.workers] == [(1, "mlx:cpu"), (2, "torch:cpu")]
    assert result.workers[1].staleness  # the table shows it like the others


@pytest.mark.slow
def test_a_budget_in_steps_is_met_exactly_while_workers_join_leave_and_die(tmp_path):
    # The first workers are slow, so that the run lasts until all of it has happened.
    options = {"slow": "0=10,1=10", "lr_workers": "sqrt"}
    config = small_config(tmp_path, workers="mlx:cpu*2", steps=600, **options)

    def disturb(directory):
        ask(directory, "join", workers="mlx:cpu*2")
        joined = until(directory, lambda workers: works(3)(workers) and works(4)(workers))
        os.kill(joined[4]["pid"], signal.SIGKILL)
        ask(directory, "leave", worker=1)
        until(directory, has_left(1))
        assert not alive(joined[1]["pid"])

    client = Client(config, disturb)
    result = train(config, observer=client)
    client.finish()
    tickets_done, state = tickets(result)
    assert (result.status, result.steps, tickets_done) == ("done", 600, 600)
    assert state["joined"] == 1  # two have, and one has left
    assert result.restarts == 1


@pytest.mark.slow
def test_a_run_is_resumed_with_the_workers_of_its_configuration(tmp_path):
    config = endless(tmp_path, optimizer="adamw")

    def join(directory):
        ask(directory, "join", workers="mlx:cpu")
        until(directory, works(2))

    messages = []

    def note(progress):
        messages.extend([progress.message] if progress.message else [])

    first = trained(config, join)
    assert sorted(tickets(first)[1]["opt_steps"]) == ["1", "2"]
    resumed = train(replace(config, resume=first.run, steps=5, time=None), observer=note)
    assert (resumed.steps, len(resumed.workers)) == (first.steps + 5, 1)
    assert any("1 worker had joined" in message for message in messages)
    assert "2 workers' moments were averaged for 1 workers" in messages


@pytest.mark.slow
def test_workers_that_cannot_join_are_refused_and_training_continues(tmp_path, capsys):
    config = endless(tmp_path, workers="mlx:cpu*2")

    def refused(directory):
        for words, code, message in [
            (["--workers", "torch:cqu"], 2, "did you mean 'torch:cpu'?"),
            (["--workers", "torch:mps"], 3, "needs macOS on Apple silicon"),
            (["--workers", "3"], 2, "3 workers cannot join: the run has 2 free slots"),
            (["--workers", "0"], 2, "wanted at least 1"),
        ]:
            assert main(["join", "latest", "--out", config.out, *words]) == code
            assert message in capsys.readouterr().err
        for number, message in [("9", "no worker 9; the run has 1, 2"), ("x", "WORKER is 'x'")]:
            assert main(["leave", "latest", number, "--out", config.out]) == 2
            assert message in capsys.readouterr().err
        for fields, message in [
            ({"workers": 3}, r"workers is 3, and join has \(workers: str, threads: int\)"),
            ({"threads": True}, "threads is True"),
            ({"worker": 1}, "worker is 1, and join has"),
        ]:
            with pytest.raises(Refused, match=message):
                ask(directory, "join", **fields)
        with pytest.raises(Refused, match="no worker has joined"):
            ask(directory, "leave")

    result = trained(config, refused)
    assert (len(result.workers), result.status) == (2, "interrupted")


@pytest.mark.slow
def test_a_worker_with_unwritten_updates_cannot_leave(tmp_path):
    def join(directory):
        with pytest.raises(Refused, match="worker 1 is the only one that trains.*mlxhog stop"):
            ask(directory, "leave", worker=1)
        ask(directory, "join", workers="mlx:cpu")
        until(directory, works(2))
        with pytest.raises(Refused, match="error_feedback.*would be lost"):
            ask(directory, "leave")

    trained(endless(tmp_path, sparsify="topk:0.1"), join)


@pytest.mark.parametrize(
    ("strategy", "elastic"),
    [
        ("hogwild", True),
        *((one, False) for one in ("serial", "sync", "round_robin", "async_ps", "avg_runs")),
        ("hogwild(blocks=disjoint)", False),
    ],
)
def test_only_workers_that_do_not_wait_for_others_are_elastic(tmp_path, strategy, elastic):
    workers = "mlx:cpu" if strategy == "serial" else "mlx:cpu*2"
    run_plan = make_plan(small_config(tmp_path, workers=workers, strategy=strategy))
    assert run_plan.free_slots == (2 if elastic else 0)
    assert (run_plan.strategy.fixed is None) == elastic
    assert elastic or f"strategy {strategy} divides its work" in run_plan.strategy.fixed


def shape(n):
    return SimpleNamespace(shape=(n,), kind="dense")


@pytest.mark.parametrize(("max_workers", "slots"), [(1, 1), (7, 7), (None, 3)])
def test_free_slots_are_as_many_as_are_asked_for(tmp_path, max_workers, slots):
    run_plan = make_plan(small_config(tmp_path, strategy="hogwild", max_workers=max_workers))
    assert (run_plan.strategy.slots, run_plan.layout.max_workers) == (slots, slots)


def arena_of_three():
    private = ("m", "residual", "feedback")
    return Arena.create(plan({"w": shape(8)}, max_workers=3, private=private, n_tickets=1))


def test_a_worker_that_joins_inherits_from_the_one_with_most_steps():
    with arena_of_three() as arena:
        for slot, steps in ((1, 7), (2, 9)):
            entry = arena.workers.acquire_slot(slot=slot)
            entry.state, entry.opt_step, entry.phase = State.RUNNING, steps, Phase.COMPUTE
            arena.segment(f"m.{slot}")[...] = steps
            arena.segment(f"residual.{slot}")[...] = steps
            arena.segment(f"feedback.{slot}")[...] = steps
        arena.segment("residual.3")[...] = 5.0  # of a worker that left
        requests.inherit(arena, 3, ("m", "residual", "feedback"))
        assert arena.workers.entry(3).opt_step == 9
        assert (arena.segment("m.3") == 9.0).all()
        assert (arena.segment("residual.3") == 0.0).all()
        assert (arena.segment("feedback.3") == 0.0).all()  # the other has added it


@pytest.mark.slow
def test_a_run_that_has_ended_is_named_as_such(tmp_path, capsys):
    config = small_config(tmp_path, steps=2)
    train(config)
    assert main(["stop", "latest", "--out", config.out]) == 2
    assert "is not running" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_answers_status_saves_samples_and_refuses_what_it_does_not_know(tmp_path):
    answers = []

    def ask_all(directory):
        answers.append(ask(directory, "status"))
        answers.append(ask(directory, "checkpoint"))
        answers.append(checkpoint.load(Path(answers[1]["path"])).state["used"]["steps"])
        ask(directory, "sample")
        while not run.Run(directory).last_sample():
            ask(directory, "status")
        with pytest.raises(Refused, match="no request 'explode'; a run takes status, stop"):
            ask(directory, "explode")
        with pytest.raises(Refused, match="step is 3, and checkpoint has"):
            ask(directory, "checkpoint", step=3)

    result = trained(endless(tmp_path, workers="mlx:cpu*2", sample_every="1h"), ask_all)
    status, _, saved_at = answers
    assert (status["doing"], status["step"] >= 3) == ("training", True)
    assert [one["slot"] for one in status["workers"]] == [1, 2]
    assert 3 <= saved_at <= result.steps
