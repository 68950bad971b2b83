"""`--batch-size auto`: speeds of growing batches choose one, and memory bounds it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mlxhog.arena.child import Failed
from mlxhog.backends.gpu_share import GPUShare
from mlxhog.base.workers import WorkerSpec
from mlxhog.checkpoint import new_run
from mlxhog.checkpoint.run import Run
from mlxhog.errors import EnvironmentLacks
from mlxhog.models.activations import Activations
from mlxhog.strategies import prediction
from mlxhog.training.plan import batch_size, memory
from mlxhog.training.plan.batch_size import FULL, advice, choose, limit_of, proposed
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.kernel_choice import Writers
from mlxhog.training.plan.memory import WORKER_BASE_BYTES, Memory
from mlxhog.training.plan.preview import facts
from mlxhog.training.plan.values import BatchChoice, BatchSpeed
from mlxhog.training.supervisor.training import train
from tests.training.small import Messages, small_config


def test_a_run_of_short_examples_in_which_updates_took_half_of_a_step_proposes_a_batch(tmp_path):
    lines = (json.dumps({"prompt": f"{n} + 1 =", "completion": f"{n + 1}"}) for n in range(900))
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    config = small_config(tmp_path, data=str(tmp_path / "sums.jsonl"), batch_size=4)
    plan = make_plan(config)
    length = plan.data.train.rows(config.seq_len).length.mean()
    like = {"workers": [{"backend": "mlx:cpu"}], "tokens": 4 * length * 9, "steps": 9}
    result = {**like, "shares": {"optimizer": 0.75}, "tokens_per_s": 1.0}
    status = {"status": "done", "parameters": plan.parameters, "result": result}
    new_run.create(Path(config.runs_dir), "earlier").write_status(status)
    text = f"examples have {length:.0f} tokens on average: with --batch-size 4 the optimizer takes "
    text += "about 75 % of a step, with --batch-size 32 27 %"
    (note,) = [one for one in make_plan(config).notes if "--batch-size" in one]
    assert note.startswith(f"{text}, by run 2")
    assert advice(plan, {**result, "shares": {"optimizer": 0.4}}) is None
    assert advice(plan, result) == text
    assert proposed(make_plan(replace(config, batch_size=32))) is None


@pytest.mark.parametrize(
    ("tokens_per_s", "most", "sequences", "asked"),
    [
        ((100, 190, 300, 309, 999), 1024, 4, [1, 2, 4, 8]),
        ((100, 106, 110), 1024, 2, [1, 2, 4]),
        ((100, 200, 400, 800), 7, 4, [1, 2, 4]),
        ((100,), 1, 1, [1]),
    ],
)
def test_a_batch_grows_until_tokens_per_second_stop_to_rise(tokens_per_s, most, sequences, asked):
    measured = []

    def measure(n, rest_s):
        assert rest_s == 100.0 - 3 * len(measured)
        measured.append(n)
        return [(tokens_per_s[len(measured) - 1], [1.0, 1.0])]

    choice = choose(most, "the text ends", 100.0, measure)
    assert (choice.sequences, measured) == (sequences, asked)
    assert (choice.why == "the text ends") == (2 * asked[-1] > most)
    if len(asked) == 4:
        assert str(choice) == (
            "batch_size auto: 4 sequences, because with 8 sequences tokens/s change by 3 %, less "
            "than 5 %; tokens/s of all workers: 100 with 1, 190 with 2, 300 with 4, 309 with 8"
        )


def test_workers_add_up_what_delays_a_few_gradients_does_not_count_and_time_is_limited():
    def measure(n, rest_s):
        return [(512 * n, [0.5, 0.5, 9.0, 0.5]), (512 * n, [1.0, 1.0])]

    choice = choose(1024, "", 20.0, measure)
    assert choice.speeds == (BatchSpeed(1, 512 / 0.5 + 512, 10.5 / 4),)
    assert choice.why == "gradients of 2 sequences would take the measurement over 20 s"


def test_a_worker_that_fails_bounds_the_batch_and_one_sequence_at_least_is_needed():
    def measure(n, rest_s):
        if n >= fails_from:
            raise Failed("MemoryError: out of memory")
        return [(n * 32, [1.0])]

    fails_from = 4
    choice = choose(1024, "", 60.0, measure)
    assert (choice.sequences, len(choice.speeds)) == (2, 2)
    assert choice.why == "a worker fails with 4 sequences (MemoryError: out of memory)"
    fails_from = 1
    with pytest.raises(EnvironmentLacks, match="cannot compute 1 sequence: .*give --batch-size a"):
        choose(1024, "", 60.0, measure)


TWO = {"workers": "mlx:cpu*2"}


def test_the_chosen_batch_is_that_of_the_run_and_of_a_resume(tmp_path, monkeypatch):
    choice = BatchChoice(2, "so it is", (BatchSpeed(2, 64.0, 1.0),))
    monkeypatch.setattr(batch_size, "measured", lambda plan, *, progress: choice)
    messages, config = Messages(), small_config(tmp_path, batch_size="auto", steps=3, **TWO)
    first = train(config, observer=messages)
    assert any("batch_size auto: 2 sequences, because so it is" in text for text in messages)
    assert first.tokens == 3 * 2 * 32
    directory = Path(first.run)
    assert yaml.safe_load((directory / "config.yaml").read_text())["batch_size"] == 2
    kept = Run(directory).read_status()["batch_size"]
    assert (kept["sequences"], kept["tokens_per_s"][0]["tokens_per_s"]) == (2, 64.0)
    monkeypatch.delattr(batch_size, "measured")
    again = train(replace(config, resume=first.run), observer=messages)
    assert (again.steps, again.tokens) == (6, 6 * 2 * 32)
    assert any("2 sequences, because the run began with it" in text for text in messages)


@pytest.mark.slow
def test_real_workers_are_measured(tmp_path):
    tables = {"set": "ngram_orders=2-3,ngram_rows=64", "sampled_softmax": 8}
    workers = {"batch_size": "auto", "workers": "mlx:cpu,torch:cpu", "time": 36_000}
    plan = make_plan(small_config(tmp_path, **workers, **tables))
    assert len(plan.batch.speeds) > 1
    assert plan.config.batch_size == plan.batch.sequences
    assert str(plan.batch) in plan.notes


def test_the_largest_batch_is_the_largest_that_a_run_may_have(tmp_path):
    plan = make_plan(small_config(tmp_path, batch_size=1, grad_accumulation=3, **TWO))
    assert limit_of(plan)[0] == plan.epoch_tokens // 32 // (2 * 3)  # each has text of its own
    config = small_config(tmp_path, batch_size=1, strategy="serial")
    plan = make_plan(config)
    room = plan.arena_bytes + WORKER_BASE_BYTES + plan.memory.of_batch(40) + 1000
    config = replace(config, memory_limit=room / plan.memory.machine_bytes)
    assert limit_of(make_plan(config)) == (40, "more do not fit in memory (--memory-limit)")
    make_plan(replace(config, batch_size=40))
    with pytest.raises(EnvironmentLacks, match="smaller --batch-size"):
        make_plan(replace(config, batch_size=41))


def test_blocks_are_recomputed_where_the_batch_does_not_fit_otherwise(tmp_path):
    config = small_config(tmp_path, batch_size=40, strategy="serial", set="num_hidden_layers=8")
    plan = make_plan(config)
    assert (plan.config.recompute, plan.stored.recompute, plan.memory.recompute) == ("none",) * 3
    assert plan.recompute_from == "auto: the activations of all blocks fit in memory"
    room = plan.arena_bytes + plan.worker_bytes - 1
    config = replace(config, memory_limit=room / plan.memory.machine_bytes)
    plan = make_plan(config)
    assert (plan.config.recompute, plan.stored.recompute, plan.memory.recompute) == ("blocks",) * 3
    (note,) = [one for one in plan.notes if "recompute" in one]
    assert note == f"recompute blocks, {plan.recompute_from}"
    assert re.fullmatch(r"auto: without it the run needs .* GiB .*, the limit is .*", note[18:])
    assert facts(plan, config)["recompute"] == "blocks"
    with pytest.raises(EnvironmentLacks, match="use --recompute blocks, fewer --workers, .*"):
        make_plan(replace(config, recompute="none"))
    with pytest.raises(EnvironmentLacks, match="use fewer --workers"):
        make_plan(replace(config, batch_size=4000))


@pytest.mark.parametrize(("rate", "recompute"), [(104.0, "none"), (106.0, "blocks")])
def test_blocks_are_recomputed_where_memory_ends_the_batch_and_a_larger_one_is_faster(
    rate, recompute, tmp_path, monkeypatch
):
    def measured(plan, *, progress):
        if plan.config.recompute == "none":
            return BatchChoice(2, FULL[0], (BatchSpeed(2, 100.0, 1.0),))
        return BatchChoice(4, "so it is", (BatchSpeed(4, rate, 1.0),))

    monkeypatch.setattr(batch_size, "measured", measured)
    config = small_config(tmp_path, batch_size="auto", strategy="serial")
    plan = make_plan(config)
    assert (plan.config.recompute, plan.config.batch_size) == (recompute, 2 * (1 + (rate > 105)))
    assert ("slower" in plan.recompute_from) == (recompute == "blocks")
    assert make_plan(replace(config, recompute="none")).config.batch_size == 2


def test_a_batch_that_does_not_fit_the_gpu_is_refused_with_the_largest_that_does(monkeypatch):
    gib, two = 1 << 30, [WorkerSpec("mlx:gpu", 1)] * 2
    kept = Activations(gib // 2, 0.0, 1, 1.0, loss_bytes=gib, gradient_bytes=gib)
    memory_of = Memory(1, 1.0, kept=kept)
    monkeypatch.setattr(memory, "own_gpu_bytes", lambda share, workers: 6 * gib)
    share = GPUShare(workers=2)
    memory_of.check_gpu(10, share, two)
    none = replace(memory_of, kept=kept._replace(token_bytes=9 * gib), base_bytes=gib)
    with pytest.raises(EnvironmentLacks, match="take --recompute blocks, --base-weights 4bit, a"):
        none.check_gpu(1, share, two)
    with pytest.raises(EnvironmentLacks, match=r"6\.5 GiB on the GPU.*has 6\.0 GiB") as refusal:
        memory_of.check_gpu(11, share, two)
    assert "the largest batch that fits is 10 (--batch-size 10)" in str(refusal.value)


def test_a_gpus_share_counts_all_memory_of_the_run_that_a_framework_takes_as_its_own(tmp_path):
    options = {"workers": "torch:cpu*2", "moments": "shared", "predict": "last"}
    plan = make_plan(small_config(tmp_path, **options))
    run, layout = plan.strategy.run, plan.layout
    traces = prediction.segments(run, plan.strategy.slots)
    assert len(traces) == 2
    one = 4 * layout.n_floats
    assert layout.n_dense == layout.n_floats

    def wrapped(gpu_write, *, traces=(), base_bytes=0, read="snapshot"):
        workers, writers = [WorkerSpec("mlx:gpu", 1)] * 2, Writers(gpu_write, "racy")
        how, config = {"traces": traces, "base_bytes": base_bytes}, SimpleNamespace(read=read)
        return memory.gpu_share(config, workers, writers, layout, **how)

    directions = 4 * layout.dense_end
    assert wrapped("cpu") == GPUShare(workers=2)
    assert wrapped("cpu", base_bytes=1000).wrapped_bytes == 1000
    assert wrapped("metal").wrapped_bytes == one + directions
    assert wrapped("metal", traces=traces).wrapped_bytes == 3 * one + directions
    assert wrapped("metal", read="live").wrapped_bytes == 2 * one + directions


def test_a_run_that_does_not_fit_is_refused_with_the_limit_that_it_exceeds():
    limit = "memory.max of control group /sys/fs/cgroup/x"
    with pytest.raises(EnvironmentLacks, match=rf"\(0\.5 of 2\.0, {limit}\).*--memory-limit"):
        Memory(2 << 30, 0.5, limit).check_run(1 << 29, 1 << 30, 1)
