from pathlib import Path

import numpy as np
import pytest

from mlxhog import train
from mlxhog.checkpoint import checkpoint
from mlxhog.errors import ConfigError
from mlxhog.training.plan import make_plan
from tests.training.small import identical, largest_difference, parameters, small_config

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("optimizer", "strategies"),
    [
        ("adamw", ["hogwild", "sync", "round_robin", "avg_runs", "async_ps", "ssp", "aig"]),
        ("lion", ["avg_runs", "local_sgd"]),
        ("momentum", ["sync"]),
        ("muon", ["hogwild", "sync"]),
        ("sgd", ["avg_runs", "locked"]),
    ],
)
def test_one_worker_of_any_strategy_is_the_serial_run_bit_for_bit(
    tmp_path: Path, optimizer: str, strategies: list[str]
) -> None:
    serial, *others = (
        parameters(train(small_config(tmp_path, strategy=strategy, optimizer=optimizer)))
        for strategy in ("serial", *strategies)
    )
    assert all(identical(serial, other) for other in others)


def test_the_write_mode_changes_nothing_for_one_worker(tmp_path: Path) -> None:
    lossless, racy, cas = (
        parameters(train(small_config(tmp_path, write=write)))
        for write in ("lossless", "racy", "cas")
    )
    assert identical(lossless, racy)
    assert identical(lossless, cas)


def test_synchronous_reruns_are_bit_identical(tmp_path: Path) -> None:
    config = small_config(tmp_path, strategy="sync", workers="mlx:cpu*2", steps=None, tokens=2560)
    assert identical(parameters(train(config)), parameters(train(config)))


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("round_robin", {"workers": "mlx:cpu*3", "optimizer": "momentum"}),
        ("local_sgd", {"optimizer": "sgd", "steps": None, "tokens": 2560}),
        ("scaffold", {"optimizer": "momentum", "local_work": "2,4"}),
        ("diloco", {"workers": "mlx:cpu*3", "inner_state": "average"}),
    ],
)
def test_reruns_are_bit_identical_also_when_they_are_saved_and_evaluated_on_the_way(
    tmp_path: Path, strategy: str, options: dict[str, object]
) -> None:
    more = {} if strategy == "round_robin" or "local_work" in options else {"average_every": 3}
    common = {"strategy": strategy, "workers": "mlx:cpu*2", "steps": 30, **more, **options}
    one = train(small_config(tmp_path, **common))
    other = train(small_config(tmp_path, save_every=9, eval_every=7, **common))
    assert identical(parameters(one), parameters(other))


@pytest.mark.parametrize(
    ("strategy", "schedule"),
    [
        ("round_robin", "backoff"),
        ("avg_runs", "constant"),
        ("local_sgd", "constant"),
        ("scaffold", "constant"),
        ("diloco", "backoff"),
    ],
)
def test_a_resumed_run_is_bit_identical_to_one_that_never_stopped(
    tmp_path: Path, strategy: str, schedule: str
) -> None:
    common = {"strategy": strategy, "workers": "mlx:cpu*2", "schedule": schedule}
    common |= {"backoff_steps": 10} if schedule == "backoff" else {"warmup": 0}
    if strategy in ("local_sgd", "scaffold", "diloco"):
        common["average_every"] = 4
    whole = train(small_config(tmp_path, steps=30, **common))
    first = train(small_config(tmp_path, steps=13, **common))
    second = train(small_config(tmp_path, steps=17, resume=first.run, **common))
    assert second.steps == 30
    assert identical(parameters(whole), parameters(second))


def test_in_round_robin_every_gradient_is_as_old_as_there_are_other_workers(tmp_path: Path) -> None:
    config = small_config(tmp_path, workers="mlx:cpu*3", strategy="round_robin", steps=30)
    result = train(config)
    assert [worker.steps for worker in result.workers] == [10, 10, 10]
    for rank, worker in enumerate(result.workers):
        assert worker.max_staleness == 2
        assert worker.mean_staleness == pytest.approx((rank + 9 * 2) / 10)  # the first read at 0


