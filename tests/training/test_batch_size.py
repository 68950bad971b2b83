"""`--batch-size auto`: speeds of growing batches choose one, and memory bounds it."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mlxhog import train
from mlxhog.arena.child import Failed
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.base import batch_speeds
from mlxhog.base.batch_speeds import BatchSpeed
from mlxhog.base.load import Load
from mlxhog.base.workers import WorkerSpec
from mlxhog.checkpoint.run import Run
from mlxhog.errors import EnvironmentLacks
from mlxhog.report.views import StatusLine
from mlxhog.training import batch_size, memory
from mlxhog.training.batch_size import choose, limit_of, speed_of
from mlxhog.training.memory import WORKER_BASE_BYTES, GradientMemory, check_gpu
from mlxhog.training.plan import make_plan
from tests.training.small import small_config


class Watch:
    """Sees what other programs do, here nothing."""

    others = 0.0

    def look(self):
        return Load(self.others, 2, 0.0)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(batch_size, "LoadWatch", Watch)


def speeds(*tokens_per_s, error=0.0):
    """Of 1, 2, 4, ... sequences."""
    return [BatchSpeed(2**k, speed, error, 1.0) for k, speed in enumerate(tokens_per_s)]


# -- the rule --------------------------------------------------------------------------------------


def chosen(these, limit, known):
    """The choice, and the batches that it had measured; it must not ask for others."""
    by_size, asked = {one.sequences: one for one in these}, list[int]()

    def measure(sequences, before):
        asked.append(sequences)
        return by_size[sequences]

    return choose(these[:known], *limit, measure), asked


@pytest.mark.parametrize(
    ("tokens_per_s", "error", "limit", "known", "sequences", "asked"),
    [
        ((100, 190, 300, 309, 999), 0.0, 1024, 0, 4, [1, 2, 4, 8]),
        ((100, 110, 112), 0.02, 1024, 0, 2, [1, 2, 4]),
        ((100, 110, 112), 0.04, 1024, 0, 1, [1, 2]),  # within two standard errors
        ((100, 200, 400, 800), 0.0, 7, 0, 4, [1, 2, 4]),
        ((100, 200, 300, 301), 0.0, 1024, 2, 4, [4, 8]),
        ((100, 200, 300, 301), 0.0, 1024, 4, 4, []),
    ],
)
def test_a_batch_grows_until_tokens_per_second_stop_to_rise(
    tokens_per_s, error, limit, known, sequences, asked
):
    limit = (limit, "the text ends")
    choice, measured = chosen(speeds(*tokens_per_s, error=error), limit, known=known)
    assert (choice.sequences, measured, choice.measured) == (sequences, asked, len(asked))
    assert (choice.why == "the text ends") == (limit[0] == 7)
    assert ("(measured by an earlier run)" in str(choice)) == (not asked)
    if sequences == 4 and len(asked) == 4:
        assert str(choice) == (
            "batch_size auto: 4 sequences, because with 8 sequences tokens/s change by 3 %, less "
            "than the margin of 5 %; tokens/s of all workers: "
            "100 with 1, 190 with 2, 300 with 4, 309 with 8 (measured now)"
        )


def test_workers_add_up_and_what_delays_a_few_gradients_does_not_count():
    speed = speed_of(2, [(512, [0.5, 0.5, 9.0, 0.5]), (512, [1.0, 1.0])])
    assert speed == BatchSpeed(2, 512 / 0.5 + 512, 0.0, 10.5 / 4)
    assert speed_of(2, [(512, [0.4, 0.6, 9.0])]).error == pytest.approx(0.2 / 2**0.5)


# -- the measurement -------------------------------------------------------------------------------


class FakeChild:
    """One of two workers whose gradients take a second per sequence, and fail from some batch on.

    Neither is waited for before both have begun.
    """

    fails_from = 4
    begun = 0

    def __init__(self, *, promises):
        self.result = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self, lane, function, setup, rank, sequences, *limit_s):
        assert (function is batch_size.gradient_times) == bool(limit_s)
        FakeChild.begun += 1
        self.result = (sequences * 32, [float(sequences)] * 2) if limit_s else None
        self.failed = sequences >= self.fails_from

    def take(self, lane, timeout_s):
        assert FakeChild.begun % 2 == 0
        if self.failed:
            raise Failed("MemoryError: out of memory")
        return self.result


def open_config(tmp_path, **options):
    return small_config(tmp_path, batch_size="auto", **options)


TWO = {"workers": "mlx:cpu*2"}


@pytest.fixture
def fake(monkeypatch):
    """Workers that only seem to compute, and a batch that grows as long as it can."""
    monkeypatch.setattr(batch_size, "Child", FakeChild)
    monkeypatch.setattr(batch_size, "LEAST_RISE", -1.0)


@pytest.mark.usefixtures("fake")
def test_a_worker_that_fails_bounds_the_batch(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(batch_size, "MEASURE_S", 60.0)
    monkeypatch.setattr(StatusLine, "show", lambda _, text: shown.append(text))
    plan = make_plan(open_config(tmp_path, **TWO), progress=True)
    choice = plan.batch
    assert shown == [
        f"measuring tokens/s with {n} in a batch"
        for n in ("1 sequence", "2 sequences", "4 sequences")
    ]
    assert choice is not None
    assert plan.config.batch_size == choice.sequences == 2
    assert "a worker fails with 4 sequences (MemoryError: out of memory)" in choice.why
    assert [one.tokens_per_s for one in choice.speeds] == [64, 64]
    monkeypatch.setattr(FakeChild, "fails_from", 1)
    monkeypatch.setattr(batch_speeds, "load", lambda key: ())
    with pytest.raises(EnvironmentLacks, match="cannot compute 1 sequence: .*give --batch-size a"):
        make_plan(open_config(tmp_path, **TWO))


@pytest.mark.slow
def test_real_workers_are_measured_and_their_speeds_kept(tmp_path):
    tables = {"set": "ngram_orders=2-3,ngram_rows=64", "sampled_head": 8}
    config = open_config(tmp_path, workers="mlx:cpu,torch:cpu", time=60, **tables)
    plan = make_plan(config)
    choice = plan.batch
    assert choice is not None
    assert choice.measured == len(choice.speeds) > 1
    assert batch_speeds.load(batch_size._key(plan)) == choice.speeds
    assert plan.config.batch_size == choice.sequences
    assert str(choice) in plan.notes


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad_accumulation", [1, 3])
def test_every_gradient_of_a_step_has_text_of_its_own(tmp_path, grad_accumulation):
    more = {**TWO, "grad_accumulation": grad_accumulation}
    plan = make_plan(small_config(tmp_path, batch_size=1, **more))
    most, why = limit_of(plan)
    text = plan.epoch_tokens // 32
    assert most == text // (2 * grad_accumulation)
    assert f"{text} sequences of the text" in why


def test_the_largest_batch_is_the_largest_that_a_run_may_have(tmp_path):
    config = small_config(tmp_path, batch_size=1, strategy="serial")
    plan = make_plan(config)
    room = plan.arena_bytes + WORKER_BASE_BYTES + plan.gradient_memory.of_batch(40) + 1000
    config = replace(config, memory_limit=room / plan.memory.machine_bytes)
    assert limit_of(make_plan(config)) == (40, "more do not fit in memory (--memory-limit)")
    make_plan(replace(config, batch_size=40))
    with pytest.raises(EnvironmentLacks, match="smaller --batch-size"):
        make_plan(replace(config, batch_size=41))


GPU, CPU = WorkerSpec("mlx:gpu", 1), WorkerSpec("mlx:cpu", 1)
GIB = 1 << 30
GRADIENT = GradientMemory(fixed_bytes=GIB, sequence_bytes=GIB // 2)


def test_a_batch_that_does_not_fit_the_gpu_is_refused_with_the_largest_that_does(monkeypatch):
    monkeypatch.setattr(memory, "own_gpu_bytes", lambda share, workers: 6 * GIB)
    share = GPUShare(workers=2)
    check_gpu(10, GRADIENT, share, [GPU, GPU], machine_bytes=1)
    with pytest.raises(EnvironmentLacks) as refusal:
        check_gpu(11, GRADIENT, share, [GPU, GPU], machine_bytes=1)
    for words in (
        "batch_size is 11: its gradient needs about 6.5 GiB on the GPU, and a worker has 6.0 GiB",
        "2 GPU workers",
        "the largest batch that fits is 10 (--batch-size 10)",
    ):
        assert words in str(refusal.value)


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch):
    """Keeps speeds by which the batch of a run is 2; nothing can be measured."""

    def keep(config):
        plan = make_plan(replace(config, batch_size=1))
        batch_speeds.save(batch_size._key(plan), speeds(100, 200, 201))

    monkeypatch.setattr(batch_size, "Child", None)
    return keep


@pytest.mark.slow
def test_a_run_has_the_batch_that_was_measured_and_a_resume_keeps_it(tmp_path, two):
    config, messages = open_config(tmp_path, steps=3), list[str]()

    def observer(progress):
        messages.append(progress.message or "")

    two(config)
    first = train(config, observer=observer)
    (line,) = (text for text in messages if text.startswith("batch_size auto: "))
    assert "2 sequences, because with 4 sequences tokens/s change by 0.5 %" in line
    assert first.tokens == 3 * 2 * 32
    directory = Path(first.run)
    assert yaml.safe_load((directory / "config.yaml").read_text())["batch_size"] == 2
    kept = Run(directory).read_status()["batch_size"]
    assert kept["sequences"] == 2
    assert [one["tokens_per_s"] for one in kept["tokens_per_s"]] == [100, 200, 201]

    plan = make_plan(replace(config, batch_size=1))
    batch_speeds.save(batch_size._key(plan), speeds(100, 100))  # measured now, it would be 1
    again = train(open_config(tmp_path, steps=3, resume=first.run), observer=observer)
    assert (again.steps, again.tokens) == (6, 6 * 2 * 32)
    assert any("2 sequences, because the run began with it" in text for text in messages)
    assert Run(directory).read_status()["batch_size"] == kept


@pytest.mark.usefixtures("fake")
def test_speeds_of_a_busy_machine_are_used_but_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Watch, "others", 1.2)
    for _ in range(2):
        plan = make_plan(open_config(tmp_path, **TWO))
        assert plan.batch.measured == 2
    assert plan.notes[-1].endswith("; not kept, since other programs used 1.2 of 2 processors")


@pytest.mark.parametrize(
    "other",
    [{"seq_len": 64}, {"workers": "mlx:cpu*2"}, {"kernels": "reference"},
     {"set": "hidden_size=64"}, {"compute_dtype": "bfloat16"}],
)  # fmt: skip
def test_speeds_of_another_kind_of_run_do_not_count(tmp_path, other):
    options = ({}, other, {"lr": 1})
    keys = [batch_size._key(make_plan(small_config(tmp_path, **more))) for more in options]
    assert keys[0] == keys[2] != keys[1]
