"""Adapters: the loss of a model with merged weights, and the gradients that follow from its own."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import product

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxhog import backends
from mlxhog.backends import frozen
from mlxhog.base import mapped
from mlxhog.base import tensors as files
from mlxhog.errors import CheckpointError, ConfigError
from mlxhog.models import families, lm, lm_float64, ngrams
from mlxhog.models.adapters import LoRA, is_adapter, merged
from mlxhog.models.layers import BUILT_IN
from mlxhog.models.mad.sequence import parse
from mlxhog.models.ops import arrays_mlx, arrays_torch
from mlxhog.models.ops.frozen import FrozenWeight, names_of, quantize
from mlxhog.models.ops.native.adapter_torch import OPS as NATIVE
from mlxhog.models.sampled_softmax import SampledSoftmax
from tests.backends.untrained import NAMES, batch, bound, values
from tests.models.sample import SMALLEST, config, v1_config
from tests.tolerances import GRADIENT_ANY_F32, LOGITS_F32, OP_F32, assert_close

MODELS = {
    "candidate": replace(SMALLEST, layers=parse(" ".join(layer.name for layer in BUILT_IN))),
    "large": config(),
    "v1": v1_config(),
}
LORA = LoRA(rank=3, alpha=2.0)


def drawn(cfg, seed=5):
    """Parameters of a model with an adapter, whose B is not zero."""
    params = families.init_params(cfg, 0)
    rng = np.random.default_rng(seed)
    for name in filter(is_adapter, params):
        params[name] = rng.standard_normal(params[name].shape, np.float32) / 8
    return params


def whole(cfg, params):
    """The model without the adapter, and its merged parameters."""
    base = replace(cfg, adapter=None)
    spec = families.param_spec(base)
    return base, {name: merged(cfg.adapter, name, params[name], params) for name in spec}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("head", [None, SampledSoftmax(7, np.ones(SMALLEST.vocab_size))])
@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("family", MODELS)
def test_an_adapter_has_the_loss_and_the_gradients_of_the_merged_model(
    family, backend, head, recompute
):
    cfg = replace(MODELS[family], adapter=LORA)
    params, own = drawn(cfg), batch(2, 9)
    base, together = whole(cfg, params)
    how = {"head": head, "recompute": recompute}
    loss, grads = bound(backend, cfg, params, **how).loss_and_grads(own)
    expected, dense = bound(backend, base, together, **how).loss_and_grads(own)
    assert loss == pytest.approx(expected, rel=1e-6)
    grads, dense = values(grads), values(dense)
    assert grads.keys() == families.trainable_spec(cfg).keys()
    for name in families.frozen_names(cfg):
        stem = name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" not in grads:
            continue
        a, b = params[f"{stem}.lora_A.weight"], params[f"{stem}.lora_B.weight"]
        for part, right in ("A", b.T @ dense[name]), ("B", dense[name] @ a.T):
            found = grads[f"{stem}.lora_{part}.weight"]
            expected = LORA.scale * right
            assert np.linalg.norm(found - expected) <= 3e-3 * np.linalg.norm(expected), name


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        (LoRA(targets=("qq",)), "targets has 'qq', which no layer of this model is called"),
        (LoRA(rank=999), "rank 999 is above the smaller side of"),
        (LoRA(modules_to_save=("heads",)), "modules_to_save has 'heads'"),
        (LoRA(rank=2, modules_to_save=("*",)), "no linear layer is left to adapt; name other"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_what_would(adapter, says):
    with pytest.raises(ConfigError, match=says):
        families.param_spec(replace(SMALLEST, adapter=adapter))


def test_a_module_to_save_that_holds_others_is_refused_unless_these_are_saved_too():
    with pytest.raises(ConfigError, match="xlstm, of which only a part.* xlstm.proj_up.* are mod"):
        families.param_spec(replace(MODELS["v1"], adapter=LoRA(rank=2, modules_to_save=("xlstm",))))
    whole = LoRA(rank=2, modules_to_save=("xlstm", "xlstm.*"))
    trained = families.trainable_spec(replace(MODELS["v1"], adapter=whole))
    own = {name for name in families.param_spec(MODELS["v1"]) if ".xlstm." in name}
    assert own
    assert own == {name for name in trained if not is_adapter(name)}


@pytest.mark.parametrize(
    ("target", "adapted"),
    [
        ("q", {"mlstm_layer.q"}),
        ("mlstm_layer.q", {"mlstm_layer.q"}),
        ("ffn.*", {"ffn.proj_up", "ffn.proj_up_gate", "ffn.proj_down"}),
        ("*.out_proj", {"mlstm_layer.out_proj"}),
        ("blocks.0.mlstm_layer.?", {f"mlstm_layer.{name}" for name in "qkv"}),
    ],
)
def test_a_target_is_the_end_of_a_name_or_a_pattern_of_it(target, adapted):
    model = replace(config(num_hidden_layers=1), adapter=LoRA(targets=(target,)))
    spec = families.trainable_spec(model)
    begin, end = "backbone.blocks.0.", ".lora_A.weight"
    assert {name for name in spec if name.endswith(end)} == {begin + one + end for one in adapted}


def test_an_alpha_that_overflows_float32_is_refused():
    with pytest.raises(ConfigError, match="alpha is 1e.300; wanted a number above 0 and below"):
        LoRA(alpha=1e300)


WIDE = {"hidden_size": 64, "vocab_size": 48}
BASES = {
    "candidate": replace(MODELS["candidate"], **WIDE),
    "large": config(**WIDE),
    "tied": config(**WIDE, tie_word_embeddings=True),
    "v1": v1_config(embedding_dim=64, vocab_size=48),
}


def rounded(cfg, params, weights):
    """The parameters with the values that a format of the base has."""
    values = dict(params)
    for name in families.frozen_names(cfg):
        if frozen.is_reduced(cfg, name):
            weight = frozen.weight(cfg, params, name, weights)
            values[name] = np.array(arrays_mlx.dequantize(weight, mx.zeros(1)))
    return values


CASES = [
    *product(BASES, ["native"], ["bfloat16", "4bit"], [True]),
    *product(["large", "v1"], ["native"], ["8bit", "4bit"], [False]),
    *product(["large", "v1"], ["eager"], ["bfloat16", "8bit", "4bit"], [False, True]),
    ("tied", "eager", "4bit", False),
    ("large", "metal-emulated", "4bit", True),
]


@pytest.mark.parametrize(("family", "kernels", "weights", "recompute"), CASES)
@pytest.mark.parametrize("backend", NAMES)
def test_a_base_of_few_bits_has_the_gradients_of_its_dequantized_weights(
    family, backend, kernels, weights, recompute
):
    cfg = replace(BASES[family], adapter=LORA)
    params, own = drawn(cfg), batch(2, 9)
    how = {"recompute": recompute, "kernels": kernels}
    loss, grads = bound(backend, cfg, params, weights=weights, **how).loss_and_grads(own)
    whole = rounded(cfg, params, weights)
    expected, same = bound(backend, cfg, whole, **how).loss_and_grads(own)
    assert loss == pytest.approx(expected, rel=1e-6)
    exact, _ = bound(backend, cfg, params, **how).loss_and_grads(own)
    assert loss != pytest.approx(exact, rel=1e-6)
    grads, same = values(grads), values(same)
    assert grads.keys() == families.trainable_spec(cfg).keys()
    for name, grad in same.items():
        assert np.linalg.norm(grads[name] - grad) <= 1e-3 * np.linalg.norm(grad), name


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """A base in bfloat16 as a mapped file, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cfg = replace(BASES["large"], adapter=LORA)
    params = drawn(cfg)
    own = {name: params[name].astype(mapped.BFLOAT16) for name in families.frozen_names(cfg)}
    files.write(tmp_path / "base.safetensors", own)
    return cfg, params, tmp_path / "base.safetensors"