def test_averaged_runs_tell_of_every_copy_and_the_checkpoint_holds_the_average(
    tmp_path: Path,
) -> None:
    messages: list[str] = []
    config = small_config(
        tmp_path, workers="mlx:cpu*2", strategy="avg_runs", steps=60, lr=1e-2, eval_every="1h"
    )
    result = train(config, observer=lambda progress: messages.append(progress.message or ""))
    assert len(result.copies_bits_per_byte) == 2
    assert result.val_bits_per_byte is not None
    worse = result.val_bits_per_byte > min(result.copies_bits_per_byte)
    assert worse == any("averaging did not help" in message for message in messages)
    loaded = checkpoint.load(Path(str(result.checkpoint)))
    for name, value in loaded.params.items():
        copies = [loaded.optimizer[f"copies.{slot}/{name}"] for slot in (1, 2)]
        assert np.array_equal(value, (copies[0] + copies[1]) * np.float32(0.5))
    assert not np.array_equal(copies[0], copies[1])


def test_runs_that_are_averaged_often_agree_at_last(tmp_path: Path) -> None:
    config = small_config(
        tmp_path, workers="mlx:cpu*2", strategy="local_sgd", average_every=5, steps=150, lr=1e-2,
        eval_every="1h",
    )  # fmt: skip
    result = train(config)
    assert result.val_bits_per_byte is not None
    assert result.val_bits_per_byte < 3.0


def test_a_run_on_divided_text_resumes_bit_for_bit_and_also_with_other_workers(
    tmp_path: Path,
) -> None:
    common = {
        "strategy": "scaffold", "workers": "mlx:cpu*2", "schedule": "constant", "warmup": 0,
        "average_every": 4, "split": "dirichlet", "split_alpha": 0.3, "clients": 3,
    }  # fmt: skip
    messages: list[str] = []
    whole = train(
        small_config(tmp_path, steps=30, **common),
        observer=lambda progress: messages.append(progress.message or ""),
    )
    assert any("divided among 3 clients" in message for message in messages)
    first = train(small_config(tmp_path, steps=13, **common))
    second = train(small_config(tmp_path, steps=17, resume=first.run, **common))
    assert identical(parameters(whole), parameters(second))
    batches = [8, 15, 7]  # worker 0 takes clients 0 and 2 in turn
    assert checkpoint.load(Path(str(second.checkpoint))).state["clients"] == batches
    other = {**common, "workers": "mlx:cpu*3"}
    third = train(small_config(tmp_path, steps=12, resume=second.run, **other))
    counts = checkpoint.load(Path(str(third.checkpoint))).state["clients"]
    assert counts == [count + 4 for count in batches]


def test_two_synchronous_workers_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    two = train(small_config(tmp_path, strategy="sync", workers="mlx:cpu*2"))
    one = train(small_config(tmp_path, strategy="serial", batch_size=4))
    assert two.tokens == one.tokens
    # the two sums of the same gradients are rounded in another order
    assert largest_difference(parameters(two), parameters(one)) < 1e-4


def test_shares_by_speed_change_the_worker_and_not_the_result(tmp_path: Path) -> None:
    common = {
        "strategy": "sync", "workers": "mlx:cpu*2", "batch_size": 3, "optimizer": "momentum",
        "lr": 1e-2, "steps": 30,
    }  # fmt: skip
    equal = train(small_config(tmp_path, **common))
    for slow in ("0=10", "1=4", None):
        by_speed = train(small_config(tmp_path, sync_shares="speed", slow=slow, **common))
        assert by_speed.tokens == equal.tokens
        assert [worker.steps for worker in by_speed.workers] == [30, 30]
        assert largest_difference(parameters(by_speed), parameters(equal)) < 1e-4
        if slow is not None:
            of_slow, of_fast = sorted(worker.tokens for worker in by_speed.workers)
            assert of_slow < 0.7 * of_fast
            assert by_speed.workers[int(slow[0])].tokens == of_slow


