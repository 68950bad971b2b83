"""What `LanguageModel` promises in both frameworks: tokens that fit, transformations, dropout."""

from dataclasses import replace
from importlib import import_module

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from mlxhog.errors import ConfigError, DataError
from mlxhog.models import families
from tests.nn.sides import SIDES
from tests.tolerances import LOGITS_F32, assert_close

both = pytest.mark.parametrize("side", [SIDES["torch"], SIDES["mlx"]], ids=["torch", "mlx"])
LIMITED = families.read(
    {"dim": 16, "layers": "mlstm(h2) swiglu(inner=16)", "vocab_size": 10}
    | {"position": "learned", "max_length": 8}
)


def make(side, cfg, **how):
    return import_module(f"mlxhog.nn.{side.framework}").LanguageModel(cfg, **how)


@both
def test_tokens_outside_the_vocabulary_or_the_positions_are_refused(side):
    model = make(side, LIMITED)
    _, state = side.run(model, np.ones((2, 6), np.int32))
    side.run(model, np.ones((2, 2), np.int32), state)
    cases = [
        ([[1, 2], [3, 10]], None, DataError, "token 10 at position 1 of sequence 1 is outside the"),
        ([[-1, 2]], None, DataError, "token -1 at position 0 of sequence 0 is outside the vocab"),
        ([[]], None, DataError, "at least one sequence and one position"),
        ([[1] * 9], None, ConfigError, "9 tokens, but the model has 8 positions"),
        ([[1] * 3] * 2, state, ConfigError, "9 tokens, but the model has 8 positions"),
    ]
    for tokens, first, error, message in cases:
        with pytest.raises(error, match=message):
            side.run(model, np.array(tokens, np.int32), first)


@pytest.mark.slow
def test_transformations_of_mlx_trace_a_model_and_see_the_number_of_tokens():
    model, ids = make(SIDES["mlx"], LIMITED, kernels="eager"), mx.array([[1, 2, 3], [4, 5, 6]])
    expected = np.array(model(ids)[0])
    compiled = mx.compile(lambda ids: model(ids)[0])
    assert_close(np.array(compiled(ids)), expected, LOGITS_F32)
    by_row = mx.vmap(lambda row: model(row[None])[0][0])(ids)
    assert_close(np.array(by_row), expected, LOGITS_F32)
    with pytest.raises(ConfigError, match="9 tokens, but the model has 8 positions"):
        compiled(mx.ones((1, 9), mx.int32))
    _, grads = mlx.nn.value_and_grad(model, lambda model: model(ids)[0].square().sum())(model)
    assert all(grad.any() for _, grad in tree_flatten(grads))


@pytest.mark.slow
def test_transformations_of_torch_trace_a_model():
    model = make(SIDES["torch"], LIMITED, kernels="eager").eval()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        results = [
            torch.func.vmap(lambda row: model(row[None])[0][0])(ids),
            torch.compile(model, backend="eager")(ids)[0],
            torch.export.export(model, (ids,), strict=False).module()(ids)[0],
        ]
        for result in results:
            assert_close(result, model(ids)[0], LOGITS_F32)


DROPPING = families.read(
    {"model_type": "xlstm_v1", "vocab_size": 10, "hidden_size": 16, "num_hidden_layers": 2}
    | {"mlstm_block": {"mlstm": {"num_heads": 2}}, "dropout": 0.5}
)


@both
def test_dropout_of_a_model_drops_while_training_alone_and_by_the_frameworks_seed(side):
    ids, model = np.arange(10, dtype=np.int32).reshape(2, 5), make(side, DROPPING)
    plain = make(side, replace(DROPPING, dropout=0.0))
    expected, _ = side.run(plain, ids)
    side.seed(1)
    first, _ = side.run(model, ids)
    second, _ = side.run(model, ids)
    side.seed(1)
    again, _ = side.run(model, ids)
    np.testing.assert_array_equal(again, first)
    assert (first != second).any()
    model.eval()
    np.testing.assert_array_equal(side.run(model, ids)[0], expected)


@both
def test_weights_of_16_bits_are_computed_in_float32(side):
    model, ids = make(side, DROPPING), np.arange(10, dtype=np.int32).reshape(2, 5)
    model.eval()
    results = []
    for dtype in ("bfloat16", "float32"):  # the rounded weights, then the same ones in float32
        if side.framework == "torch":
            model.to(getattr(torch, dtype))
        else:
            model.set_dtype(getattr(mx, dtype))
        results.append(side.run(model, ids)[0])
    assert results[0].dtype == np.float32
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bfloat16", "float64"])
def test_dropout_of_a_model_does_not_depend_on_the_default_type_of_torch(dtype):
    model, ids = make(SIDES["torch"], replace(DROPPING, dropout=0.1)), torch.arange(10)[None]
    torch.manual_seed(1)
    expected, _ = model(ids)
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(1)
        actual, _ = model(ids)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(actual, expected)


def test_a_head_that_a_user_ties_to_the_embedding_is_computed_with_and_trained():
    model = make(SIDES["torch"], DROPPING).eval()
    ends = [name for name, value in model.named_parameters() if value.shape == (10, 16)]
    embedding, head = (model.get_submodule(name.removesuffix(".weight")) for name in ends)
    head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    expected, _ = model(torch.arange(10)[None])
    head.weight = embedding.weight
    actual, _ = model(torch.arange(10)[None])
    assert torch.equal(actual, expected)


def export(cfg):
    """A model as the class of transformers that an export carries."""
    pytest.importorskip("transformers", reason="the extra [peers]")
    own = import_module("mlxhog.nn.modeling_torch")
    fields = cfg.to_dict() | {"family": cfg.model_type}
    del fields["model_type"]
    return own.MlxhogForCausalLM(own.MlxhogConfig(**fields))


@pytest.mark.slow
def test_dropout_of_an_export_drops_while_training_alone():
    model, ids = export(DROPPING), torch.arange(10).reshape(2, 5)
    padded = {"attention_mask": torch.tensor([[1] * 5, [0] + [1] * 4])}
    for how in ({}, padded):
        model.train()
        assert not torch.equal(model(ids, **how).logits, model(ids, **how).logits)
        model.eval()
        assert torch.equal(model(ids, **how).logits, model(ids, **how).logits)


@pytest.mark.slow
def test_an_export_reads_the_tokens_that_its_resized_embedding_adds():
    model, ids = export(DROPPING).eval(), torch.arange(10).reshape(2, 5)
    before = model(ids).logits
    model.resize_token_embeddings(12)
    assert_close(model(ids).logits[..., :10].detach(), before.detach(), LOGITS_F32)
    assert model(ids + 2).logits.shape == (2, 5, 12)
    with pytest.raises(DataError, match="token 12 .* outside the vocabulary of 12 ids"):
        model(ids + 3)
    tables = export(replace(DROPPING, ngram_orders=(2,)))
    with pytest.raises(ConfigError, match="n-gram tables are made for 10 tokens, not for 12"):
        tables.resize_token_embeddings(12)
