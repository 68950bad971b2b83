import numpy as np
import pytest

from mlxhog import train
from tests.training.small import (
    Messages,
    checkpoint_of,
    identical,
    largest_difference,
    parameters,
    small_config,
)


@pytest.mark.slow
def test_averaged_runs_tell_of_every_copy_and_the_checkpoint_holds_the_average(tmp_path):
    messages = Messages()
    config = small_config(
        tmp_path, workers="mlx:cpu*2", strategy="avg_runs", steps=60, lr=1e-2, eval_every="1h"
    )
    result = train(config, observer=messages)
    assert len(result.copies_bits_per_byte) == 2
    assert result.val_bits_per_byte is not None
    worse = result.val_bits_per_byte > min(result.copies_bits_per_byte)
    assert worse == any("averaging did not help" in message for message in messages)
    loaded = checkpoint_of(result)
    for name, value in loaded.params.items():
        copies = [loaded.optimizer[f"copies.{slot}/{name}"] for slot in (1, 2)]
        assert np.array_equal(value, (copies[0] + copies[1]) * np.float32(0.5))
    assert not np.array_equal(copies[0], copies[1])


@pytest.mark.slow
def test_a_run_on_divided_text_resumes_bit_for_bit_and_also_with_other_workers(tmp_path):
    common = {
        "strategy": "scaffold", "workers": "mlx:cpu*2", "schedule": "constant", "warmup": 0,
        "average_every": 4, "split": "dirichlet", "split_alpha": 0.3, "clients": 3,
    }  # fmt: skip
    messages = Messages()
    whole = train(
        small_config(tmp_path, steps=30, **common),
        observer=messages,
    )
    assert any("divided among 3 clients" in message for message in messages)
    first = train(small_config(tmp_path, steps=13, **common))
    second = train(small_config(tmp_path, steps=17, resume=first.run, **common))
    assert identical(parameters(whole), parameters(second))
    batches = [8, 15, 7]  # worker 0 takes clients 0 and 2 in turn
    assert checkpoint_of(second).state["clients"] == batches
    other = {**common, "workers": "mlx:cpu*3"}
    third = train(small_config(tmp_path, steps=12, resume=second.run, **other))
    counts = checkpoint_of(third).state["clients"]
    assert counts == [count + 4 for count in batches]


@pytest.mark.slow
def test_shares_by_speed_change_the_worker_and_not_the_result_also_of_a_resumed_run(tmp_path):
    common = {
        "strategy": "sync", "workers": "mlx:cpu*2", "batch_size": 3, "optimizer": "momentum",
        "lr": 1e-2, "schedule": "constant", "warmup": 0,
    }  # fmt: skip
    equal = train(small_config(tmp_path, steps=30, **common))
    for rank, slow in enumerate(("0=10", "1=4")):
        of_speed = {**common, "sync_shares": "speed", "slow": slow}
        first = train(small_config(tmp_path, steps=13, **of_speed))
        second = train(small_config(tmp_path, steps=17, resume=first.run, **of_speed))
        assert second.tokens == equal.tokens
        assert [worker.steps for worker in second.workers] == [17, 17]
        assert largest_difference(parameters(second), parameters(equal)) < 1e-4
        of_slow, of_fast = sorted(worker.tokens for worker in second.workers)
        assert of_slow < 0.7 * of_fast
        assert second.workers[rank].tokens == of_slow


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory):
    """A lock-free run of workers of both frameworks."""
    config = small_config(
        tmp_path_factory.mktemp("both"), workers="mlx:cpu,torch:cpu", strategy="hogwild",
        steps=120, lr=1e-2, eval_every="1h",
        slow="0=2,1=2",  # they sleep, so that neither takes all steps
    )  # fmt: skip
    return train(config)


@pytest.mark.slow
def test_mlx_and_torch_workers_train_one_set_of_parameters_side_by_side(side_by_side):
    result = side_by_side
    assert result.status == "done"
    assert result.steps == 120
    assert sum(worker.steps for worker in result.workers) == 120
    assert all(worker.steps > 0 for worker in result.workers)
    assert result.lost_update_rate == 0.0  # lossless is the default
    # words of five letters and spaces: far below the 8 bits of a uniform guess
    assert result.val_bits_per_byte is not None
    assert result.val_bits_per_byte < 3.0


@pytest.mark.slow
@pytest.mark.parametrize("budget", [{"steps": 40}, {"steps": None, "tokens": 6400}])
def test_a_run_can_start_synchronous_and_continue_lock_free_within_its_budget(tmp_path, budget):
    result = train(small_config(tmp_path, workers="mlx:cpu*2", async_after=0.5, **budget))
    assert result.status == "done"
    if budget["steps"]:
        assert result.steps >= 40
        assert result.tokens == 40 * 1.5 * 64  # as many as `mean_batches_per_step` says
    else:
        assert 6400 <= result.tokens < 6400 + 2 * 64
