"""What MLX dispatches for some arrays, counted in their graph, before anything is computed.

A count holds on every machine. Two things differ on a GPU: a norm of `mx.fast` is one primitive
there and several on a CPU, for which `norms_of_a_gpu` stands in, and `mx.compile`, which a GPU
worker uses, makes one of several elementwise primitives.

    python -m tools.mlx_graph

counts a gradient of a block of each kind and a step of each small model, and writes the table that
`tests/tools/test_mlx_graph.py` compares: a change may lower a number, not raise it unnoticed.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxhog.config.choices import LAYERS
from mlxhog.models import families, lm
from mlxhog.models.families import ModelConfig
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import parse
from mlxhog.models.ops.kernels import choose
from mlxhog.models.registry import load_architecture

RECORD = Path(__file__).parents[1] / "tests" / "tools" / "mlx_graph.json"
MODELS = ("tiny", "7to1-tiny", "minute", "10m", "160m", "10m-v1")
BATCH, SEQ = 2, 256

VIEWS = frozenset(
    "Broadcast BroadcastAxes Contiguous Copy CustomTransforms Depends ExpandDims Flatten Reshape "
    "Slice Split Squeeze StopGradient Transpose Unflatten".split()
)
"""Primitives that share the memory of a row-major input, and dispatch nothing."""


def primitives(outputs: Sequence[mx.array]) -> Counter[str]:
    """How often each primitive is in the graph of some arrays."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.dot"
        mx.export_to_dot(str(graph), *outputs)
        return Counter(re.findall(r'label ="([A-Za-z_]+)', graph.read_text()))


def dispatched(outputs: Sequence[mx.array]) -> int:
    """Primitives in the graph of some arrays that compute."""
    return sum(count for name, count in primitives(outputs).items() if name not in VIEWS)


@contextmanager
def norms_of_a_gpu() -> Iterator[None]:
    """Let graphs of a block have as many primitives for a norm of `mx.fast` as a GPU's.

    One is the norm, one its gradient, and one the sum of the gradients of its scale. Those here
    compute something else: the graphs are for counting.
    """

    @mx.custom_function
    def scaled(x: mx.array, w: mx.array) -> mx.array:
        return mx.cumsum(x, -1)  # no other primitive takes it in

    @scaled.vjp
    def scaled_gradients(xw: Any, dy: mx.array, _: Any) -> tuple[mx.array, mx.array]:
        return mx.cumsum(dy, -1), dy.reshape(-1, dy.shape[-1]).sum(0)

    @mx.custom_function
    def plain(x: mx.array) -> mx.array:
        return mx.cumsum(x, -1)

    @plain.vjp
    def plain_gradient(x: mx.array, dy: mx.array, _: Any) -> mx.array:
        return mx.cumsum(dy, -1)

    def norm(x: mx.array, w: mx.array | None, *others: Any) -> Any:
        return plain(x) if w is None else scaled(x, w)

    of_mlx = mx.fast.rms_norm, mx.fast.layer_norm
    mx.fast.rms_norm = mx.fast.layer_norm = norm  # type: ignore[assignment]
    try:
        yield
    finally:
        mx.fast.rms_norm, mx.fast.layer_norm = of_mlx


def gradient(model: ModelConfig, batch: int, seq: int) -> tuple[Callable[..., Any], list[Any]]:
    """The loss of a model with its gradients, and arguments of one number each."""
    ops, spec = choose("mlx", "reference", "cpu"), families.param_spec(model)
    trained = [name for name, parameter in spec.items() if parameter.kind == "dense"]
    width = spec[families.embedding(model)].shape[-1]

    def loss(params: list[Any], x: Any, tokens: Any) -> Any:
        named = dict(zip(trained, params, strict=True))
        starts = lm.starts(model, tokens)
        return lm.loss_from_embedding(model, named, x, tokens, ops=ops, starts=starts)

    params = [mx.broadcast_to(mx.array(0.01), spec[name].shape) for name in trained]
    x = mx.broadcast_to(mx.array(0.5), (batch, seq, width))
    tokens = mx.broadcast_to(mx.array(1), (batch, seq))
    mx.eval(params, x, tokens)  # arguments are no nodes
    return mx.value_and_grad(loss, argnums=(0, 1)), [params, x, tokens]


def step_nodes(model: ModelConfig, batch: int = BATCH, seq: int = SEQ) -> int:
    """Dispatched nodes of a compiled gradient, the form in which a GPU gets it."""
    with mx.stream(mx.cpu), norms_of_a_gpu():
        function, arguments = gradient(model, batch, seq)
        value, (grads, dx) = mx.compile(function)(*arguments)
    return dispatched([value, dx, *grads])


def counted() -> dict[str, int]:
    """Nodes of a step of each of `MODELS`, and of one more block of each kind."""
    counts = {name: step_nodes(load_architecture(name)) for name in MODELS}
    for layer, definition in LAYERS.known().items():
        if not LAYERS.module_of(definition).startswith("mlxhog."):
            continue  # a plugin's
        one, two = (_of_layers(layer, count) for count in (1, 2))
        counts[f"block {layer}"] = two - one
    return counts


def _of_layers(layer: str, count: int) -> int:
    layers = parse(" ".join([layer] * count))
    return step_nodes(MADConfig(vocab_size=23, hidden_size=64, layers=layers), seq=SEQ)


def raised(now: Mapping[str, int], recorded: Mapping[str, int]) -> list[str]:
    """Say which numbers are larger than recorded, or recorded nowhere."""
    return [
        f"{name}: {count} dispatched nodes, {recorded.get(name, 'none')} recorded"
        for name, count in now.items()
        if count > recorded.get(name, -1)
    ]


if __name__ == "__main__":
    before = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    now = counted()
    for name, count in now.items():
        print(f"{name:24} {before.get(name, '-'):>6} {count:>6}")
    RECORD.write_text(json.dumps(now, indent=1) + "\n")
