"""Weights of fewer bits: nearly the same logits, in less memory; refused where there are none."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mlxhog import backends
from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.families import init_params, param_spec
from mlxhog.models.ops.frozen import FrozenWeight, suits
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.models.xlstm_v1 import MLSTMBlockConfig, SLSTMBlockConfig, XLSTMV1Config
from tests.tolerances import LOGITS_4BIT, LOGITS_8BIT, LOGITS_BFLOAT16, LOGITS_F32, assert_close

V = 96
LARGE = {"vocab_size": V, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 4}
TIED = {"hidden_size": 96, "num_hidden_layers": 1, "num_heads": 2, "tie_word_embeddings": True}
BLOCKS = {"mlstm_block": MLSTMBlockConfig(), "slstm_block": SLSTMBlockConfig()}
MODELS = {
    "large": XLSTMLargeConfig(**LARGE),
    "tied": XLSTMLargeConfig(**{**LARGE, **TIED}, use_bias=True),
    "v1": XLSTMV1Config(
        vocab_size=V, hidden_size=128, num_hidden_layers=2, slstm_at=(1,), **BLOCKS
    ),
}
LOSSY = {"bfloat16": LOGITS_BFLOAT16, "8bit": LOGITS_8BIT, "4bit": LOGITS_4BIT}
TOKENS = np.random.default_rng(1).integers(0, V, (2, 20)).astype(np.int32)


def loaded(name, cfg, weights, chosen="auto"):
    backend = backends.create(name, threads=1, kernels=chosen)
    assert backend.load(cfg, init_params(cfg, seed=3), weights=weights) == []
    return backend


def weight_bytes(backend):
    arrays = (part for x in backend.params.values() for part in getattr(x, "parts", (x,)))
    return sum(int(array.nbytes) for array in arrays)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chosen", ["native", "eager"])
@pytest.mark.parametrize(("weights", "tolerance"), [*LOSSY.items(), ("float32", LOGITS_F32)])
def test_logits_stay_near_those_of_float32_weights(model, chosen, weights, tolerance):
    cfg = MODELS[model]
    expected, _ = loaded("torch:cpu", cfg, "float32", "eager").logits(TOKENS, None)
    for name in ("torch:cpu", "mlx:cpu"):
        backend = loaded(name, cfg, weights, chosen)
        whole, _ = backend.logits(TOKENS, None)
        assert_close(whole, expected, tolerance)
        assert weights == "float32" or np.abs(whole - expected).max() > LOGITS_F32.atol
        _, state = backend.logits(TOKENS[:, :-1], None)
        last, _ = backend.logits(TOKENS[:, -1:], state)
        assert_close(last, expected, tolerance)


@pytest.mark.parametrize("weights", ["float32", *LOSSY])
@pytest.mark.parametrize("model", MODELS)
def test_a_model_may_be_loaded_in_one_thread_and_used_in_others(model, weights):
    cfg = MODELS[model]
    backend = loaded("mlx:cpu", cfg, weights, "eager")

    def in_another_thread(call):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(call).result()

    _, states = in_another_thread(lambda: backend.all_logits(TOKENS[:, :-1], None))
    state = in_another_thread(lambda: backend.select_state(states, [1]))
    both = in_another_thread(lambda: backend.stack_states([state, state]))
    last, _ = in_another_thread(lambda: backend.logits(TOKENS[[1, 1], -1:], both))
    expected, _ = backend.logits(TOKENS[[1, 1]], None)
    assert_close(last, expected, LOSSY.get(weights, LOGITS_F32))


def test_fewer_bits_take_less_memory():
    cfg = MODELS["large"]
    whole, half, eighths, fourths = (
        weight_bytes(loaded("mlx:cpu", cfg, weights))
        for weights in ("float32", "bfloat16", "8bit", "4bit")
    )
    assert half < 0.51 * whole  # gates and norms are whole
    # A scale and an offset of 32 bits for every 64 elements are one bit for each.
    assert eighths < 9.5 / 32 * whole
    assert fourths < 5.5 / 32 * whole
    params, spec = loaded("mlx:cpu", cfg, "4bit").params, param_spec(cfg)
    packed = {name for name, value in params.items() if isinstance(value, FrozenWeight)}
    products = {name for name, one in spec.items() if one.autocast and suits(one.shape)}
    assert packed == products | {families.embedding(cfg)}
    assert not suits((64, 33))


@pytest.mark.parametrize("name", ["torch:cpu", "mlx:cpu"])
@pytest.mark.parametrize("model", MODELS)
def test_gates_norms_and_cells_are_float32_beside_matrices_of_16_bits(name, model):
    cfg = MODELS[model]
    backend = loaded(name, cfg, "bfloat16")
    narrow = {n for n, value in backend.params.items() if "bfloat16" in str(value.dtype)}
    spec = param_spec(cfg)
    expected = {n for n, one in spec.items() if one.autocast and len(one.shape) == 2}
    assert narrow == expected | {families.embedding(cfg)}
    words = ("gate_preact.bias", "igate", "fgate", "norm", "conv", "slstm_cell", ".bias")
    assert not [n for n in narrow if any(word in n for word in words)]
    _, state = backend.logits(TOKENS, None)
    assert all("float32" in str(part.dtype) for block in state for part in block)


def test_weights_in_a_format_that_does_not_exist_are_refused_with_those_that_do():
    with pytest.raises(ConfigError, match="weights are '2bit'; choose one of keep, float32, bflo"):
        loaded("torch:cpu", MODELS["large"], "2bit")
