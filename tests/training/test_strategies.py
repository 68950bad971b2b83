from pathlib import Path

import pytest

from mlxhog import train
from tests.training.small import identical, largest_difference, parameters, small_config


@pytest.mark.parametrize("optimizer", ["adamw", "momentum", "sgd"])
def test_one_hogwild_worker_is_the_serial_run_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    runs = [
        train(small_config(tmp_path, strategy=strategy, optimizer=optimizer))
        for strategy in ("serial", "hogwild", "sync")
    ]
    serial, hogwild, sync = (parameters(run) for run in runs)
    assert identical(serial, hogwild)
    assert identical(serial, sync)


@pytest.mark.parametrize("write", ["racy", "cas"])
def test_the_write_mode_changes_nothing_for_one_worker(tmp_path: Path, write: str) -> None:
    lossless = parameters(train(small_config(tmp_path)))
    other = parameters(train(small_config(tmp_path, write=write)))
    assert identical(lossless, other)


@pytest.mark.parametrize("budget", [{"steps": 20}, {"steps": None, "tokens": 2560}])
def test_synchronous_reruns_are_bit_identical(tmp_path: Path, budget: dict[str, object]) -> None:
    config = small_config(tmp_path, strategy="sync", workers="torch:cpu*2", **budget)
    assert identical(parameters(train(config)), parameters(train(config)))


def test_two_synchronous_workers_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    two = train(small_config(tmp_path, strategy="sync", workers="torch:cpu*2"))
    one = train(small_config(tmp_path, strategy="serial", batch_size=4))
    assert two.tokens == one.tokens
    # the two sums of the same gradients are rounded in another order
    assert largest_difference(parameters(two), parameters(one)) < 1e-4


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path: Path) -> None:
    parts = train(small_config(tmp_path, grad_accumulation=2))
    whole = train(small_config(tmp_path, batch_size=4))
    assert parts.tokens == whole.tokens
    assert largest_difference(parameters(parts), parameters(whole)) < 1e-4


def test_mlx_and_torch_workers_train_one_set_of_parameters_side_by_side(tmp_path: Path) -> None:
    config = small_config(
        tmp_path, workers="mlx:cpu,torch:cpu", steps=200, lr=1e-2, eval_every="1h"
    )
    result = train(config)
    assert result.status == "done"
    assert result.steps == 200
    assert sum(worker.steps for worker in result.workers) == 200
    assert all(worker.steps > 0 for worker in result.workers)
    assert result.lost_update_rate == 0.0  # lossless is the default
    # words of five letters and spaces: far below the 8 bits of a uniform guess
    assert result.val_bits_per_byte is not None
    assert result.val_bits_per_byte < 3.0


def test_a_live_read_run_of_one_worker_equals_a_snapshot_run(tmp_path: Path) -> None:
    snapshot = parameters(train(small_config(tmp_path, predict="none")))
    live = parameters(train(small_config(tmp_path, predict="none", read="live")))
    assert identical(snapshot, live)


def test_a_run_can_start_synchronous_and_go_on_lock_free(tmp_path: Path) -> None:
    config = small_config(tmp_path, workers="torch:cpu*2", async_after=0.5, steps=40)
    result = train(config)
    assert result.status == "done"
    assert result.steps >= 40
    staleness = [worker.mean_staleness for worker in result.workers]
    assert max(staleness) > 0.0  # the second half overlapped


def test_a_token_budget_holds_although_synchronous_steps_take_more_tokens(tmp_path: Path) -> None:
    budget, per_batch = 6400, 64
    config = small_config(
        tmp_path, workers="torch:cpu*2", async_after=0.5, steps=None, tokens=budget
    )
    result = train(config)
    assert result.status == "done"
    assert budget <= result.tokens < budget + 2 * per_batch


def test_a_shared_second_moment_trains(tmp_path: Path) -> None:
    config = small_config(
        tmp_path, workers="torch:cpu*2", second_moment="shared", steps=200, lr=1e-2, eval_every="1h"
    )
    result = train(config)
    assert result.val_bits_per_byte is not None
    assert result.val_bits_per_byte < 3.0
