"""Losses and gradients of both backends, next to float64, for every kind of batch and head."""

from dataclasses import replace
from functools import partial
from itertools import cycle

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.backends import gpu_share
from mlxhog.data.batch import IGNORED, Batch
from mlxhog.models import families, layers, lm, lm_float64
from mlxhog.models.layers.layer import ForwardContext
from mlxhog.models.ops.arrays import MatmulWeight
from mlxhog.models.ops.native import adapter_torch
from mlxhog.models.ops.native.custom_ops import UNREAD_LINEARS
from mlxhog.models.ops.native.operators import NativeOps
from mlxhog.models.ops.operators import Ops, loss_rows
from mlxhog.models.registry import load_architecture
from mlxhog.models.sampled_softmax import SampledSoftmax
from mlxhog.optim.gradients import Rows, dense
from tests.backends.untrained import NAMES, bound, values
from tests.models.sample import DROPPING, LARGE, V1, config, perturbed_params, v1_config
from tests.models.sample import batch as drawn
from tests.pairs import each_of
from tests.tolerances import GRADIENT_ANY_F32, GRADIENT_BF16, LOSS_BF16, LOSS_F32, assert_close

on_both = pytest.mark.parametrize("name", NAMES)
RESETS = {"reset_at_document_boundaries": True, "bos_token_id": 2}
TABLES = {"ngram_orders": (2, 3, 5), "ngram_dim": 4, "ngram_rows": 1024, **RESETS}
DROPOUT = v1_config(**DROPPING, **RESETS)


