"""The equations of layers and of both xLSTM families, from the text of each and its own code.

A layer of width D maps x [B,S,D] to y [B,S,D]; a model maps tokens [B,S] to logits and a loss.
"""

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from mlxhog.conformance.subject import LEFT_OUT, NOISE, OPEN_GATE, state_names
from mlxhog.conformance.vectors.cells import CELLS, gram, normal
from mlxhog.conformance.vectors.equations import (
    Array,
    Draw,
    Equations,
    Named,
    Options,
    Results,
    Tensor,
)
from mlxhog.data.batch import IGNORED
from mlxhog.models import lm, xlstm_large, xlstm_v1
from mlxhog.models.families import ModelConfig, param_spec
from mlxhog.models.layers import make
from mlxhog.models.layers.delta import DeltaNet
from mlxhog.models.layers.feed_forward import LargeFeedForward
from mlxhog.models.layers.layer import ForwardContext, Layer
from mlxhog.models.layers.xlstm import CELL_EPS, V1_NORM_EPS, LargeMLSTM
from mlxhog.models.ops.operators import Ops
from mlxhog.models.spec import ParamSpec, initial_value
from mlxhog.models.xlstm_large import XLSTMLargeConfig
from mlxhog.models.xlstm_v1 import XLSTMV1Config

WIDTH = 8  # of x
NORM_EPS = 1e-6
MAX_LENGTH = 64  # of a layer that is made for one

HEADER = """\
x [B,S,D], y [B,S,D]. In the text u is x; W u + b is a linear map, `NAME.weight` (out, in) and any
`NAME.bias`; conv is a depthwise causal convolution, `NAME.weight` (channels, 1, k), the last entry
for the position itself; RMSNorm(x) = w x / sqrt(mean(x^2) + norm_eps); an index _head: within each
head; LN is the layer norm, with the eps norm_eps, or head_norm_eps if there is one. A state conv
has the last inputs of the convolution, the latest last."""
RESETS = (
    "Where reset_mask is 1, states are 0 before the position, and so is all that conv has read."
)

_SIZES: Mapping[str, Mapping[str, object]] = {
    "mh-attention": {"heads": 2, "kv_heads": 1},
    "mh-sliding-attention": {"heads": 2, "window": 5},
    "path": {"heads": 2, "rank": 4},
    "linear-attention": {"heads": 2},
    "gla": {"heads": 2, "rank": 4},
    "gsa": {"heads": 2, "slots": 4},
    "ssd": {"heads": 2, "states": 4},
    "mamba": {},
    "mamba3": {"heads": 2, "states": 4},
    "delta-net": {"heads": 2},
    "gated-delta-net": {"heads": 2},
    "gated-delta-product": {"heads": 2},
    "kda": {"heads": 2},
    "rwkv7": {"heads": 2, "rank": 4, "gate_rank": 4},
    "mesa": {"heads": 2},
    "gated-conv": {},
    "canon": {},
    "hyena": {"expand": 2, "groups": 2},
    "mh-hyena": {"heads": 2, "groups": 2},
    "mlstm": {"heads": 2},
    "mlstm-v1": {"heads": 2, "inner": 16},
    "slstm": {"heads": 2},
    "slstm-v1": {"heads": 2},
    "mlp": {"inner": 16},
    "swiglu": {"inner": 16},
    "geglu": {"inner": 16},
    "moe-swiglu": {"experts": 4, "inner": 4},
}
"""Hyperparameters of the layers that are exported, by name."""


def _layers() -> Iterable[Layer]:
    for name, own in _SIZES.items():
        kind = type(make(name))
        yield kind(**own)
    yield LargeMLSTM(
        heads=2, qk=4, v=8, bias=False, chunk_size=16, eps=CELL_EPS, gate_cap=15.0, residual="zeros"
    )
    yield LargeFeedForward(inner=16, bias=False, residual="zeros")