@pytest.mark.parametrize("weights", ["keep", "4bit"])
@pytest.mark.parametrize("backend", NAMES)
def test_a_backend_of_a_cpu_reads_the_weights_of_a_base_in_the_pages_of_its_file(
    backend, weights, on_disk
):
    cfg, params, file = on_disk
    tensors = frozen.shared(cfg, files.read(file), weights, digest="a1")
    backend = backends.create(backend, threads=1, kernels="auto")
    assert backend.load_frozen(cfg, tensors, weights=weights) == []
    name = "backbone.blocks.0.ffn.proj_up.weight"
    assert mapped.is_mapped(tensors[name])
    (first, *_) = backend.params[name].parts
    address = first.data_ptr() if hasattr(first, "data_ptr") else first.ctypes.data
    assert address == tensors[name].ctypes.data


def test_a_base_is_converted_once_and_by_one_process_whichever_adapter_it_has(on_disk):
    cfg, params, file = on_disk
    heard = []
    how = {"digest": "a1", "say": heard.append}
    first = frozen.shared(cfg, files.read(file), "8bit", **how)
    again = frozen.shared(replace(cfg, adapter=LoRA(rank=2)), files.read(file), "8bit", **how)
    assert len(heard) == 1
    for name, tensor in first.items():
        assert np.array_equal(again[name], tensor), name
    for name in filter(partial(frozen.is_reduced, cfg), files.read(file)):
        expected = frozen.weight(cfg, files.read(file), name, "8bit").parts
        for part, own in zip(names_of(name), expected, strict=False):
            assert np.array_equal(first[part], own), part