def text(cfg, B=3, S=14, seed=5):
    x, y = drawn(cfg, B, S, seed=seed)
    if cfg.reset_at_document_boundaries:
        x[1, S // 3] = x[2, S // 2] = cfg.bos_token_id
    return Batch(x, y, n_bytes=0, seed=11)


def completions(cfg, *, frozen=True):
    """Three rows whose contexts have 5, 0 and 9 inputs; tokens below 8 are in the contexts only."""
    rng = np.random.default_rng(3)
    x = rng.integers(8, cfg.vocab_size, (3, 12), dtype=np.int32)
    y = np.full(x.shape, IGNORED, np.int32)
    for row, (context, end) in enumerate(((5, 12), (0, 4), (9, 11))):
        x[row, :context] = rng.integers(0, 8, context)
        x[row, end:] = x[row, end - 1]
        y[row, context:end] = rng.integers(0, cfg.vocab_size, end - context)
    return Batch(x, y, n_bytes=0, frozen=frozen)


def whole(cfg, params, batch):
    masks = lm.dropout_masks(cfg, batch.x.shape, batch.seed)
    return lm_float64.differentiate(cfg, params, batch.x, batch.y, masks=masks)


def behind_contexts(cfg, params, batch):
    """Loss and gradient in float64, a row at a time: the state behind a context is a constant."""
    grads = {name: np.zeros(value.shape) for name, value in params.items()}
    nats, total = 0.0, batch.n_labels
    for x, y in zip(batch.x, batch.y, strict=True):
        begin, state = int((y != IGNORED).argmax()), None
        if begin:
            _, state = lm_float64.logits(cfg, params, x[None, :begin])
        rest = x[None, begin:], y[None, begin:]
        loss, own = lm_float64.differentiate(cfg, params, *rest, state=state)
        share = (y != IGNORED).sum() / total
        nats += loss * share
        for name, grad in own.items():
            grads[name] += share * grad
    return nats, grads


def head_of(cfg, n):
    return SampledSoftmax(n, np.linspace(1, 3, cfg.vocab_size))


CASES = {
    name: (make(), partial(text, S=S), whole, None)
    for (name, make), S in zip((LARGE | V1).items(), cycle((1, 2, 4, 9, 16, 23)), strict=False)
} | {
    "xlstm, documents, tied": (config(tie_word_embeddings=True, **RESETS), text, whole, None),
    "v1, dropped units": (DROPOUT, text, whole, None),
    "xlstm, n-grams": (config(**TABLES), text, whole, None),
    "v1, n-grams": (v1_config(**TABLES), text, whole, None),
    "xlstm, frozen contexts": (config(), completions, behind_contexts, None),
    "v1, frozen contexts": (v1_config(), completions, behind_contexts, None),
    "xlstm, every id drawn": (config(), text, whole, head_of(config(), 23)),
}
KERNELS = [(case, kernels) for case in CASES for kernels in ("eager", "auto")]
KERNELS += [("v1, mixed", "metal-emulated"), ("v1, documents", "metal-emulated")]


@pytest.mark.slow
@on_both
@each_of("case, kernels", KERNELS)
def test_loss_and_gradients_are_those_of_float64(name, kernels, case):
    cfg, make, reference, head = CASES[case]
    params, batch = perturbed_params(cfg, seed=5), make(cfg)
    expected_loss, expected = reference(cfg, params, batch)
    backend = bound(name, cfg, params, kernels, head=head)
    loss, grads = backend.loss_and_grads(batch)
    assert_close(loss, expected_loss, LOSS_F32)
    assert grads.keys() == families.param_spec(cfg).keys()
    for parameter, grad in grads.items():
        actual = dense(grad, params[parameter].shape)
        assert_close(actual, expected[parameter], GRADIENT_ANY_F32, label=parameter)
    assert backend.loss_and_grads(batch)[0] == loss
    score = backend.evaluate(batch)  # of the whole vocabulary, and of all units
    plain = lm_float64.differentiate(cfg, params, batch.x, batch.y)[0]
    assert_close(score.nats / score.targets, plain, LOSS_F32)


EVERY_LAYER = load_architecture(" ".join(layers.known()), "vocab_size=23,dim=32,max_length=32")
RECOMPUTED = CASES | {
    "every layer": (EVERY_LAYER, text, None, None),
    "every layer, frozen contexts": (EVERY_LAYER, completions, None, None),
}
KINDS = [(case, kernels, "float32") for case in RECOMPUTED for kernels in ("native", "eager")]
KINDS += [
    (case, "metal-emulated", "float32") for case in ("v1, documents", "xlstm, frozen contexts")
]
KINDS += [("every layer", kernels, "bfloat16") for kernels in ("native", "eager")]
KINDS += [("v1, dropped units", "metal-emulated", "bfloat16")]


@pytest.mark.slow
@on_both
@each_of("case, kernels, dtype", KINDS)
def test_recomputed_blocks_give_the_same_bits(name, case, kernels, dtype):
    cfg, make, _, head = RECOMPUTED[case]
    params, how = perturbed_params(cfg, seed=5), {"dtype": dtype, "head": head}
    loss, grads = bound(name, cfg, params, kernels, **how).loss_and_grads(make(cfg))
    backend = bound(name, cfg, params, kernels, recompute=True, **how)
    recomputed, again = backend.loss_and_grads(make(cfg))
    assert recomputed == loss
    for parameter, grad in values(grads).items():
        np.testing.assert_array_equal(values(again)[parameter], grad, parameter)


@on_both
def test_native_recomputation_leaves_out_the_last_linear_layer_of_each_block(name, monkeypatch):
    used, linears = [], NativeOps._linears
    monkeypatch.setattr(
        NativeOps, "_linears", lambda self, op, *x: used.append(op) or linears(self, op, *x)
    )
    cfg = config()
    params = perturbed_params(cfg, seed=1)
    for recompute, blocks in ((False, 0), (True, cfg.num_hidden_layers)):
        used.clear()
        bound(name, cfg, params, "native", recompute=recompute).loss_and_grads(text(cfg))
        assert used.count(UNREAD_LINEARS) == blocks


def test_the_output_projection_of_a_layer_has_its_result(monkeypatch):
    results, linear = {}, ForwardContext.linear

    def recorded(self, x, p, name):
        results[name] = linear(self, x, p, name)
        return results[name]

    monkeypatch.setattr(ForwardContext, "linear", recorded)
    seen = set()
    for cfg in (EVERY_LAYER, config(), v1_config()):
        params = {n: torch.from_numpy(w) for n, w in perturbed_params(cfg, seed=1).items()}
        for part in cfg.layout.parts():
            if name := part.layer.output_projection:
                x = torch.ones((1, 3, part.d))
                y, _ = part.forward(params, x, None, ForwardContext(adapter_torch.OPS))
                assert y is results[name]
                seen.add(part.layer.name)
    assert seen == {"mlp", "swiglu", "geglu", "swiglu-large", "ffn-v1"}


def test_eager_mlx_that_recomputes_blocks_never_holds_as_much_as_the_logits_of_all_tokens(
    monkeypatch,
):
    monkeypatch.setattr(Ops, "max_logits", 0)  # chunks of 512 tokens
    monkeypatch.setattr(gpu_share, "FREE_BYTES", 0)
    monkeypatch.setattr(loss_rows, "__defaults__", (0,))
    cfg, S = load_architecture("tiny", "vocab_size=4000,hidden_size=16,num_hidden_layers=1"), 4096
    backend = bound("mlx:cpu", cfg, perturbed_params(cfg, seed=1), "eager", recompute=True)
    mx.clear_cache()
    before = mx.get_active_memory()
    backend.loss_and_grads(Batch(*drawn(cfg, 1, S, seed=0), n_bytes=0))
    assert mx.get_peak_memory() - before < 4 * S * cfg.vocab_size


@pytest.mark.parametrize("recompute", [False, True])
def test_mlx_caches_no_memory_that_native_code_needs_where_blocks_are_recomputed(recompute):
    cfg = config()
    backend = bound("mlx:cpu", cfg, perturbed_params(cfg, seed=1), "native", recompute=recompute)
    backend._cache.limit_bytes = 0
    backend.loss_and_grads(text(cfg))
    assert (backend._cache.limit_bytes == 0) == recompute


@on_both
@pytest.mark.parametrize("kernels", ["native", "eager"])
def test_a_gradient_is_not_changed_by_the_next_one(name, kernels):
    cfg = config()
    backend = bound(name, cfg, perturbed_params(cfg, seed=1), kernels)
    assert backend.forward_share is None
    _, grads = backend.loss_and_grads(text(cfg, seed=1))
    assert 0 < backend.forward_share < 1
    before = {name: getattr(grad, "values", grad).copy() for name, grad in grads.items()}
    backend.param_buffer *= 0.5
    backend.refresh()
    _, later = backend.loss_and_grads(text(cfg, seed=2))
    for parameter, grad in grads.items():
        stays = getattr(grad, "values", grad)
        np.testing.assert_array_equal(stays, before[parameter])
        assert not np.shares_memory(stays, getattr(later[parameter], "values", later[parameter]))


@on_both
def test_a_batch_in_which_nothing_is_scored_has_no_loss_and_no_gradient(name):
    cfg = config()
    batch = text(cfg)
    nothing = replace(batch, y=np.full_like(batch.y, IGNORED))
    loss, grads = bound(name, cfg, perturbed_params(cfg, seed=0)).loss_and_grads(nothing)
    assert loss == 0.0
    assert not any(grad.any() for grad in values(grads).values())


@on_both
@each_of("kernels", ["eager", "native"])
@each_of("recompute", [False, True])
def test_a_parameter_that_does_not_reach_the_loss_has_a_gradient_of_zeros(name, kernels, recompute):
    cfg = load_architecture("mamba swiglu", "vocab_size=23,hidden_size=16")
    params = perturbed_params(cfg, seed=5)
    batch = text(cfg, S=1)  # after one position there is nothing to decay
    _, grads = bound(name, cfg, params, kernels, recompute=recompute).loss_and_grads(batch)
    assert [key for key, grad in values(grads).items() if not grad.any()] == ["layers.0.A_log"]


def test_units_are_dropped_where_the_package_has_it_and_a_mask_keeps_the_mean():
    block = "xlstm_block_stack.blocks"
    mixers = dict.fromkeys([f"{block}.{n}.xlstm" for n in range(3)], 0.2)
    every = mixers | {"token_embedding.weight": 0.2, f"{block}.1.ffn": 0.4}
    for cfg, rates in ((DROPOUT, every), (v1_config(dropout=0.2), mixers), (v1_config(), {})):
        masks, again = (lm.dropout_masks(cfg, (64, 100), seed=seed) or {} for seed in (0, 1))
        assert masks.keys() == rates.keys()
        for site, rate in rates.items():
            mask = masks[site]
            assert mask.shape == (64, 100, 16)
            assert set(np.unique(mask)) == {0, np.float32(1) / np.float32(1 - rate)}, site
            assert abs((mask == 0).mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / mask.size)
            assert (again[site] != mask).any()
        assert len({mask.tobytes() for mask in masks.values()}) == len(masks)


@on_both
@each_of("cfg", [config(), config(**TABLES)], ids=["xlstm", "n-grams"])
def test_a_frozen_context_changes_no_loss_and_touches_no_row_of_its_own(name, cfg):
    backend = bound(name, cfg, perturbed_params(cfg, seed=1))
    (plain, every), (frozen, some) = (
        backend.loss_and_grads(completions(cfg, frozen=frozen)) for frozen in (False, True)
    )
    assert_close(frozen, plain, LOSS_F32)
    for table in (name for name, grad in every.items() if isinstance(grad, Rows)):
        moved, all_rows = (
            {*g[table].index[np.abs(g[table].values).max(1) > 1e-8].tolist()} for g in (some, every)
        )
        assert moved < all_rows
    rows = some[families.embedding(cfg)].index
    assert min(rows) >= 8


@on_both
@each_of("kernels", ["eager", "auto"])
@each_of("cap", [30.0, 2.0])
def test_a_sampled_loss_is_its_formula_and_its_gradient_has_the_rows_of_candidates(
    name, kernels, cap
):
    """-s_y + log(sum over targets of exp(s) + sum over negatives of exp(s) / pi), float64."""
    cfg = config(output_logit_soft_cap=cap)
    params, batch, head = perturbed_params(cfg, seed=5), text(cfg, 2, 4), head_of(cfg, 6)
    loss, grads = bound(name, cfg, params, kernels, head=head).loss_and_grads(batch)
    logits, _ = lm_float64.logits(cfg, params, batch.x)
    candidates = head.draw(batch.y, batch.seed)
    weights = np.exp(-candidates.log_inclusion.astype(float))
    z = np.sum(np.exp(logits[..., candidates.ids]) * weights, -1)
    own = np.take_along_axis(logits, np.maximum(batch.y, 0)[..., None], -1)[..., 0]
    assert_close(loss, float(np.mean((np.log(z) - own)[batch.y >= 0])), LOSS_F32)
    actual = grads["lm_head.weight"]
    assert isinstance(actual, Rows)
    np.testing.assert_array_equal(actual.index, candidates.ids)
    assert actual.values.any(axis=1).all()


class Traced(Exception):
    """A gradient that was traced."""


@pytest.mark.parametrize("cfg", [config(), v1_config()], ids=["xlstm", "v1"])
def test_a_gradient_of_xlstm_is_traced_with_a_state_and_nothing_in_it_evaluates(cfg, monkeypatch):
    backend = bound("mlx:cpu", cfg, perturbed_params(cfg, seed=1), "eager")
    compiled, results = backend._mx.compile(backend._value_and_grad), []

    def trace(*arguments):
        results.append(compiled(*arguments))
        raise Traced

    monkeypatch.setattr(backend, "_value_and_grad", trace)
    with pytest.raises(Traced):
        backend.loss_and_grads(completions(cfg))
    ((_, grads),) = results
    for name in backend._trained:
        assert grads[name].shape == backend.params[name].shape


MIXED = {
    "large": config(use_bias=True),
    "tied": config(tie_word_embeddings=True),
    "v1": v1_config(bias=True),
}
of_each = pytest.mark.parametrize("cfg", MIXED.values(), ids=MIXED)


@on_both
@of_each
@each_of("kernels", ("native", "eager"))
def test_loss_and_gradients_are_near_those_of_float32_and_arrive_in_float32(name, cfg, kernels):
    # With wide open gates a denominator may pass near 0, and no rounding is small there.
    params = families.init_params(cfg, seed=3)
    batch = Batch(*drawn(cfg, 3, 14, seed=3), n_bytes=0)
    wanted_loss, expected = bound(name, cfg, params).loss_and_grads(batch)
    mixed = bound(name, cfg, params, kernels, dtype="bfloat16")
    loss, grads = mixed.loss_and_grads(batch)
    assert loss != wanted_loss
    assert_close(loss, wanted_loss, LOSS_BF16)
    assert grads.keys() == expected.keys()
    actual, exact = values(grads), values(expected)
    assert {grad.dtype for grad in actual.values()} == {np.dtype(np.float32)}
    apart, size = (
        np.linalg.norm(np.concatenate([x.ravel() for x in all_of_them]))
        for all_of_them in ([actual[name] - exact[name] for name in exact], exact.values())
    )
    assert_close(apart / size, 0.0, GRADIENT_BF16)
    assert mixed.param_buffer.dtype == np.float32


@on_both
@of_each
def test_matmul_weights_alone_are_marked_for_bfloat16(name, cfg, monkeypatch):
    marked, right = set(), lm.mean_loss

    def mean_loss(model, params, *arrays, **how):
        marked.update(key for key, x in params.items() if isinstance(x, MatmulWeight))
        return right(model, params, *arrays, **how)

    monkeypatch.setattr(lm, "mean_loss", mean_loss)
    params = perturbed_params(cfg, seed=0)
    backend = bound(name, cfg, params, "eager", dtype="bfloat16")
    backend.loss_and_grads(Batch(*drawn(cfg, 2, 9, seed=0), n_bytes=0))
    assert marked == families.matmul_weights(cfg)


@on_both
@each_of("kernels", ("native", "eager"))
def test_evaluation_and_generation_stay_in_float32(name, kernels):
    cfg = config()
    params = perturbed_params(cfg, seed=1)
    batch = Batch(*drawn(cfg, 2, 9, seed=1), n_bytes=0)
    exact = bound(name, cfg, params, kernels)
    mixed = bound(name, cfg, params, kernels, dtype="bfloat16")
    assert mixed.evaluate(batch) == exact.evaluate(batch)
    assert np.array_equal(mixed.logits(batch.x, None)[0], exact.logits(batch.x, None)[0])
