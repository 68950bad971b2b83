"""Requests of others: workers join and leave while a run trains, and it saves and samples."""

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.requests import Refused, ask
from mlxhog.arena.workers import WorkerPhase, WorkerState
from mlxhog.checkpoint import checkpoint, run
from mlxhog.cli import main
from mlxhog.models.spec import ParamSpec
from mlxhog.training.supervisor import arena_state
from mlxhog.training.supervisor.session import Session
from mlxhog.training.supervisor.training import train
from tests.processes import alive
from tests.training.asking import endless, trained, until
from tests.training.small import Messages, checkpoint_of, lasts_until, small_config, tickets


def works(slot, steps=1):
    def condition(workers):
        one = workers.get(slot, {"state": "", "steps": 0})
        return one["state"] == "running" and one["steps"] >= steps

    return condition


def has_left(slot):
    return lambda workers: workers[slot]["state"] == "left"


@pytest.mark.slow
def test_a_worker_that_joins_takes_batches_of_the_same_ledger_and_a_resume_averages_it(tmp_path):
    def join(directory):
        answer = ask(directory, "join", workers="torch:cpu")["message"]
        assert answer.startswith("worker 2 (torch:cpu, 1 thread) joins")
        until(directory, works(2, steps=5))

    slow = {"inject_stragglers": "0=5"}  # the other has a core to start on
    config = endless(tmp_path, optimizer="adamw", **slow)
    result = trained(config, join)
    state = checkpoint_of(result).state
    assert result.steps == tickets(state) == state["used"]["steps"]
    assert result.steps == sum(worker.steps for worker in result.workers)
    assert [(w.slot, w.backend) for w in result.workers] == [(1, "mlx:cpu"), (2, "torch:cpu")]
    assert result.workers[1].staleness  # the table shows it like the others
    assert sorted(state["opt_steps"]) == ["1", "2"]
    messages, more = Messages(), {"steps": 5, "time": None, "inject_stragglers": None}
    resumed = train(replace(config, resume=result.run, **more), observer=messages)
    assert (resumed.steps, len(resumed.workers)) == (result.steps + 5, 1)
    assert any("1 worker had joined" in message for message in messages)
    assert "2 workers' moments were averaged for 1 workers" in messages


@pytest.mark.slow
def test_a_worker_that_joins_claims_sequences_of_rounds_and_another_leaves_them(tmp_path):
    def disturb(directory):
        ask(directory, "join", workers="torch:cpu")
        until(directory, works(3, steps=5))
        ask(directory, "leave", worker=1)
        left = until(directory, has_left(1))
        until(directory, works(3, steps=left[3]["steps"] + 5))

    options = {"strategy": "collect", "workers": "mlx:cpu*2", "grad_accumulation": 2}
    result = trained(endless(tmp_path, **options), disturb)
    state = checkpoint_of(result).state
    assert tickets(state) == 2 * result.steps
    assert state["opt_steps"] == {"1": result.steps}, "one optimizer state, that of slot 1"
    assert 0.9 < result.tokens / (tickets(state) * 4 * 32) <= 1, "but for the ends of epochs"
    assert (result.torn, result.restarts) == (0, 0)


@pytest.mark.slow
def test_a_budget_in_steps_is_met_exactly_while_workers_join_leave_and_die(tmp_path, monkeypatch):
    # Slow, so that most steps are left when the supervisor sees one and holds all workers.
    options = {"inject_stragglers": "0=10,1=10", "lr_workers": "sqrt"}
    config = small_config(tmp_path, workers="mlx:cpu*2", steps=600, **options)
    disturbed, poll = threading.Event(), Session.poll

    def poll_and_hold(run, doing=None):
        poll(run, doing)
        if doing is None and run.arena.counters.load("steps") >= 3:
            run.arena.counters.store("pause", int(not disturbed.is_set()))

    def are_up(workers):
        return works(3, steps=0)(workers) and works(4, steps=0)(workers)

    def disturb(directory):
        ask(directory, "join", workers="mlx:cpu*2")
        joined = until(directory, are_up)
        os.kill(joined[4]["pid"], signal.SIGKILL)
        ask(directory, "leave", worker=1)
        until(directory, has_left(1))
        # The end would dismiss a replacement that is still starting.
        until(directory, lambda now: are_up(now) and now[4]["pid"] != joined[4]["pid"])
        assert not alive(joined[1]["pid"])
        disturbed.set()

    monkeypatch.setattr(Session, "poll", poll_and_hold)
    lasts_until(monkeypatch, disturbed.is_set)  # all steps may be done before the first look
    result = trained(config, disturb, stops=False)
    state = checkpoint_of(result).state
    assert (result.status, result.steps, tickets(state)) == ("done", 600, 600)
    assert state["joined"] == 1  # two have, and one has left
    assert result.restarts == 1