def _param(spec: ParamSpec, rng: np.random.Generator, shape: tuple[int, ...], large: bool) -> Array:
    """Return an initial value with noise, so that no gate is closed and no gradient vanishes."""
    value = initial_value(spec, int(rng.integers(1 << 31)))
    if spec.init.startswith("constant:"):
        value = np.maximum(value, np.float32(OPEN_GATE))
    return np.asarray(value + NOISE * rng.standard_normal(shape))


def _shape(shape: tuple[int, ...]) -> str:
    return " ".join(map(str, shape))


def _params(specs: Iterable[ParamSpec]) -> list[Tensor]:
    return [Tensor(p.name, _shape(p.shape), partial(_param, p), "parameter") for p in specs]


# -- layers --------------------------------------------------------------------------------------


def _layer(layer: Layer) -> Equations:
    """Return the equations of one layer; with a cache of all positions it has no state here."""
    layer = layer.at_width(WIDTH)
    shapes, specs = layer.state_shapes(WIDTH, 0), [*layer.param_spec(WIDTH)]
    parts = [(part, one) for part, own in shapes.items() for one in own]
    kept = [f"state.{name}" for name in state_names(layer, WIDTH)]
    tensors = [Tensor("x", f"B S {WIDTH}", normal), *_params(specs)]
    recurrent = "cache" not in shapes
    if recurrent:
        tensors += [
            Tensor(name, f"B {_shape(one)}", _state(layer, name), "state", rounds=part != "cell")
            for name, (part, one) in zip(kept, parts, strict=True)
        ]

    def compute(ops: Ops, x: Named, options: Options) -> Results:
        resets = x.get("reset_mask")
        ctx = ForwardContext(
            ops, NORM_EPS, MAX_LENGTH, reset_mask=None if resets is None else resets != 0
        )
        p = {spec.name: x[spec.name] for spec in specs}
        y, last = layer.forward(p, x["x"], tuple(map(x.get, kept)), ctx)
        return {"y": y} | (dict(zip(kept, last, strict=True)) if recurrent else {})

    has_resets = "lstm" in layer.name
    options: dict[str, Any] = {"norm_eps": NORM_EPS, **layer.hyperparameters()}
    options |= {"eps": CELL_EPS} if layer.name.startswith("mlstm") else {}
    options |= {"head_norm_eps": V1_NORM_EPS} if layer.name.endswith("-v1") else {}
    return Equations(
        name=f"layer-{layer.name}",
        text=_text(layer),
        tensors=tuple(tensors),
        compute=compute,
        options=options,
        resets=has_resets,
        kinds=("usual", "odd", "zeros", *["carry"] * bool(kept and recurrent), "documents"),
    )


def _state(layer: Layer, name: str) -> Draw:
    """Return how to draw an initial state, as the cell of the layer does, if it has one here."""
    draws: dict[str, Draw] = {"state.cell.0": gram} if layer.name == "mesa" else {}
    if (cell := _cell(layer)) is not None:
        draws |= {one.name: one.draw for one in cell.tensors}
    return draws.get(name, normal)


def _cell(layer: Layer) -> Equations | None:
    return next((CELLS[name] for name in ("mlstm", "slstm") if layer.name.startswith(name)), None)


def _text(layer: Layer) -> str:
    """Return the text of a layer, of its bases, and of its cell."""
    own, *bases = (kind for kind in type(layer).__mro__ if kind is not Layer)
    bases += DeltaNet.__mro__ if layer.name == "kda" else ()
    docs = [inspect.cleandoc(kind.__doc__ or "") for kind in bases if issubclass(kind, Layer)]
    if not (own.__doc__ or "").startswith(f"{own.__name__}("):  # which a dataclass writes
        docs.insert(0, inspect.cleandoc(own.__doc__ or ""))
    texts = [HEADER, *dict.fromkeys(doc for doc in docs if doc in docs[:1] or "\n" in doc)]
    if (cell := _cell(layer)) is not None:
        texts += [cell.text, RESETS]
    return "\n\n".join(texts)


