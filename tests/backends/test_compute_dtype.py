"""Products in bfloat16 leave everything else of a training step in float32."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog.data.batch import Batch
from mlxhog.errors import ConfigError
from mlxhog.models import families
from mlxhog.models.ops.reference import ops_mlx, ops_torch
from tests.backends.untrained import NAMES, bound, values
from tests.models.sample import batch, config, perturbed_params, v1_config
from tests.tolerances import GRADIENT_BF16, LOSS_BF16, assert_close

MODELS = {
    "large": config(use_bias=True),
    "tied": config(tie_word_embeddings=True),
    "v1": v1_config(bias=True),
}
PRODUCTS = ("linears", "block_diagonal")
on_both = pytest.mark.parametrize("name", NAMES)
of_each = pytest.mark.parametrize("cfg", MODELS.values(), ids=MODELS)


class Probe:
    """The reference ops of one framework, which note the types that every op is given."""

    def __init__(self, ops):
        self._ops, self.xp = ops, ops.xp
        self.given = {}
        self.products = set()

    def __getattr__(self, name):
        def call(*args, **kwargs):
            if name in PRODUCTS:
                self.products |= {(tuple(w.shape), str(w.dtype)) for w in args[1]}
                args_seen = args[:1]
            elif name == "linear_cross_entropy":  # a product and a loss
                self.products.add((tuple(args[1].shape), str(args[1].dtype)))
                args_seen = (args[0], *args[2:])
            else:
                args_seen = (*args, *kwargs.values())
            arrays = [x for x in args_seen if isinstance(x, torch.Tensor | mx.array)]
            self.given.setdefault(name, set()).update(str(x.dtype) for x in arrays)
            return getattr(self._ops, name)(*args, **kwargs)

        return call


def applied(cfg, spec):
    """Shape in which a matrix is applied: the v1 stack multiplies by each half of `proj_up`."""
    halved = cfg.model_type == "xlstm_v1" and spec.name.endswith("proj_up.weight")
    rows, *others = spec.shape
    return (rows // 2 if halved else rows, *others)


@on_both
@of_each
def test_loss_and_gradients_are_near_those_of_float32_and_arrive_in_float32(name, cfg):
    # With wide open gates a denominator may pass near 0, and no rounding is small there.
    params = families.init_params(cfg, seed=3)
    text = Batch(*batch(cfg, 3, 14, seed=3), n_bytes=0)
    wanted_loss, expected = bound(name, cfg, params).loss_and_grads(text)
    narrow = bound(name, cfg, params, compute_dtype="bfloat16")
    loss, grads = narrow.loss_and_grads(text)
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
    assert narrow.inbox.dtype == np.float32


@on_both
@of_each
def test_gates_norms_cells_and_losses_are_given_float32_and_products_bfloat16(
    name, cfg, monkeypatch
):
    framework = name.partition(":")[0]
    probe = Probe((ops_torch if framework == "torch" else ops_mlx).OPS)
    monkeypatch.setattr("mlxhog.backends.reader.choose", lambda *_, **__: probe)
    backend = bound(name, cfg, perturbed_params(cfg, seed=0), compute_dtype="bfloat16")
    backend.loss_and_grads(Batch(*batch(cfg, 2, 9, seed=0), n_bytes=0))
    labels = {"torch.int64", "mlx.core.int32"}
    for op, types in probe.given.items():
        assert {kind.rpartition(".")[2] for kind in types - labels} == {"float32"}, op
    expected = {
        (applied(cfg, spec), name in families.products(cfg))
        for name, spec in families.param_spec(cfg).items()
        if name in families.products(cfg) or "gate" in name.split(".")[-2]
        if len(spec.shape) > 1
    }
    assert {(shape, kind.endswith("bfloat16")) for shape, kind in probe.products} == expected
    assert {narrow for _, narrow in expected} == {True, False}


@on_both
def test_evaluation_and_generation_stay_in_float32(name):
    cfg = config()
    params = perturbed_params(cfg, seed=1)
    text = Batch(*batch(cfg, 2, 9, seed=1), n_bytes=0)
    exact = bound(name, cfg, params, "reference")
    narrow = bound(name, cfg, params, "reference", compute_dtype="bfloat16")
    assert narrow.evaluate(text) == exact.evaluate(text)
    assert np.array_equal(narrow.logits(text.x, None)[0], exact.logits(text.x, None)[0])


@on_both
def test_kernels_that_cannot_compute_in_a_type_are_refused(name):
    with pytest.raises(ConfigError, match="'native', which cannot compute with bfloat16 weights"):
        bound(name, config(), None, "native", compute_dtype="bfloat16")
