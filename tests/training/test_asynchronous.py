"""Runs with a server, a gate, locks and simulated staleness, by real processes."""

from pathlib import Path

import numpy as np
import pytest

from mlxhog import train
from mlxhog.arena import Arena
from mlxhog.arena.ledger import Ledger
from mlxhog.checkpoint import checkpoint
from mlxhog.training.plan import make_plan
from mlxhog.training.state import load
from tests.training.small import identical, parameters, small_config
from tests.training.test_deaths import train_and_kill

TWO = "mlx:cpu*2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (3, {"optimizer": "muon", "lr": 3e-3, "schedule": "constant"}),
        (2, {"optimizer": "adamw", "clip": 0.01, "delay_feedback": True}),
        (3, {"optimizer": "muon", "moments": "shared", "predict": "last"}),
        (2, {"optimizer": "adamw", "moments": "shared", "predict": "last"}),
    ],
)
def test_simulated_staleness_of_p_minus_1_is_p_processes_in_turn_bit_for_bit(
    tmp_path, workers, options
):
    common, late = {"steps": 31, **options}, workers - 1
    turns = small_config(tmp_path, strategy="round_robin", workers=f"mlx:cpu*{workers}", **common)
    sim = small_config(
        tmp_path, strategy="sim", sim_staleness=f"fixed:{late}", workers="mlx:cpu", **common
    )
    of_turns, simulated = train(turns), train(sim)
    assert identical(parameters(of_turns), parameters(simulated))
    ages = {**dict.fromkeys(range(late), 1), late: 31 - late}
    assert dict(of_turns.staleness) == dict(simulated.staleness) == ages


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "ssp", "slack": 1},
        {"strategy": "locked"},
        {"strategy": "sim", "workers": "mlx:cpu", "sim_staleness": "uniform:0:3"},
        {"strategy": "hogwild", "delay_feedback": True},
    ],
    ids=lambda options: str(options["strategy"]),
)
def test_a_killed_worker_stops_no_other_and_the_run_reaches_its_last_step(tmp_path, options):
    """Even one that holds the lock, as it always does under `locked`."""
    result = train_and_kill(small_config(tmp_path, **{"workers": TWO, "steps": 60, **options}))
    assert result.lost_update_rate == 0.0


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Workers of both frameworks and a server, one of them slow, with rules for late gradients."""
    return train(
        small_config(
            tmp_path_factory.mktemp("served"), strategy="async_ps", workers="mlx:cpu,torch:cpu",
            slow="1=3", staleness_lr="linear:2", delay_compensation="constant", steps=120, lr=1e-2,
            schedule="constant", warmup=0, eval_every="1h",
        )
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_by_staleness_reports_each_workers_part_of_all_step_sizes(served):
    shares = [worker["rate_share"] for worker in served.to_json()["workers"]]
    rates = [
        sum(count / (1 + 2 * age) for age, count in worker.staleness.items())  # of linear:2
        for worker in served.workers
    ]
    assert min(rates) < min(worker.steps for worker in served.workers)  # some gradients were late
    assert shares == pytest.approx([rate / sum(rates) for rate in rates])


@pytest.fixture(scope="module")
def ahead(tmp_path_factory):
    """A run whose last steps include corrections; in some, one worker is alone at the end."""
    folder = tmp_path_factory.mktemp("ahead")
    while True:
        result = train(small_config(folder, workers=TWO, steps=60, delay_feedback=True))
        assert (result.status, result.lost_update_rate) == ("done", 0.0)
        saved = checkpoint.load(Path(str(result.checkpoint))).optimizer
        if any(name.startswith("feedback.") and saved[name].any() for name in saved):
            return folder, result


@pytest.mark.slow
def test_updates_added_in_advance_keep_their_sum_with_other_workers(ahead):
    folder, first = ahead
    saved = checkpoint.load(Path(str(first.checkpoint))).optimizer
    three = {"workers": "mlx:cpu*3", "steps": 10, "delay_feedback": True}
    planned = make_plan(small_config(folder, resume=first.run, **three))
    with Arena.create(planned.layout) as arena:
        load(planned, arena, Ledger(arena))
        ahead = 0.0
        for name, slot in arena.layout.slots.items():
            span = slice(slot.offset, slot.offset + slot.size)
            now = sum(arena.segment(f"feedback.{k}")[span] for k in (1, 2, 3))
            before = sum(saved[f"feedback.{k}/{name}"].ravel() for k in (1, 2))
            np.testing.assert_allclose(now, before, rtol=1e-5, atol=1e-9)
            ahead += float(np.abs(before).sum())
        assert ahead > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"delay_feedback": False}, {"delay_feedback": True, "reset_optimizer": True}]
)
def test_updates_added_in_advance_are_undone_if_no_worker_will_undo_them(ahead, changes):
    folder, first = ahead
    loaded = checkpoint.load(Path(str(first.checkpoint)))
    planned = make_plan(small_config(folder, workers=TWO, resume=first.run, steps=10, **changes))
    with Arena.create(planned.layout) as arena:
        load(planned, arena, Ledger(arena))
        ahead = 0.0
        for name, value in loaded.params.items():
            added = sum(loaded.optimizer[f"feedback.{k}/{name}"] for k in (1, 2))
            np.testing.assert_allclose(arena.param(name), value - added, rtol=1e-5, atol=1e-7)
            ahead += float(np.abs(added).sum())
        assert ahead > 0
