"""What a step makes MLX dispatch, counted from its graphs; nothing is measured.

    python -m tools.counts            counts, and writes tests/tools/mlx_graph.json

A count holds on every machine. Two things differ on a GPU: a norm of `mx.fast` is one primitive
there, for which `norms_of_a_gpu` stands in, and `mx.compile`, which a GPU worker uses, makes one of
several elementwise primitives. A change may lower a recorded count, not raise it.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxhog.config.components import LAYERS
from mlxhog.models import families, lm
from mlxhog.models.families import ModelConfig
from mlxhog.models.mad.config import MADConfig
from mlxhog.models.mad.sequence import parse
from mlxhog.models.ops.kernels import choose
from mlxhog.models.registry import load_architecture

RECORD = Path(__file__).parents[1] / "tests/tools/mlx_graph.json"

GRAPHS = ("tiny", "7to1-tiny", "minute", "10m", "160m", "10m-v1")
VIEWS = frozenset(
    "Broadcast BroadcastAxes Contiguous Copy CustomTransforms Depends ExpandDims Flatten Reshape "
    "Slice Split Squeeze StopGradient Transpose Unflatten".split()
)
"""Primitives that share the memory of a row-major input, and dispatch nothing."""


def primitives(outputs: Sequence[Any]) -> list[str]:
    """The primitives in the graph of some arrays of MLX, which are not computed yet."""
    import mlx.core as mx

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.dot"
        mx.export_to_dot(str(graph), *outputs)
        return re.findall(r'label ="([A-Za-z_]+)', graph.read_text())


def dispatched(outputs: Sequence[Any]) -> int:
    """Primitives in the graph of some arrays that compute."""
    return sum(name not in VIEWS for name in primitives(outputs))


@contextmanager
def norms_of_a_gpu() -> Iterator[None]:
    """Let graphs of a block have as many primitives for a norm of `mx.fast` as a GPU's.

    One is the norm, one its gradient, and one the sum of the gradients of its scale. Those here
    compute something else: the graphs are for counting.
    """
    import mlx.core as mx

    def like(gradients: Callable[..., Any]) -> Any:
        one = mx.custom_function(lambda x, *w: mx.cumsum(x, -1))  # no other primitive takes it in
        one.vjp(gradients)
        return one

    scaled = like(lambda x, dy, _: (mx.cumsum(dy, -1), dy.reshape(-1, dy.shape[-1]).sum(0)))
    plain = like(lambda x, dy, _: mx.cumsum(dy, -1))

    def norm(x: Any, w: Any, *others: Any) -> Any:
        return plain(x) if w is None else scaled(x, w)

    of_mlx = mx.fast.rms_norm, mx.fast.layer_norm
    mx.fast.rms_norm = mx.fast.layer_norm = norm  # type: ignore[assignment]
    try:
        yield
    finally:
        mx.fast.rms_norm, mx.fast.layer_norm = of_mlx


def gradient(model: ModelConfig, batch: int, seq: int) -> tuple[Callable[..., Any], list[Any]]:
    """The loss of a model with its gradients, and arguments of one number each."""
    import mlx.core as mx

    ops, spec = choose("mlx", "eager", "cpu"), families.param_spec(model)
    trained = [name for name, parameter in spec.items() if parameter.kind == "dense"]
    width = spec[families.embedding(model)].shape[-1]

    def loss(params: list[Any], x: Any, tokens: Any) -> Any:
        named = dict(zip(trained, params, strict=True))
        return lm.mean_loss(model, named, tokens, tokens, ops=ops, x=x)

    params = [mx.broadcast_to(mx.array(0.01), spec[name].shape) for name in trained]
    x = mx.broadcast_to(mx.array(0.5), (batch, seq, width))
    tokens = mx.broadcast_to(mx.array(1), (batch, seq))
    mx.eval(params, x, tokens)  # arguments are no nodes
    return mx.value_and_grad(loss, argnums=(0, 1)), [params, x, tokens]


def step_nodes(model: ModelConfig, batch: int = 2, seq: int = 256) -> int:
    """Dispatched nodes of a compiled gradient, the form in which a GPU gets it."""
    import mlx.core as mx

    with mx.stream(mx.cpu), norms_of_a_gpu():
        function, arguments = gradient(model, batch, seq)
        value, (grads, dx) = mx.compile(function)(*arguments)
    return dispatched([value, dx, *grads])


def graphs() -> dict[str, int]:
    """Nodes of a step of each of `GRAPHS`, and of one more block of each kind of ours."""
    counts = {name: step_nodes(load_architecture(name)) for name in GRAPHS}
    for layer, definition in LAYERS.known().items():
        if definition.__module__.startswith("mlxhog."):
            one, two = (
                step_nodes(MADConfig(vocab_size=23, hidden_size=64, layers=parse(layers)))
                for layers in (layer, f"{layer} {layer}")
            )
            counts[f"block {layer}"] = two - one
    return counts


if __name__ == "__main__":
    before, now = json.loads(RECORD.read_text()), graphs()
    for name, count in now.items():
        print(f"{name:24} {before.get(name, '-'):>6} {count:>6}")
    RECORD.write_text(json.dumps(now, indent=1) + "\n")
