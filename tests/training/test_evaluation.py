"""The final evaluation: every batch once, or as many as there is time for, despite deaths."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog.arena.control import EVAL_ROUND, LINE, NAMES, Command, Counters
from mlxhog.base.quantities import Interval
from mlxhog.config.config import EMULATED, TrainConfig
from mlxhog.data import subset
from mlxhog.data.tokenizers import ByteTokenizer
from mlxhog.data.tokens import TokenFile, TokenWriter
from mlxhog.errors import WorkerFailed
from mlxhog.training import evaluation
from mlxhog.training.deadlines import Deadlines
from mlxhog.training.evaluation import HeldOutScore, HeldOutText, HeldOutTexts, ScoreTable, spread
from mlxhog.training.final_evaluation import FinalEvaluation
from mlxhog.training.held_out_watch import HeldOutWatch

BATCHES = 4
ONE = HeldOutScore(nats=2.0, n_bytes=3, tokens=4, share=1 / BATCHES)


class Worker:
    """The side jobs of a worker whose model needs no computing."""

    def __init__(self, monkeypatch):
        self.counters = Counters(np.zeros(LINE * len(NAMES), np.uint8))
        self.memory = np.zeros(LINE * BATCHES, np.uint8)
        self.scored = []
        self.meanwhile = lambda: None  # happens while a batch is scored
        texts = SimpleNamespace(score=self._score)
        monkeypatch.setattr(evaluation.TokenFile, "open", lambda path: None)
        monkeypatch.setattr(evaluation, "param_count", lambda model: 1)
        monkeypatch.setattr(evaluation, "HeldOutTexts", lambda *_: texts)
        arena = SimpleNamespace(counters=self.counters, segment=lambda name: self.memory)
        context = SimpleNamespace(
            arena=arena,
            entry=SimpleNamespace(beat=lambda phase: None),
            backend=None,
            training=lambda: False,
            copy_to_inbox=lambda: None,
            settle=lambda: None,
        )
        job = SimpleNamespace(config=None, slot=1, setup=SimpleNamespace(model=None))
        of_run = SimpleNamespace(val=Path(), asked_bytes=1)
        ring = SimpleNamespace(append=None)  # nothing of the final evaluation goes there
        self.jobs = evaluation.TextJobs(of_run, job, context, ring)
        self.scores = ScoreTable(self.memory)

    def _score(self, backend, place):
        self.scored.append(place)
        self.meanwhile()
        return ONE

    def begin(self, round_, *, first=None, until_ns=0, end=BATCHES):
        """Begin a round, as the supervisor does."""
        self.counters.store("side_until_ns", until_ns)
        self.counters.store("eval_first", round_ if first is None else first)
        self.counters.store("eval_end", end)
        self.counters.store("eval_next", round_ * EVAL_ROUND)
        self.counters.store("command", Command.EVALUATE)


@pytest.fixture
def worker(monkeypatch):
    return Worker(monkeypatch)


def test_every_batch_is_scored_once_and_the_sums_lie_in_the_arena(worker):
    worker.begin(1)
    worker.jobs.evaluate_rest()
    worker.jobs.evaluate_rest()  # a second call has nothing left to do
    assert sorted(worker.scored) == [0, 1, 2, 3]
    assert worker.scores.total(first=1) == HeldOutScore(nats=8.0, n_bytes=12, tokens=16, share=1.0)


def test_batches_of_a_dead_worker_are_shared_out_anew_and_the_others_kept(worker):
    worker.begin(1)
    worker.counters.add("eval_next", 1)  # the worker with the first batch died
    worker.jobs.evaluate_rest()
    assert worker.scores.total(first=1).share == 0.75
    worker.begin(2, first=1)
    worker.jobs.evaluate_rest()
    assert worker.scored[3:] == [0]
    assert worker.scores.total(first=1).share == 1.0


def test_a_worker_that_is_busy_when_a_new_round_begins_takes_part_in_it(worker):
    def find_another_dead():
        if len(worker.scored) == 2:
            worker.begin(2, first=1)

    worker.meanwhile = find_another_dead
    worker.begin(1)
    worker.jobs.evaluate_rest()
    assert sorted(worker.scored) == [0, 1, 2, 3]
    assert worker.scores.total(first=1).share == 1.0


def test_an_evaluation_of_other_parameters_begins_at_nothing(worker):
    worker.begin(1)
    worker.jobs.evaluate_rest()
    worker.begin(2)
    assert worker.scores.total(first=2) == HeldOutScore(nats=0.0, n_bytes=0, tokens=0, share=0.0)
    worker.jobs.evaluate_rest()
    assert worker.scores.total(first=2).share == 1.0


def test_no_batch_is_begun_when_the_time_is_over_or_the_run_is_ending(worker):
    def end():
        if len(worker.scored) == 2:
            worker.counters.store("side_until_ns", 1)  # long ago

    worker.meanwhile = end
    worker.begin(1)
    worker.jobs.evaluate_rest()
    assert worker.scored == [0, 1]
    assert worker.scores.total(first=1).share == 0.5
    worker.begin(2)
    worker.counters.store("command", Command.EXIT)
    worker.jobs.evaluate_rest()
    assert len(worker.scored) == 2


def test_an_evaluation_that_training_has_ended_before_is_not_taken_up_beside_the_last_sample(
    worker, monkeypatch
):
    done = []
    monkeypatch.setattr(worker.jobs, "_evaluate", lambda: done.append("evaluation"))
    monkeypatch.setattr(worker.jobs, "_sample", lambda: done.append("sample"))
    for what in ("eval_asked", "sample_asked"):
        worker.counters.store(what, 1)
    worker.counters.store("command", Command.SAMPLE)
    worker.jobs.serve()
    assert done == ["sample"]
    monkeypatch.setattr(worker.jobs.context, "training", lambda: True)
    worker.jobs.serve()
    assert done == ["sample", "evaluation"]


class Supervising:
    """The final evaluation of a run with scripted workers; the part has two batches."""

    def __init__(self, *happens):
        self.events, self.messages = list[str](), list[str]()
        self.counters = Counters(np.zeros(LINE * len(NAMES), np.uint8))
        memory = np.zeros(LINE * BATCHES, np.uint8)
        self.scores, self.has_workers, self._happens = ScoreTable(memory), True, iter(happens)
        self.interrupts = 0
        supervisor = SimpleNamespace(
            command=lambda command: self.events.append(command.name),
            has_workers=lambda: self.has_workers,
            ends=lambda: 0,
            seats=[None],
        )
        session = SimpleNamespace(
            arena=SimpleNamespace(counters=self.counters, segment=lambda name: memory),
            supervisor=supervisor,
            strategy=SimpleNamespace(
                copies=lambda: (),
                each_copy=lambda _: nullcontext(()),
                warning=lambda *_: None,
                config=TrainConfig(),
            ),
            until=self._until,
            drain=lambda: self.events.append("drain"),
            report=self.messages.append,
            interrupts=lambda: self.interrupts,
        )
        self.monitor = SimpleNamespace(
            evaluations=0,
            evaluating_s=0.0,
            seconds=lambda: 1.0,
            totals=lambda: (16, 1600, 1.0),
            take_evaluation=self._take,
            take_final=lambda *_: self.events.append("larger"),
        )
        part = SimpleNamespace(batches=2, tokens=100, larger_share=1.0)
        self.evaluation = FinalEvaluation(session, part, self.monitor, Deadlines(0, None))
        self.evaluation.begin()

    def _until(self, *_):
        interrupts = self.interrupts
        next(self._happens)()
        return self.interrupts == interrupts

    def _take(self, nats, n_bytes, tokens, step):
        self.events.append("part")
        self.step = step

    def score(self, *places, round_=1):
        for place in places:
            self.scores.put(place, round_, replace(ONE, n_bytes=3 + place))


def test_an_evaluation_of_training_is_taken_in_before_the_final_one_begins():
    run = Supervising()
    assert run.events == ["drain", "EVALUATE"]
    assert run.counters.load("eval_end") == BATCHES


def give_up():
    raise WorkerFailed("worker 1 died 3 times")


def test_where_a_worker_is_given_up_the_others_complete_the_fixed_part_and_no_more():
    score = [lambda: run.score(0, 2, 3), lambda: run.score(1)]
    run = Supervising(*score)
    run.evaluation.finish()
    assert (run.events[2:], run.messages) == (["part", "larger"], [])
    run = Supervising(score[0], give_up, score[1])
    run.evaluation.finish()
    assert run.counters.load("eval_end") == 2
    assert run.events[2:] == ["part"]
    assert run.messages == ["the larger held-out score was left out: worker 1 died 3 times"]


def interrupted(tokens, *, evaluations=0, evaluating_s=0.0):
    """A run that is interrupted in its last evaluation, after a second of training."""

    def interrupt():
        run.interrupts = 1
        run.counters.store("tokens", tokens)
        run.monitor.evaluations, run.monitor.evaluating_s = evaluations, evaluating_s

    run = Supervising(interrupt, lambda: run.score(0, 1, round_=2))
    run.evaluation.finish()
    return run


@pytest.mark.parametrize(
    ("speed", "is_scored"),
    [
        ({"tokens": 0}, False),  # nothing was trained
        ({"tokens": 6}, False),  # 100 tokens at 6 x 3 a second
        ({"tokens": 8}, True),
        ({"tokens": 8, "evaluations": 3, "evaluating_s": 18.0}, False),
        ({"tokens": 6, "evaluations": 3, "evaluating_s": 12.0}, True),
    ],
)
def test_after_an_interrupt_the_fixed_part_is_scored_if_that_takes_less_than_five_seconds(
    speed, is_scored
):
    run = interrupted(**speed)
    assert run.events[2:] == (["drain", "EVALUATE", "part"] if is_scored else ["drain"])
    assert run.counters.load("eval_end") == (2 if is_scored else BATCHES)
    assert not is_scored or run.step == 16


@pytest.mark.parametrize("has_workers", [False, True])
def test_a_run_whose_fixed_part_cannot_be_completed_fails(has_workers):
    def lose_one():
        run.has_workers = has_workers
        give_up()

    run = Supervising(lambda: run.score(0, 3), lose_one, give_up)
    with pytest.raises(WorkerFailed, match="worker 1 died 3 times"):
        run.evaluation.wait()


@pytest.mark.parametrize("n", [1, 2, 3, 10, 89, 1000, 3378])
def test_the_first_batches_are_spread_evenly_over_the_text(n):
    order = spread(n)
    assert sorted(order) == list(range(n))
    for share in (0.1, 0.38, 0.5, 0.9):
        first = np.sort(order[: max(1, int(share * n))])
        gaps = np.diff(np.concatenate([first, [first[0] + n]]))
        assert gaps.max() <= 3 * n / len(first)


def test_a_large_model_is_evaluated_in_small_batches(tmp_path):
    config = SimpleNamespace(seq_len=256)
    rows = [
        evaluation.HeldOutText.of(None, config, n).rows
        for n in (1_000_000, 30_000_000, 162_000_000, 1_300_000_000)
    ]
    assert rows == [16, 4, 1, 1]


def test_an_evaluation_that_does_not_score_all_of_its_text_has_no_score(monkeypatch):
    monkeypatch.setattr(evaluation.HeldOutText, "n_batches", 3)
    monkeypatch.setattr(evaluation.HeldOutText, "score", lambda *_: ONE)
    text, backend = evaluation.HeldOutText(None, 1, 1), None
    answers = iter([False, False, True])
    assert text.score_whole(backend, lambda: next(answers)) is None
    whole = text.score_whole(backend, lambda: False)
    assert whole == HeldOutScore(nats=6.0, n_bytes=9, tokens=12, share=1.0)


def test_a_round_of_the_fixed_part_alone_leaves_the_other_batches(worker):
    worker.begin(1, end=2)
    worker.jobs.evaluate_rest()
    assert worker.scored == [0, 1]


def held_out_file(folder, n_bytes):
    path = folder / "val.bin"
    with TokenWriter(path, ByteTokenizer(), split="val", source="test") as writer:
        for k in range(40):
            writer.add(b"%02d" % k + b"x" * (n_bytes // 40 - 2))
    return TokenFile.open(path)


def test_the_fixed_part_is_scored_first_and_whole_then_the_rest_spread_over_all_text(
    tmp_path, monkeypatch
):
    file = held_out_file(tmp_path, 40_000)
    config = TrainConfig(seq_len=50)
    texts = HeldOutTexts(file, config, 1000, 8000)
    assert texts.larger is not None
    assert texts.larger.file is file
    scored = []
    monkeypatch.setattr(HeldOutText, "score", lambda text, _, batch: scored.append((text, batch)))
    for place in range(texts.n_batches):
        texts.score(None, place)
    n, rest = texts.part.n_batches, texts.larger.n_batches
    assert scored == [(texts.part, k) for k in range(n)] + [(texts.larger, k) for k in spread(rest)]
    assert HeldOutTexts(file, config, 1000, 40_000).larger is None
    assert HeldOutTexts(file, replace(config, kernels=EMULATED), 1000, 8000).larger is None


def test_a_worker_finds_the_larger_text_only_where_it_scores_a_batch_of_it(tmp_path, monkeypatch):
    file, sizes, of = held_out_file(tmp_path, 40_000), list[int](), subset.of

    def noted(file, n_bytes):
        sizes.append(n_bytes)
        return of(file, n_bytes)

    monkeypatch.setattr(subset, "of", noted)
    monkeypatch.setattr(evaluation, "param_count", lambda model: 1000)
    backend = SimpleNamespace(evaluate=lambda batch: SimpleNamespace(nats=1.0, targets=1))
    arena = SimpleNamespace(segment=lambda name: np.zeros(LINE, np.uint8))
    context = SimpleNamespace(arena=arena)
    job = SimpleNamespace(config=TrainConfig(seq_len=50), setup=SimpleNamespace(model=None))
    ring = None
    jobs = evaluation.Text(file.path, ByteTokenizer(), 8000).open(job, context, ring)
    whole = jobs._texts.part.score_whole(backend, lambda: False)  # as while training
    assert whole.share == 1.0
    assert sizes == [8000]
    for _ in range(2):
        jobs._texts.score(backend, jobs._texts.part.n_batches)
    assert len(sizes) == 2


def test_the_size_of_the_part_follows_from_the_options_and_is_64_kib_where_it_can_be(tmp_path):
    file = held_out_file(tmp_path, 1_000_000)
    for config, parameters, size in (
        (TrainConfig(time=10), 940_000, 65_536),
        (TrainConfig(time=36_000), 940_000, 65_536),
        (TrainConfig(time=60), 10_400_000, 32_768),
        (TrainConfig(time=600), 10_400_000, 65_536),
        (TrainConfig(steps=20), 10_400_000, 65_536),
        (TrainConfig(steps=20), 10**13, evaluation.LEAST_BYTES),
        (TrainConfig(steps=20, kernels=EMULATED), 940_000, 16_384),
        (TrainConfig(time=60, eval_tokens=5000), 10**13, 5000),
    ):
        assert evaluation.choose_bytes(config, parameters, file) == size


def test_evaluations_by_time_take_a_twentieth_of_the_workers_time_and_those_by_steps_any():
    asked = []
    monitor = SimpleNamespace(evaluations=0, evaluating_s=0.0, seconds=lambda: 100.0)
    supervisor = SimpleNamespace(ends=lambda: len(deaths))
    deaths = []
    team = SimpleNamespace(workers=2)
    session = SimpleNamespace(supervisor=supervisor, strategy=team, ask=asked.append)
    watch = HeldOutWatch(every=Interval(seconds=10))

    def asks():
        before = len(asked)
        watch.ask_for_next(session, monitor)
        return len(asked) > before

    assert asks()
    assert not asks()  # the first one is not over
    monitor.evaluations, monitor.evaluating_s = 1, 10.0
    assert asks()
    monitor.evaluations, monitor.evaluating_s = 2, 10.1
    assert not asks()
    monitor.evaluating_s = 5.0
    assert asks()
    deaths.append(1)  # maybe of the worker that evaluates
    assert asks()
    watch.every = Interval(steps=5)
    monitor.evaluating_s = 1000.0
    assert asks()
    assert asks()
