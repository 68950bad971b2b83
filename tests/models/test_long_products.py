"""Matmuls of torch on an Apple GPU: no K is larger than MPS sums right, and no bit differs.

`OnFaultyMPS` is a stand-in for the fault: a longer sum is NaN, as if it had read behind operands.
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlxhog.backends.gpu_share import GPUShare, max_sequences, token_note
from mlxhog.backends.torch import TorchBackend
from mlxhog.data.batch import Batch
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.models import families
from mlxhog.models.ops import operators
from mlxhog.models.ops.eager import ops_torch
from mlxhog.models.ops.eager.ops_torch import (
    TorchOps,
    block_diagonal_on_mps,
    linear_on_mps,
    matmul_on_mps,
)
from tests.backends.untrained import lay
from tests.models.sample import config
from tests.pairs import each_of
from tests.tolerances import CELL_GRADIENT_F32, assert_close

LIMIT = operators.MAX_SUM_TERMS


class OnFaultyMPS(TorchDispatchMode):
    """Computes as MPS on an M1 or M2: with K > `longest` terms, and M and N >= 16, NaN."""

    def __init__(self, longest=LIMIT):
        super().__init__()
        self.longest, self.sizes = longest, []  # (M, K, N) of all products of two matrices

    def __torch_dispatch__(self, function, types, args=(), keywords=None):
        result = function(*args, **(keywords or {}))
        name = function._schema.name.removeprefix("aten::")
        if name in ("mm", "bmm", "addmm"):
            a, b = args[-2:]
            M, K, N = *a.shape[-2:], b.shape[-1]
            self.sizes.append((M, K, N))
            on_mps = a.dtype != torch.float64  # which MPS lacks: of a reference on the CPU
            if on_mps and self.longest < K and min(M, N) >= 16:
                result.fill_(np.nan)
        return result


@pytest.fixture
def on_mps(monkeypatch):
    """Plain operators of torch compute on the CPU as they do on an Apple GPU."""
    monkeypatch.setattr(TorchOps, "linear", lambda _, x, w: linear_on_mps(x, w))
    monkeypatch.setattr(TorchOps, "matmul", lambda _, a, b: matmul_on_mps(a, b))
    monkeypatch.setattr(TorchOps, "block_diagonal", block_diagonal_on_mps)


def integers(*shape):
    values = torch.from_numpy(np.random.default_rng(0).integers(-2, 3, shape).astype(np.float32))
    return values.requires_grad_()


@each_of(
    ("x", "w"),
    [
        ((2, 3, LIMIT + 9), (4, LIMIT + 9)),  # terms
        ((2, 9, 8), (2 * LIMIT + 7, 8)),  # rows of the head
        ((3, LIMIT // 2, 8), (5, 8)),  # tokens
    ],
)
def test_a_split_product_and_its_gradients_have_the_bits_of_one_product(x, w):
    x, w = integers(*x), integers(*w)
    one, split = torch.nn.functional.linear(x, w), linear_on_mps(x, w)
    dy = integers(*one.shape)
    ours, expected = (torch.autograd.grad(y, (x, w), dy) for y in (split, one))
    assert all(map(torch.equal, (split, *ours), (one, *expected)))
    for a, b in ((2, 3, LIMIT + 9), (2, LIMIT + 9, 4)), ((2, 3, 4), (2, 4, LIMIT + 9)):
        a, b = integers(*a), integers(*b)
        one, split = a @ b, matmul_on_mps(a, b)
        ours, expected = (torch.autograd.grad(y.sum(), (a, b)) for y in (split, one))
        assert all(map(torch.equal, (split, *ours), (one, *expected)))


@pytest.mark.usefixtures("on_mps")
def test_the_gradient_of_diagonal_blocks_has_no_longer_sum_and_the_bits_of_one():
    x, w, b = integers(2, LIMIT // 2 + 9, 32), integers(2, 16, 16), integers(32)
    with OnFaultyMPS() as mps:
        (split,) = ops_torch.OPS.block_diagonal(x, [w], [b])
        ours = torch.autograd.grad(split.sum(), (x, w, b))
    assert max(K for _, K, _ in mps.sizes) == LIMIT
    (one,) = operators.Ops.block_diagonal(ops_torch.OPS, x, [w], [b])
    expected = torch.autograd.grad(one.sum(), (x, w, b))
    assert all(map(torch.equal, (split, *ours), (one, *expected)))


def test_no_product_of_operands_has_more_bytes_than_mps_multiplies_right(monkeypatch):
    monkeypatch.setattr(ops_torch, "MAX_FLOATS", most := 6_000)
    x, w = integers(50, 16), integers(90, 16)
    with OnFaultyMPS() as mps:
        torch.autograd.grad(linear_on_mps(x, w).sum(), (x, w))
    assert mps.sizes
    assert max((M + 2 * K) * N for M, K, N in mps.sizes) <= most
    wide = integers(50, 500)  # no part is small enough: as small as possible
    assert linear_on_mps(wide, integers(3, 500)).shape == (50, 3)


@pytest.mark.usefixtures("on_mps")
def test_the_gradient_of_a_long_vocabulary_has_no_longer_sum(monkeypatch):
    monkeypatch.setattr(ops_torch, "MAX_SUM_TERMS", longest := 64)
    model = config(vocab_size=200, num_hidden_layers=1, chunk_size=16)
    tokens = np.random.default_rng(0).integers(1, 200, (2, 33), dtype=np.int32)
    batch = Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), n_bytes=0)
    plain = TorchBackend("torch:cpu", threads=1, kernels="eager", share=GPUShare())
    backend = lay(plain, model)
    with OnFaultyMPS(longest) as mps:
        loss, grads = backend.loss_and_grads(batch)
    assert np.isfinite(loss)
    assert set(grads) == set(families.param_spec(model))
    assert max(K for _, K, _ in mps.sizes) <= longest
    assert any(N == 16 and K == longest for _, K, N in mps.sizes), "the head's gradient is a sum"


@pytest.mark.usefixtures("on_mps")
def test_the_gradient_of_the_forget_gates_of_a_wide_mlstm_has_no_longer_sum(monkeypatch):
    sizes, rng = {"q": (8,), "k": (8,), "v": (16,), "i": (), "f": ()}, np.random.default_rng(0)
    shapes = {name: (1, 70, 2, *width) for name, width in sizes.items()}  # 18 chunks
    inputs = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}

    def loss(p):
        return ops_torch.OPS.mlstm_cell(**p, chunk_size=4, eps=1e-6)[0].sum()

    tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
    _, expected = ops_torch.OPS.xp.value_and_grad(loss, tensors)
    monkeypatch.setattr(ops_torch, "MAX_SUM_TERMS", longest := 64)
    with OnFaultyMPS(longest) as mps:
        _, grads = ops_torch.OPS.xp.value_and_grad(loss, tensors)
    assert max(K for _, K, _ in mps.sizes) == longest
    for name, grad in expected.items():
        assert_close(grads[name], grad, CELL_GRADIENT_F32, label=name)


def test_a_worker_refuses_a_gpu_that_adds_long_sums_wrong(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    backend = TorchBackend("torch:mps", threads=1, kernels="eager", share=GPUShare())
    backend.device = torch.device("cpu")
    with OnFaultyMPS(), pytest.raises(EnvironmentLacks, match="adds long sums wrong on this GPU"):
        lay(backend)


def test_a_gradient_of_mps_has_no_more_tokens_than_it_adds_right():
    assert max_sequences("torch:mps", 1024) == 31
    assert max_sequences("mlx:gpu", 1024) > 1 << 30
    assert token_note(["mlx:gpu", "torch:cpu"], 999, 99_999) == ""
    assert token_note(["torch:mps"], 31, 1024) == ""
    assert "64 sequences in parts of at most 31" in token_note(["torch:mps", "mlx:cpu"], 64, 1024)
    with pytest.raises(ConfigError, match="seq_len is 40,000"):
        token_note(["torch:mps"], 1, 40_000)
