"""Local methods: the result of each of them, wherever a worker dies."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import TrainConfig
from mlxhog.arena.ledger import Ledger
from mlxhog.config.budget import Budget
from mlxhog.errors import ConfigError
from mlxhog.optim import SGD, AdamW, Momentum
from mlxhog.strategies import Idle, Lease, build
from mlxhog.strategies.local import LocalWorker
from mlxhog.strategies.rounds import DECIDED, MARK, STAGES, Rounds
from mlxhog.strategies.rounds import STEPS as STEPS_WORD
from tests.pairs import each_of
from tests.strategies.deaths import die_and_be_replaced, let_others_run, lines
from tests.strategies.local_runs import (
    FLOATS,
    LR,
    STEPS,
    Sequential,
    method,
    new_arena,
    run,
    take_step,
    take_steps,
    worker,
)
from tests.threads import begin, join

METHODS = (
    "claim", "_lease", "_take_part", "read", "write", "_record", "corrected", "apply",
    "local.Local.decide", "local_sgd.average_share", "local_sgd.take_average",
    "rounds.Rounds.take_in", "rounds.Rounds.set_next", "rounds.Rounds.begin_next",
)  # fmt: skip
KINDS = {
    "avg_runs": {},
    "local_sgd": {},
    "local_sgd unequal": {"steps_by_rank": [3, 1]},
    "local_sgd post": {"local_after": 4},
    "fedprox": {},
    "fedprox decoupled": {"prox": "decoupled"},
    "scaffold": {},
    "diloco": {},
}
MORE_LINES = {
    "fedprox": ("local_sgd.keep_anchor",),
    "scaffold": (
        "local_sgd.keep_anchor", "scaffold.note_movement", "scaffold.average_controls",
        "scaffold.take_control",
    ),
    "diloco": ("local_sgd.keep_anchor", "diloco.outer_step", "diloco.keep_outer"),
}  # fmt: skip


def kind(name, workers=2, **options):
    return method(name.split()[0], workers, **{**KINDS[name], **options})


@each_of("workers", [1, 2, 3])
@each_of("name", KINDS)
def test_every_method_is_what_its_paper_says_bit_for_bit(name, workers):
    more = {"steps_by_rank": [3, 1, 2][:workers]} if "unequal" in name else {}
    of = kind(name, workers, **more)
    with new_arena(of) as arena:
        run(arena, of)
        reference = Sequential(of)
        assert arena.param("w").tolist() == [reference.model] * FLOATS
        results = [arena.segment(copy)[0] for copy in of.replica_segments()]
        assert results == reference.own
        assert Ledger(arena).watermark == STEPS
        assert arena.counters.load("version") == arena.counters.load("steps") == STEPS


@each_of("every", [1, 2, 100])
def test_copies_are_averaged_whenever_each_worker_has_taken_h_steps(every):
    of = method("local_sgd", 2, average_every=every)
    with new_arena(of) as arena:
        run(arena, of)
        reference = Sequential(of)
        assert reference.meetings == {1: 4, 2: 2, 100: 0}[every]
        assert arena.param("w").tolist() == [reference.model] * FLOATS


@pytest.mark.parametrize("optimizer", [SGD(), Momentum(), AdamW()])
def test_fedprox_without_a_pull_is_local_sgd_bit_for_bit(optimizer):
    models = []
    for of in (method("local_sgd"), method("fedprox", prox_mu=0.0)):
        with new_arena(of, private=optimizer.state_segments) as arena:
            run(arena, of, optimizer=optimizer)
            models.append(arena.param("w").copy())
    assert np.array_equal(models[0].view(np.uint32), models[1].view(np.uint32))


def test_diloco_whose_outer_step_is_the_mean_is_local_sgd_to_a_few_ulp():
    models = []
    for of in (method("local_sgd"), method("diloco", outer_lr=1.0, outer_momentum=0.0)):
        with new_arena(of) as arena:
            run(arena, of)
            models.append(arena.param("w").copy())
    np.testing.assert_array_max_ulp(models[0], models[1], maxulp=4)


def test_one_replica_of_diloco_without_momentum_is_its_inner_optimizer_to_a_few_ulp():
    models = []
    for of in (method("avg_runs", 1), method("diloco", 1, outer_lr=1.0, outer_momentum=0.0)):
        with new_arena(of) as arena:
            run(arena, of)
            models.append(arena.param("w").copy())
    np.testing.assert_array_max_ulp(models[0], models[1], maxulp=4)


def test_the_outer_step_is_that_of_torch_sgd_with_nesterov():
    import torch

    of = method("diloco", 2, average_every=1)
    with new_arena(of) as arena:
        run(arena, of, steps=8)
        ours = arena.param("w")[0]
    theta = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    outer = torch.optim.SGD([theta], lr=0.7, momentum=0.9, nesterov=True)
    for round_ in range(4):
        at = theta.item()
        own = [at - LR * (1 + 2 * round_ + rank + 0.25 * at) for rank in (0, 1)]
        theta.grad = theta.detach() - sum(own) / 2
        outer.step()
    assert ours == pytest.approx(theta.item(), rel=1e-6)


def test_workers_of_one_replica_train_the_same_copy():
    of = method("diloco", 4, replicas=2, average_every=1)
    with new_arena(of) as arena:
        slots = [worker(arena, slot, of, steps=4) for slot in (1, 2, 3, 4)]
        for one in slots:
            lease = one.claim()
            assert isinstance(lease, Lease)
            take_step(one, lease)
        first, second = (arena.segment(name)[0] for name in of.replica_segments())
        # gradients 1 and 2 at 0 and -0.5; 3 and 4 likewise: the second sees the first's step
        assert first == pytest.approx(-LR * (1 + 2 - 0.25 * LR))
        assert second == pytest.approx(-LR * (3 + 4 - 0.25 * 3 * LR))
        of.settle(arena, Ledger(arena))
        moved = -(first + second) / 2
        assert arena.param("w")[0] == pytest.approx(-0.7 * 1.9 * moved, rel=1e-6)


# -- SCAFFOLD --------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_the_mean_control_variate_is_the_mean_of_all_after_every_round(optimizer):
    of = method("scaffold", 3, optimizer=optimizer, average_every=1)
    rule = SGD() if optimizer == "sgd" else Momentum()
    with new_arena(of, private=rule.state_segments) as arena:
        workers = [worker(arena, slot, of, steps=12, optimizer=rule) for slot in (1, 2, 3)]
        for _ in range(4):
            for one in workers:
                lease = one.claim()
                assert isinstance(lease, Lease)
                take_step(one, lease)
            of.settle(arena, Ledger(arena))
            controls = [float(arena.segment(f"control.{slot}")[0]) for slot in (1, 2, 3)]
            control = float(arena.segment("control")[0])
            assert control == pytest.approx(sum(controls) / 3, rel=1e-6)
            assert sum(control - own for own in controls) == pytest.approx(0.0, abs=1e-4)
            assert max(controls) != min(controls)  # there is something to correct


def test_the_mean_of_raw_gradients_is_option_ii_where_steps_are_plain():
    """`clip` is so high that it changes no step, and yet no longer plain SGD by its options."""
    results = []
    for of in (method("scaffold", 2), method("scaffold", 2, clip=1e9)):
        with new_arena(of) as arena:
            run(arena, of)
            results.append([arena.segment(f"control.{slot}")[0] for slot in (1, 2)])
            results[-1].append(arena.param("w")[0])
    assert results[0] == pytest.approx(results[1], rel=1e-4)
    assert results[0][0] != results[0][1]


def test_the_first_round_of_scaffold_is_local_sgd_and_the_second_is_not():
    models = []
    for name in ("local_sgd", "scaffold"):
        of, own = method(name), []
        with new_arena(of) as arena:
            run(arena, of, steps=4)
            own.append(arena.param("w")[0])
        with new_arena(of) as arena:
            run(arena, of, steps=7)  # amid the second round, where the workers differ
            own += [arena.segment(copy)[0] for copy in of.replica_segments()]
        models.append(own)
    assert models[0][0] == models[1][0]
    assert models[0][1:] != models[1][1:]


# -- optimizer state -------------------------------------------------------------------------------


def test_each_worker_keeps_its_moments_when_copies_are_averaged():
    of, rule = method("local_sgd", 2, optimizer="momentum"), Momentum()
    with new_arena(of, private=("m",)) as arena:
        workers = [worker(arena, slot, of, steps=4, optimizer=rule) for slot in (1, 2)]
        for one in workers * 2:
            lease = one.claim()
            assert isinstance(lease, Lease)
            take_step(one, lease)
        before = [float(arena.segment(f"m.{slot}")[0]) for slot in (1, 2)]
        of.settle(arena, Ledger(arena))
        assert [float(arena.segment(f"m.{slot}")[0]) for slot in (1, 2)] == before
        assert before[0] != before[1]
        assert [arena.workers.entry(slot).opt_step for slot in (1, 2)] == [2, 2]


# -- the view of the run ---------------------------------------------------------------------------


def test_an_average_has_no_part_in_the_lost_update_probe():
    of = method("local_sgd")
    with new_arena(of) as arena:
        arena.probe[...] = 7.0
        run(arena, of)
        assert arena.probe.tolist() == [7.0] * arena.probe.size


def test_the_model_that_is_evaluated_while_training_is_the_average_of_the_copies():
    of = method("avg_runs")
    with new_arena(of) as arena:
        take_step(one := worker(arena, 1, of), lease_of(one))
        for name, value in zip(of.copies(), (1.0, 3.0), strict=True):
            arena.segment(name)[...] = value
        out = np.zeros_like(arena.params)
        of.load(arena, out, training=True)
        slot = arena.layout.slots["w"]
        assert out[slot.offset : slot.offset + slot.size].tolist() == [2.0] * FLOATS
        assert arena.param("w").tolist() == [0.0] * FLOATS


def lease_of(one):
    lease = one.claim()
    assert isinstance(lease, Lease)
    return lease


def test_each_copy_can_be_evaluated_in_the_place_of_the_average_which_then_returns():
    of = method("avg_runs")
    with new_arena(of) as arena:
        run(arena, of)
        reference = Sequential(of)
        with of.each_copy(arena) as loads:
            for load, copy in zip(loads, reference.own, strict=True):
                load()
                assert arena.param("w").tolist() == [copy] * FLOATS
        assert arena.param("w").tolist() == [reference.model] * FLOATS


def test_an_average_that_is_worse_than_a_copy_is_warned_of():
    of = method("avg_runs")
    assert of.warning(2.0, [2.1, 2.2]) is None
    assert of.warning(2.0, []) is None
    warning = of.warning(2.5, [2.6, 2.25])
    assert warning is not None
    assert "2.500" in warning
    assert "worker 2 alone 2.250" in warning
    assert "--strategy local_sgd --average-every" in warning


@each_of(
    ("name", "options", "models"),
    [
        ("avg_runs", {}, 1),  # once, at the end
        ("local_sgd", {}, 2 + 1),  # at 4 and 8 of 9 steps, and at the end
        ("scaffold", {}, 2 * 2 + 1),
        ("diloco", {}, 2 + 1),
    ],
)
def test_a_network_would_carry_an_all_reduce_for_every_average(name, options, models):
    of = method(name, **options)
    rule = Momentum() if options else SGD()
    with new_arena(of, private=rule.state_segments) as arena:
        run(arena, of, optimizer=rule)
        assert of.network_bytes(arena, STEPS) == models * 2 * 4 * FLOATS
    alone = method(name, 1, **options)
    with new_arena(alone, private=rule.state_segments) as arena:
        assert alone.network_bytes(arena, 0) == 0


# -- resuming --------------------------------------------------------------------------------------


@pytest.mark.slow
@each_of("stop", [4, 5, 7])
@each_of("name", KINDS)
def test_a_resumed_run_equals_one_that_never_stopped(name, stop):
    of = kind(name)
    with new_arena(of) as arena, new_arena(of) as resumed:
        run(arena, of, steps=stop)
        for segment in of.kept_segments():
            resumed.segment(segment)[...] = arena.segment(segment)
        resumed.counters.store("version", arena.counters.load("version"))
        state = {**of.state(arena), "ledger": Ledger(arena).position()}
        of.begin(resumed, of.resume(resumed, Ledger(resumed), state))
        run(resumed, of, steps=STEPS - stop)
        assert resumed.param("w").tolist() == [Sequential(of).model] * FLOATS
        assert resumed.counters.load("version") == STEPS
        assert resumed.counters.load("steps") == STEPS - stop


def test_a_run_resumed_with_other_replicas_begins_from_the_average():
    of, other = method("diloco", 2), method("diloco", 2, replicas=1)
    with new_arena(of) as arena, new_arena(other) as resumed:
        run(arena, of, steps=4)
        state = {**of.state(arena), "ledger": Ledger(arena).position()}
        assert other.resume(resumed, Ledger(resumed), state) is None


def test_the_first_steps_that_are_averaged_one_by_one_are_those_of_the_run():
    of = method("local_sgd", 2, local_after=6)
    with new_arena(of) as arena:
        assert Rounds(arena, 2).of_all(MARK) == [1, 1]
    with new_arena(of) as arena:
        arena.counters.store("version", 4)  # of another strategy, or of other workers
        of.begin(arena)
        run(arena, of, steps=6)
        assert Rounds(arena, 2).of_run(DECIDED) == 2  # of 2 steps, and of 4


def test_the_step_size_of_a_resumed_run_counts_the_tokens_before_it_once():
    of = method("avg_runs")
    with new_arena(of) as arena, new_arena(of) as resumed:
        run(arena, of, steps=4)
        resumed.counters.store("version", 4)
        of.begin(resumed, of.position(arena))
        one = worker(resumed, 1, of)
        one.context.budget = Budget(tokens=60, tokens_before=40)
        one.context.schedule = lambda progress, update: 1.0 - progress
        assert one.lr() == pytest.approx(0.6)


def test_a_step_that_was_torn_when_its_run_was_killed_is_passed_over_after_the_resume():
    of = method("avg_runs")
    with new_arena(of) as arena:
        one = worker(arena, 1, of)
        ledger = one.context.ledger
        assert ledger.claim_exact(0, 0, 99)
        ledger.begin_apply(0, 0, 99)
        ledger.finish(0, 0, 99)  # by a worker of which this arena knows nothing
        one.context.entry.opt_step = 7
        assert one.claim() is Idle.WAIT
        assert one.claim() == Lease(0, 2)
        assert one.context.entry.opt_step == 7


def test_workers_that_wait_see_nothing_of_a_meeting_that_is_held_for_a_checkpoint():
    of = method("diloco")
    with new_arena(of) as arena:
        workers = [worker(arena, slot, of) for slot in (1, 2)]
        for one in workers * 2:
            take_step(one, lease_of(one))
        arena.counters.store("pause", 1)
        looks = []

        def look(*unused):
            looks.extend(one.claim() for one in workers)  # as they do while the arena is settled

        watched = type(of)(of.choice, of.facts, 2)
        stages = tuple(step for stage in of.stages for step in (look, stage, look))
        object.__setattr__(watched, "stages", stages)
        watched.settle(arena, Ledger(arena))
        assert set(looks) == {Idle.WAIT}
        assert arena.param("w")[0] == Sequential(of, steps=4).model


# -- local work ------------------------------------------------------------------------------------


def test_by_speed_a_slower_worker_takes_fewer_steps_in_a_round():
    of = method("local_sgd", 2, average_every=8, local_work="speed")
    with new_arena(of) as arena:
        assert of.steps_of_round(arena, 0) == [8, 8]  # nothing is measured yet
        for slot, took_ns in ((1, 10_000_000), (2, 35_000_000)):
            entry = arena.workers.entry(slot)
            entry.compute_ns, entry.steps = took_ns, 1
        assert of.steps_of_round(arena, 16) == [8, 2]


@each_of(
    ("name", "workers", "options", "message"),
    [
        ("local_sgd", 2, {"average_every": 6, "steps": 11}, "12 steps before their first average"),
        ("diloco", 2, {"average_every": 6, "tokens": 110}, "take strategy avg_runs"),
        (
            "diloco",
            4,
            {"replicas": 2, "determinism": "rounds", "steps": 1000},
            "2 workers of each replica",
        ),
        ("diloco", 6, {"replicas": 4}, "does not divide 6 workers; take one of 1, 2, 3, 6"),
    ],
)
def test_local_steps_that_do_not_fit_the_run_are_refused(name, workers, options, message):
    model = SimpleNamespace()
    config = TrainConfig(strategy=name, seq_len=10, batch_size=1, **options)
    with pytest.raises(ConfigError, match=message):
        build(config, workers).check(model, config)


# -- deaths ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["local_sgd unequal", "fedprox", "scaffold", "diloco"])
def test_a_death_at_any_line_changes_nothing_but_a_torn_step(name, rank):
    of, unreached = kind(name), []
    every_line = list(lines(LocalWorker, METHODS[: 14 if "unequal" in name else 0]))
    with new_arena(of) as arena:
        result = type(worker(arena, 1, of))
    more = MORE_LINES.get(name, ())
    every_line += list(lines(result, (*(("corrected", "apply") if more else ()), *more)))
    for method_name, number in every_line:
        with new_arena(of) as arena:
            make = partial(worker, arena, rank + 1, of)
            victim = make()
            (thread,) = begin(take_steps, [worker(arena, 2 - rank, of)])
            died = die_and_be_replaced(victim, (method_name, number), make, take_steps)
            thread.join(30)
            where = f"{method_name}+{number}"
            assert not thread.is_alive(), f"the other worker is stuck after a death at {where}"
            of.settle(arena, Ledger(arena))
            check(arena, of, where)
        if not died:
            unreached.append(where)
    assert len(unreached) <= len(every_line) / 3, unreached


def test_the_successor_of_a_worker_that_died_at_a_meetings_end_waits_for_the_others():
    """Else it would assign the next batches by the round that they have not ended yet."""
    of = method("local_sgd")
    with new_arena(of) as arena:
        before = [worker(arena, slot, of) for slot in (1, 2)]
        for one in before * 2:
            take_step(one, lease_of(one))
        rounds = Rounds(arena, 2)
        of.decide(arena, rounds)
        for stage, do in enumerate(of.stages, start=1):
            for rank in (0, 1):
                if (stage, rank) != (len(of.stages), 1):
                    do(of, arena, rounds, rank)
                    rounds.set_of(rank, STAGES, stage)
        for slot in (1, 2):
            arena.workers.mark_dead(slot)
        first, second = (worker(arena, slot, of) for slot in (1, 2))
        beat_ns, steps = first.context.entry.heartbeat_ns, rounds.of(0, STEPS_WORD)
        threads = begin(take_steps, [first])
        while first.context.entry.heartbeat_ns == beat_ns and rounds.of(0, STEPS_WORD) == steps:
            let_others_run()  # until it waits, or goes wrong
        join([*threads, *begin(take_steps, [second])])
        of.settle(arena, Ledger(arena))
        check(arena, of, "the last stage")


def check(arena, of, where):
    """Every count is exact; so are the parameters, unless a step was torn."""
    assert arena.counters.load("version") == STEPS, where
    assert of.steps_done(arena, Ledger(arena)) == STEPS, where
    own = Rounds(arena, 2).of_all(STEPS_WORD)
    assert [arena.workers.entry(slot).opt_step for slot in (1, 2)] == own, where
    assert sum(own) == STEPS, where
    ledger = Ledger(arena)
    assert ledger.watermark == STEPS, where
    torn = ledger.position()["torn"]
    assert torn <= 1, where
    result = arena.param("w").tolist()
    assert result == [result[0]] * FLOATS or torn, where
    if not torn:
        assert result[0] == Sequential(of).model, where
    elif of.name == "local_sgd":
        assert result[0] in [Sequential(of, without=n).model for n in (None, *range(STEPS))], where
