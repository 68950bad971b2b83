"""What each read mode promises of a model that is being written."""

import sys
from functools import partial

import pytest

from mlxhog.arena import Arena, plan
from mlxhog.arena.published import Publisher, Snapshots
from mlxhog.base.quantities import Interval
from mlxhog.config.config import TrainConfig
from mlxhog.errors import ArenaError
from mlxhog.models.families import param_spec
from mlxhog.serving import READ_MODES
from mlxhog.serving.source import LoadedWeights, RunWeights, WeightFollower
from mlxhog.strategies import build
from tests.forked import CONTEXT
from tests.serving import patterns
from tests.serving.patterns import MODEL, Inbox, PatternRun, check, layout, numbers
from tests.threads import wait_until

READS = 200


@pytest.fixture(autouse=True)
def _forked_writers(monkeypatch):
    if sys.platform == "linux":
        monkeypatch.setattr(patterns, "SPAWN", CONTEXT)


@pytest.mark.parametrize("mode", READ_MODES)
@pytest.mark.parametrize("writers", [1, 2])
def test_every_read_keeps_the_promise_of_its_mode(mode, writers, tmp_path):
    with PatternRun(tmp_path, writers=writers) as run:
        source, backend, reads = run.reader(mode), Inbox(), [LoadedWeights(version=0, oldest=0)]

        def has_read_enough():
            reads.append(source.load(backend))
            check(reads[-1], backend.param_buffer, run.arena)
            assert reads[-1].oldest >= reads[-2].oldest
            return (
                len(reads) >= READS
                and reads[-1].version != reads[1].version
                and (mode == "racy" or any(loaded.consistent for loaded in reads[1:]))
            )

        wait_until(has_read_enough, what="two versions, one of them consistent", every_s=0)
        source.close()
        assert backend.bound == 1


def test_nothing_is_copied_while_nobody_reads(tmp_path):
    with PatternRun(tmp_path, every="5ms") as run:
        copies = Snapshots(run.arena)
        assert copies.number() == 0
        run.reader("double_buffer").close()
        wait_until(lambda: run.server.present == 0)
        run.publisher.publish_quiesced()  # waits for one that is being taken, and takes none
        before = copies.number()
        assert before >= 1
        racy = run.reader("racy")
        assert (run.server.came, run.server.present) == (1, 0)  # it asks for no copies
        racy.close()
        assert copies.number() == before


def test_weights_of_a_sequence_stay_until_it_ends(tmp_path):
    with PatternRun(tmp_path, every="5ms") as run:
        backend, source = Inbox(), run.reader("pinned_per_sequence")
        follower = WeightFollower(source, backend)
        first, held = follower.refresh(in_sequence=True), backend.param_buffer.copy()
        wait_until(lambda: run.arena.counters.load("version") > first.version)
        wait_until(source.has_newer)
        assert follower.refresh(in_sequence=True) == first
        assert (backend.param_buffer == held).all()
        aged = follower.loaded()
        assert min(aged.age_updates, aged.age_s) > 0
        wait_until(lambda: follower.refresh(in_sequence=False) != first)
        source.close()


def test_the_last_weights_stay_when_the_run_has_ended(tmp_path):
    with PatternRun(tmp_path, every=10**6, writers=2) as run:
        source, backend = run.reader("double_buffer"), Inbox()
        loaded = source.load(backend)
        assert not source.ended()
        wait_until(lambda: run.arena.counters.load("version") > loaded.version)
        run.stop_writers()
        run.publisher.end()
        assert source.ended()
        assert source.has_newer()
        loaded = source.load(backend)
        version = run.arena.counters.load("version")
        assert (loaded.version, loaded.consistent) == (version, True)
        assert (loaded.age_updates, loaded.age_s) == (0, 0.0)
        check(loaded, backend.param_buffer, run.arena)
        late = run.reader("double_buffer")
        assert late.load(Inbox()).version == version
        for reader in (source, late):
            reader.close()


@pytest.mark.parametrize(
    ("mode", "values", "words"), [("double_buffer", 2, "average"), ("racy", 1, "worker 1 of 2")]
)
def test_of_averaged_runs_a_reader_says_whose_parameters_it_reads(mode, values, words, tmp_path):
    strategy = build(TrainConfig(steps=1, strategy="avg_runs"), 2)
    path = tmp_path / "socket"
    with Arena.create(layout(2, **strategy.segments(param_spec(MODEL)))) as arena:
        strategy.begin(arena)
        strategy.words(arena)["steps", 0] = 1  # amid a round: the replicas differ
        arena.segment("copies.1")[:], arena.segment("copies.2")[:] = 1, 3
        with arena.serve(path) as server:
            load = partial(strategy.load, training=True)
            publisher = Publisher(arena, server, load, Interval(seconds=1))
            source = RunWeights(Arena.connect(path), MODEL, name="averaged", mode=mode)
            backend = Inbox()
            source.load(backend)
            held = numbers(backend.param_buffer, arena)
            assert {tuple(one.tolist()) for one in held.values()} == {(values,)}
            assert words in source.name
            source.close()
            publisher.end()


def test_runs_without_copies_are_refused_by_the_modes_that_need_them(tmp_path):
    path = tmp_path / "socket"
    with Arena.create(plan(param_spec(MODEL), n_tickets=1)) as arena, arena.serve(path):
        with Arena.connect(path) as mine:
            for mode in READ_MODES[:-1]:
                with pytest.raises(ArenaError, match="--live on"):
                    RunWeights(mine, MODEL, name="bare", mode=mode)
        source = RunWeights(Arena.connect(path), MODEL, name="bare", mode="racy")
        assert source.load(Inbox()).version == 0
        source.close()