def test_a_run_by_speed_is_resumed_and_passes_over_no_batch(tmp_path: Path) -> None:
    common = {
        "strategy": "sync", "workers": "mlx:cpu*2", "sync_shares": "speed", "slow": "1=4",
        "schedule": "constant", "warmup": 0, "optimizer": "momentum", "lr": 1e-2,
    }  # fmt: skip
    whole = train(small_config(tmp_path, steps=30, **common))
    first = train(small_config(tmp_path, steps=13, **common))
    second = train(small_config(tmp_path, steps=17, resume=first.run, **common))
    assert second.steps == 30
    assert largest_difference(parameters(whole), parameters(second)) < 1e-4


def test_a_slowed_worker_that_the_run_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="slow names worker 2, and the run has 2 with ranks 0 to"):
        make_plan(small_config(tmp_path, workers="mlx:cpu*2", slow="0=2,2=2"))


def test_a_late_worker_joins_a_run_and_a_synchronous_one_waits_for_it(tmp_path: Path) -> None:
    common = {"workers": "mlx:cpu*2", "slow": "1=late:400ms"}
    alone = train(small_config(tmp_path, steps=None, time=0.8, **common))
    assert alone.workers[1].steps > 0
    too_late = train(small_config(tmp_path, steps=20, **(common | {"slow": "1=late:60s"})))
    assert [worker.steps for worker in too_late.workers] == [20, 0]
    together = train(small_config(tmp_path, strategy="sync", steps=5, **common))
    assert together.seconds > 0.4
    assert [worker.steps for worker in together.workers] == [5, 5]


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path: Path) -> None:
    parts = train(small_config(tmp_path, grad_accumulation=2))
    whole = train(small_config(tmp_path, batch_size=4))
    assert parts.tokens == whole.tokens
    assert largest_difference(parameters(parts), parameters(whole)) < 1e-4


def test_mlx_and_torch_workers_train_one_set_of_parameters_side_by_side(tmp_path: Path) -> None:
    config = small_config(
        tmp_path, workers="mlx:cpu,torch:cpu", steps=120, lr=1e-2, eval_every="1h"
    )
    result = train(config)
    assert result.status == "done"
    assert result.steps == 120
    assert sum(worker.steps for worker in result.workers) == 120
    assert all(worker.steps > 0 for worker in result.workers)
    assert result.lost_update_rate == 0.0  # lossless is the default
    # words of five letters and spaces: far below the 8 bits of a uniform guess
    assert result.val_bits_per_byte is not None
    assert result.val_bits_per_byte < 3.0


def test_a_live_read_run_of_one_worker_equals_a_snapshot_run(tmp_path: Path) -> None:
    options = {"predict": "none", "workers": "torch:cpu"}
    snapshot = parameters(train(small_config(tmp_path, **options)))
    live = parameters(train(small_config(tmp_path, read="live", **options)))
    assert identical(snapshot, live)


def test_a_run_can_start_synchronous_and_continue_lock_free(tmp_path: Path) -> None:
    config = small_config(tmp_path, workers="mlx:cpu*2", async_after=0.5, steps=40)
    result = train(config)
    assert result.status == "done"
    assert result.steps >= 40
    assert result.tokens == 40 * 1.5 * 64  # as many as `mean_batches_per_step` says
    staleness = [worker.mean_staleness for worker in result.workers]
    assert max(staleness) > 0.0  # the second half overlapped


def test_a_token_budget_holds_although_synchronous_steps_take_more_tokens(tmp_path: Path) -> None:
    budget, per_batch = 6400, 64
    config = small_config(tmp_path, workers="mlx:cpu*2", async_after=0.5, steps=None, tokens=budget)
    result = train(config)
    assert result.status == "done"
    assert budget <= result.tokens < budget + 2 * per_batch


def test_shared_moments_train(tmp_path: Path) -> None:
    config = small_config(
        tmp_path, workers="mlx:cpu*2", moments="shared", steps=120, lr=1e-2, eval_every="1h"
    )
    result = train(config)
    assert result.val_bits_per_byte is not None
    assert result.val_bits_per_byte < 3.0