def test_a_converted_base_stays_while_a_process_that_has_it_lives(on_disk, tmp_path):
    cfg, params, file = on_disk
    code = (
        "import sys; from pathlib import Path; from mlxhog.backends import frozen; "
        "print(*[x for p, used in frozen.converted(Path(sys.argv[1])) "
        "for x in (used, frozen.remove(p))])"
    )
    bases = tmp_path / "cache" / "mlxhog" / "bases"

    def elsewhere():
        command = [sys.executable, "-c", code, str(bases)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert frozen.converted(bases) == []
    for _ in range(2):
        frozen.shared(cfg, files.read(file), "4bit", digest="a5")
        assert elsewhere() == "True False"
    os.close(frozen._held.pop(bases / "a5-4bit"))  # as when this process ends
    assert elsewhere() == "False True"
    frozen.shared(cfg, files.read(file), "4bit", digest="a5")
    assert (bases / "a5-4bit").is_dir()


def test_a_base_with_nan_and_one_of_other_bits_are_refused_and_leave_nothing(on_disk, tmp_path):
    cfg, params, file = on_disk
    tensors = dict(files.read(file))
    name = "backbone.blocks.0.ffn.proj_up.weight"
    tensors[name] = np.full_like(tensors[name], np.nan)
    with pytest.raises(CheckpointError, match=f"{name} of the base has NaN"):
        frozen.shared(cfg, tensors, "4bit", digest="a2")
    quantized = frozen.shared(cfg, files.read(file), "4bit", digest="a3")
    with pytest.raises(ConfigError, match="has 4 bits, and weights are 8bit; use keep"):
        frozen.shared(cfg, quantized, "8bit", digest="a4")
    assert [p.name for p in (tmp_path / "cache/mlxhog/bases").iterdir() if p.is_dir()] == [
        "a3-4bit"
    ]


def one_layer(text, *targets):
    return replace(SMALLEST, layers=parse(text), adapter=LoRA(rank=2, targets=targets))


def test_a_linear_layer_whose_bias_has_another_name_has_an_adapter_too():
    cfg, own = one_layer("rwkv7", "decay_up", "rate_up"), batch(1, 6)
    params = drawn(cfg)
    loss, _ = bound("torch:cpu", cfg, params).loss_and_grads(own)
    expected, _ = bound("torch:cpu", *whole(cfg, params)).loss_and_grads(own)
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("backend", NAMES)
def test_heads_of_a_position_share_the_dropout_of_an_adapter(backend):
    cfg = replace(one_layer("linear-attention(heads=4) swiglu"), adapter=LoRA(rank=2, dropout=0.5))
    params, own = drawn(cfg), batch(4, 4)
    masks = lm.dropout_masks(cfg, own.x.shape, own.seed)
    rows = [
        lm_float64.differentiate(
            cfg, params, x, y, masks={n: m[k : k + 1] for n, m in masks.items()}
        )
        for k, (x, y) in enumerate(zip(own.x[:, None], own.y[:, None], strict=True))
    ]
    loss, grads = bound(backend, cfg, params).loss_and_grads(own)
    assert loss == pytest.approx(np.mean([one for one, _ in rows]), rel=1e-6)
    for name, grad in values(grads).items():
        assert_close(grad, np.mean([one[name] for _, one in rows], axis=0), GRADIENT_ANY_F32)


def test_a_target_that_a_layer_multiplies_by_itself_is_refused_with_the_way_out():
    cfg = one_layer("hyena", "filter.1")
    with pytest.raises(ConfigError, match=r"hyena multiplies by filter.1 itself.*leave it out of"):
        bound("torch:cpu", cfg, drawn(cfg)).loss_and_grads(batch(1, 6))


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_quantized_as_by_mlx_and_dequantized_alike_everywhere(bits):
    w = np.random.default_rng(0).standard_normal((48, 192), np.float32)
    w[0, :64], w[1, 64:128], w[2, :64] = 0, 0.5, -2
    weight = FrozenWeight(quantize(w, bits), bits)
    expected = mx.quantize(mx.array(w), group_size=64, bits=bits)
    for part, own in zip(expected, weight.parts, strict=True):
        assert np.array_equal(part, own)
    exact = mx.dequantize(*expected, group_size=64, bits=bits)
    eye = np.eye(192, dtype=np.float32)
    (native,) = NATIVE.frozen_linears(torch.from_numpy(eye), [weight])
    parts = weight.on(lambda x: torch.from_numpy(x.view(np.int32) if x.dtype.kind == "u" else x))
    for found in native.numpy().T, arrays_torch.dequantize(parts, torch.zeros(())).numpy():
        assert_close(found, np.array(exact), OP_F32)
    both = ((arrays_torch, parts, torch.zeros(())), (arrays_mlx, weight, mx.zeros(1)))
    for xp, own, like in both:
        once = xp.bfloat16(xp.dequantize(own, like))
        assert (xp.dequantize(own, xp.bfloat16(like)) == once).all()


@pytest.mark.parametrize("family", ["large", "v1"])
@pytest.mark.parametrize("backend", NAMES)
def test_a_loaded_adapter_decodes_natively_with_the_logits_of_its_merged_model(backend, family):
    cfg = replace(BASES[family], adapter=LORA)
    params, tokens = drawn(cfg), batch(2, 5).x
    adapted, together = (backends.create(backend, threads=1, kernels="auto") for _ in range(2))
    adapted.load(cfg, params)
    together.load(*whole(cfg, params))
    assert adapted._decoder is not None
    states = [None, None]
    for t in range(5):
        found, states[0] = adapted.logits(tokens[:, t : t + 1], states[0])
        expected, states[1] = together.logits(tokens[:, t : t + 1], states[1])
        assert np.array_equal(found, expected)
    prefilled, _ = adapted.logits(tokens, None)
    assert_close(prefilled, expected, LOGITS_F32)


@pytest.mark.parametrize("weights", ["bfloat16", "8bit", "4bit"])
@pytest.mark.parametrize("family", ["large", "tied"])
def test_a_loaded_adapter_and_its_modules_to_save_stay_float32_beside_a_base_of_few_bits(
    family, weights
):
    saved = tuple(
        name.removesuffix(".weight")
        for name in (families.embedding(BASES[family]), families.head(BASES[family]))
    )
    cfg = replace(BASES[family], adapter=replace(LORA, modules_to_save=saved))
    params, tokens = drawn(cfg), batch(2, 9).x
    backend = backends.create("torch:cpu", threads=1, kernels="auto")
    assert backend.load(cfg, params, weights=weights) == []
    for name in families.trainable_spec(cfg):
        assert np.array_equal(backend.params[name].numpy(), params[name]), name
    found, _ = backend.all_logits(tokens, None)
    trained, _ = bound("torch:cpu", cfg, params, weights=weights).all_logits(tokens, None)
    assert np.array_equal(found, trained)


def test_an_adapter_beside_a_model_reads_its_tables_with_the_resets_of_its_own_training():
    base = config(vocab_size=48, bos_token_id=3, ngram_orders=(2, 3), ngram_rows=64)
    cfg = replace(base, adapter=LORA, reset_at_document_boundaries=True)
    params, tokens = drawn(cfg), np.array([[5, 6, 3, 7, 3, 8]], np.int32)
    for name in ngrams.of(cfg).specs:  # zeros at first
        params[name] = np.random.default_rng(1).standard_normal(params[name].shape, np.float32)
    beside, alone = (backends.create("torch:cpu", threads=1, kernels="auto") for _ in range(2))
    beside.load(base, params)
    alone.load(cfg, params)
    adapted, _ = beside.with_adapter(cfg, params)
    assert_close(adapted.all_logits(tokens, None)[0], alone.all_logits(tokens, None)[0], LOGITS_F32)


@pytest.mark.parametrize("backend", NAMES)
def test_mixed_precision_beside_a_base_of_few_bits_is_near_float32(backend):
    cfg, own = replace(BASES["large"], adapter=LORA), batch(2, 9)
    params = drawn(cfg)
    for kernels in ("native", "eager"):
        how = {"weights": "4bit", "kernels": kernels}
        loss, grads = bound(backend, cfg, params, dtype="bfloat16", **how).loss_and_grads(own)
        expected, same = bound(backend, cfg, params, **how).loss_and_grads(own)
        assert loss != expected
        assert loss == pytest.approx(expected, rel=1e-3)
        grads, same = values(grads), values(same)
        for name, grad in same.items():
            assert np.linalg.norm(grads[name] - grad) <= 0.05 * np.linalg.norm(grad), name


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("family", ["large", "v1"])
def test_an_answer_continues_when_merged_weights_are_replaced_by_an_adapter_apart(family, backend):
    cfg = replace(MODELS[family], adapter=LORA)
    params, tokens = drawn(cfg), batch(2, 9).x
    reader = backends.create(backend, threads=1, kernels="native")
    reader.load(*whole(cfg, params))
    expected, _ = reader.all_logits(tokens, None)
    _, state = reader.logits(tokens[:, :4], None)
    _, state = reader.logits(tokens[:, 4:5], state)
    assert isinstance(state[-1][0], np.ndarray)  # of the native decoder
    reader.load(cfg, params)
    for at in range(5, 9):
        state = reader.stack_states([reader.select_state(state, [row]) for row in (0, 1)])
        found, state = reader.logits(tokens[:, at : at + 1], state)
        assert_close(found, expected[:, at], LOGITS_F32)
