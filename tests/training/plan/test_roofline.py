"""The roof of a step: the slower of its arithmetic and its traffic, of this machine or unknown."""

from dataclasses import replace

import pytest

from mlxhog.base.workers import WorkerSpec
from mlxhog.models import cells, families
from mlxhog.models.adapters import LoRA
from mlxhog.models.families import param_count
from mlxhog.models.registry import load_architecture
from mlxhog.training.plan import roofline
from mlxhog.training.plan.decide import make_plan
from mlxhog.training.plan.roofline import Chip, StepCost, step_cost
from tests.training.small import small_config

MODEL = load_architecture("tiny")


@pytest.mark.parametrize(
    ("cost", "rate"),
    [
        (StepCost(100, 128_000, 1), 100e6),  # 256,000 operations at 256e9 a second
        (StepCost(100, 1, 2_000), 50e6),  # 2,000 bytes at 1 GB/s
    ],
)
def test_the_roof_is_the_slower_of_arithmetic_and_traffic(cost, rate):
    chip = Chip(gb_per_s=1.0, cores=1, ghz=1.0)
    assert chip.flops == 256e9
    assert cost.max_tokens_per_s(chip) == pytest.approx(rate)


def test_a_step_has_three_forward_passes_and_a_fourth_of_recomputed_blocks():
    forward, head = cells.multiply_adds(MODEL), MODEL.vocab_size * MODEL.hidden_size
    plain, again = (step_cost(MODEL, 10, 7, recomputed=which) for which in (False, True))
    assert plain == (10, 30 * forward, 48 * param_count(MODEL) + 14)
    assert again.multiply_adds == 40 * forward - 10 * head
    few = step_cost(MODEL, 10, 7, classes=20)
    assert few.multiply_adds == 30 * (forward - head + 20 * MODEL.hidden_size)


def test_a_frozen_weight_is_read_and_has_neither_gradient_nor_moments_in_the_cost_of_a_step():
    model = replace(MODEL, adapter=LoRA(rank=2))
    trained = sum(one.size for one in families.trainable_spec(model).values())
    found = step_cost(model, 10, 7, base_bytes=1000)
    assert found.n_bytes == 48 * trained + 2000 + 14
    # A frozen matrix multiplies twice, one that is trained and the cell three times.
    forward, embedding = cells.multiply_adds(model), families.embedding(model)
    frozen = [model.layout.spec[name] for name in families.frozen_names(model)]
    frozen_size = sum(one.size for one in frozen if len(one.shape) > 1 and one.name != embedding)
    assert found.multiply_adds == 10 * (3 * forward - frozen_size)
    few, head = step_cost(model, 10, 7, classes=20), MODEL.vocab_size * MODEL.hidden_size
    assert few.multiply_adds == found.multiply_adds - 20 * (head - 20 * MODEL.hidden_size)


def test_the_roof_of_a_run_counts_what_each_micro_batch_draws_and_the_base_of_an_adapter(tmp_path):
    how = {"sampled_softmax": 16, "grad_accumulation": 4, "batch_size": 1}
    plan = make_plan(small_config(tmp_path, **how))
    found = roofline.expected(plan, "")
    cost = step_cost(plan.model, 4 * 32, 4 * plan.memory.kept_bytes(1), classes=16 + 32)
    assert (found["step_multiply_adds"], found["step_bytes"]) == cost[1:]
    of_base = replace(plan, memory=replace(plan.memory, base_bytes=100))
    assert roofline.expected(of_base, "")["step_bytes"] == found["step_bytes"] + 200


def test_a_dry_run_has_the_roof_of_a_known_gpu_and_says_where_it_is_not_known(tmp_path):
    config = small_config(tmp_path)
    plan = make_plan(config)
    on_gpu = replace(plan, workers=(WorkerSpec("mlx:gpu", 1),))
    found = roofline.expected(on_gpu, "Apple M4 Pro")
    tokens = plan.config.sequences_per_ticket * config.seq_len
    cost = StepCost(tokens, found["step_multiply_adds"], found["step_bytes"])
    chip = roofline.CHIPS["Apple M4 Pro"]
    assert found["max_tokens_per_s"] == cost.max_tokens_per_s(chip) > 0
    assert found["max_tokens_per_s_from"] == (
        "roofline of the largest GPU of an Apple M4 Pro, 273 GB/s and 7.53 TFLOP/s: computed, not "
        "measured"
    )
    for which, chip, why in (
        (on_gpu, "Apple M9", "Apple M9"),
        (on_gpu, "", "a chip without a name"),
        (plan, "Apple M4 Pro", "no worker uses a GPU"),
    ):
        unknown = roofline.expected(which, chip)
        assert unknown["max_tokens_per_s"] is None
        assert f"not known for this machine ({why})" in unknown["max_tokens_per_s_from"]
        assert unknown["step_multiply_adds"] == found["step_multiply_adds"]
    again = roofline.expected(make_plan(replace(config, recompute="blocks")), "Apple M4 Pro")
    assert again["step_multiply_adds"] > found["step_multiply_adds"]
    attention = replace(on_gpu, model=load_architecture("mad-attention"))
    said = roofline.expected(attention, "Apple M4 Pro")["max_tokens_per_s_from"]
    assert said.endswith("; without what mixes positions in mh-attention")