# -- models --------------------------------------------------------------------------------------


def _model(name: str, cfg: ModelConfig, module: ModuleType) -> Equations:
    """Return the equations of a model of a family, whose module has them as text."""
    vocab, specs, blocks = cfg.vocab_size, param_spec(cfg), list[list[str]]()
    tensors = [
        Tensor("tokens", "B S", partial(_tokens, vocab), "tokens"),
        Tensor("targets", "B S", partial(_targets, vocab), "targets"),
        *_params(specs.values()),
    ]
    for number, (part, *_) in enumerate(cfg.layout.blocks):
        shapes = part.layer.state_shapes(part.d, 0)
        parts = [(kind, one) for kind, own in shapes.items() for one in own]
        blocks.append([f"state.{number}.{one}" for one in state_names(part.layer, part.d)])
        for key, (kind, one) in zip(blocks[-1], parts, strict=True):
            draw = _state(part.layer, f"state.{key.rpartition('.')[2]}")
            axes = f"B {_shape(one)}"
            tensors.append(Tensor(key, axes, draw, "state", rounds=kind != "cell"))

    def compute(ops: Ops, x: Named, options: Options) -> Results:
        params, state = {key: x[key] for key in specs}, None
        if blocks[0][0] in x:
            state = [tuple(x[key] for key in block) for block in blocks]
        logits, after = lm.logits(cfg, params, x["tokens"], state, ops=ops)
        targets = x["targets"].long() if ops.xp.framework == "torch" else x["targets"]
        loss = lm.mean_loss(cfg, params, x["tokens"], targets, ops=ops, state=state)
        ends = zip(blocks, after, strict=True)
        states = {key: y for block, end in ends for key, y in zip(block, end, strict=True)}
        return {"logits": logits, "loss": loss} | states

    layers = {part.layer.name: part.layer for block in cfg.layout.blocks for part in block}
    text = [
        "tokens, targets [B,S]; logits [B,S,vocab_size]; loss: mean nats of the targets but -100.",
        inspect.cleandoc(module.__doc__ or ""),
        *(_text(layer) for layer in layers.values()),
    ]
    return Equations(
        name=name,
        text="\n\n".join(text),
        tensors=tuple(tensors),
        compute=compute,
        options=cfg.to_dict(),
        kinds=("usual", "odd", "state"),
    )


def _tokens(vocab: int, rng: np.random.Generator, shape: tuple[int, ...], large: bool) -> Array:
    return rng.integers(0, vocab, shape, dtype=np.int32)


def _targets(vocab: int, rng: np.random.Generator, shape: tuple[int, ...], large: bool) -> Array:
    targets = _tokens(vocab, rng, shape, large)
    targets[rng.random(shape) < LEFT_OUT] = IGNORED
    return targets


_SMALL = {"round_proj_up_to_multiple_of": 8}

LAYERS = {one.name: one for one in map(_layer, _layers())}
"""The equations of layers by their names, such as "layer-kda"."""

MODELS = {
    "xlstm-large": _model(
        "xlstm-large",
        XLSTMLargeConfig(
            vocab_size=23, hidden_size=8, num_hidden_layers=2, num_heads=2,
            chunk_size=16, ffn_round_up_to_multiple_of=8,
        ),
        xlstm_large,
    ),
    "xlstm-v1": _model(
        "xlstm-v1",
        XLSTMV1Config.from_dict({
            "vocab_size": 23, "embedding_dim": 8, "num_blocks": 2, "slstm_at": [1],
            "mlstm_block": {"mlstm": {"num_heads": 2, **_SMALL}},
            "slstm_block": {"slstm": {"num_heads": 2}, "feedforward": _SMALL},
            "chunk_size": 16,
        }, strict=True),
        xlstm_v1,
    ),
}  # fmt: skip
"""The equations of whole models, one of each family."""