@pytest.mark.slow
def test_a_run_answers_saves_and_samples_on_request_and_refuses_what_it_cannot_do(tmp_path, capsys):
    config, answers = endless(tmp_path, workers="mlx:cpu*2", sample_every="1h"), []

    def ask_all(directory):
        answers.append(ask(directory, "status"))
        path = Path(ask(directory, "checkpoint")["path"])
        answers.append(checkpoint.load(path).state["used"]["steps"])
        ask(directory, "sample")
        while not run.Run(directory).last_sample():
            ask(directory, "status")
        for words, code, message in [
            ("join latest --workers torch:mps", 3, "needs macOS on Apple silicon"),
            ("join latest --workers 3", 2, "3 workers cannot join: the run has 2 free slots"),
            ("stop latest --worker 9", 2, "no worker 9; the run has 1, 2"),
        ]:
            assert main([*words.split(), "--runs-dir", config.runs_dir]) == code
            assert message in capsys.readouterr().err
        for request, fields, message in [
            ("join", {"workers": 3}, r"workers is 3, and join has \(workers: str, threads: int\)"),
            ("leave", {}, "no worker has joined"),
            ("explode", {}, "no request 'explode'; expected status, stop"),
        ]:
            with pytest.raises(Refused, match=message):
                ask(directory, request, **fields)

    result = trained(config, ask_all)
    assert (len(result.workers), result.status) == (2, "interrupted")
    status, saved_at = answers
    assert (status["phase"], status["step"] >= 3) == ("training", True)
    assert [one["slot"] for one in status["workers"]] == [1, 2]
    assert 3 <= saved_at <= result.steps
    assert main(["stop", "latest", "--runs-dir", config.runs_dir]) == 2
    assert "is not running" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("options", "why"), [
    ({"sparsify": "topk:0.1"}, "error_feedback.*would be lost"),
    ({"delay_feedback": True}, "delay_feedback.*would stay"),
])  # fmt: skip
def test_a_worker_with_updates_ahead_or_behind_cannot_leave(tmp_path, options, why):
    def join(directory):
        with pytest.raises(Refused, match="worker 1 is the only one that trains.*mlxhog stop"):
            ask(directory, "leave", worker=1)
        ask(directory, "join", workers="mlx:cpu")
        until(directory, works(2))
        with pytest.raises(Refused, match=why):
            ask(directory, "leave")

    trained(endless(tmp_path, **options), join)


def test_a_worker_that_joins_inherits_from_the_one_with_most_steps():
    kinds, params = ("m", "residual", "feedback"), {"w": ParamSpec("w", (8,), "zeros")}
    with Arena.create(plan(params, max_workers=3, private=kinds, n_tickets=1)) as arena:
        for slot, steps in ((1, 7), (2, 9)):
            entry = arena.workers.acquire_slot(slot=slot)
            entry.state, entry.phase = WorkerState.RUNNING, WorkerPhase.COMPUTE
            entry.opt_step = steps
            for kind in kinds:
                arena.segment(f"{kind}.{slot}")[...] = steps
        arena.segment("residual.3")[...] = 5.0  # of a worker that left
        arena_state.inherit(arena, 3, kinds)
        assert arena.workers.entry(3).opt_step == 9
        assert [arena.segment(f"{kind}.3").tolist() for kind in kinds] == [
            [value] * arena.layout.n_floats for value in (9.0, 0.0, 0.0)
        ]  # the other writes what waits, and has written the correction


def test_the_one_state_of_all_workers_stays_when_its_slot_is_taken_again():
    params = {"w": ParamSpec("w", (8,), "zeros")}
    with Arena.create(plan(params, max_workers=2, private=("m",), n_tickets=1)) as arena:
        arena.workers.entry(1).opt_step, arena.segment("m.1")[...] = 7, 3.0
        arena.workers.acquire_slot(slot=2).state = WorkerState.RUNNING
        arena_state.inherit(arena, 1, ("m",), one_state=True)
        assert arena.workers.entry(1).opt_step == 7
        assert (arena.segment("m.1") == 3.0).all()
