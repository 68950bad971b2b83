"""What steps on an Apple GPU cost, counted from arrays, shapes and graphs; nothing is measured.

    python -m tools.counts            a table: Muon by operations and memory
    python -m tools.counts graphs     what MLX dispatches; writes tests/tools/mlx_graph.json

**Muon.** The gradient on the GPU, Muon's elementwise part on the CPU, and the orthogonalisation, on
the CPU by our own product or by Accelerate's, or on the GPU, follow one another. Rates are others'
(docs/apple.md): a GPU that takes 0.03 s for a gradient of `10m` and 1,024 tokens, a core of an M1.

**Graphs.** A count holds on every machine. Two things differ on a GPU: a norm of `mx.fast` is one
primitive there, for which `norms_of_a_gpu` stands in, and `mx.compile`, which a GPU worker uses,
makes one of several elementwise primitives. A change may lower a recorded count, not raise it.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxhog.config.choices import LAYERS
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.registry import load_architecture
from mlxhog.optim.muon import ORTHOGONALIZATIONS, operations

TESTS = Path(__file__).parents[1] / "tests"
RECORD = TESTS / "tools/mlx_graph.json"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# -- Muon -----------------------------------------------------------------------------------------

MODELS = ("10m", "30m", "60m", "160m")
TOKENS, GRADIENT_S = 4 * 256, 0.03
"""Of a gradient: the default batch and length, and the GPU's seconds for `10m`."""
CPU_GFLOP_S: Mapping[str, float] = {"our own product": 102, "Accelerate": 700}
M1_GB_S = 68
"""The memory bandwidth of an M1, in 10^9 bytes per second: 128 bits of LPDDR4X-4266."""
HIDDEN_BYTES, OTHER_BYTES = 48, 28
"""The CPU's memory traffic of a hidden element if the GPU orthogonalises (g, m, m', x; x, x again
for its norm, and its copy; that copy, and MLX's; u, w, w'), and of AdamW's (g, w, m, v, w', m',
v')."""


def shapes(model: str) -> tuple[list[tuple[int, ...]], int]:
    """The shapes of the hidden matrices of a model, and the number of its other elements."""
    config = load_architecture(model)
    spec = families.param_spec(config)
    matrices = [spec[name].shape for name in sorted(families.hidden_matrices(config))]
    return matrices, families.param_count(config) - sum(r * c for r, c in matrices)


def muon_gflop(model: str, *, whole: bool = False) -> float:
    """10^9 operations of one orthogonalisation; `whole` as a device computes symmetric products."""
    steps = len(ORTHOGONALIZATIONS["polar3"])
    return sum(operations(shape, steps, whole=whole) for shape in shapes(model)[0]) / 1e9


def gradient_gflop(model: str) -> float:
    """10^9 operations of a gradient's products with hidden matrices and head; no cells."""
    config = load_architecture(model)
    head = config.vocab_size * config.hidden_size
    return 6 * TOKENS * (sum(r * c for r, c in shapes(model)[0]) + head) / 1e9


def cpu_share(model: str, product: str | None) -> float:
    """Muon's share of a step that the CPU computes and the GPU waits for.

    Args:
        model: name of the architecture.
        product: that orthogonalises, a key of `CPU_GFLOP_S`; None is the GPU's.
    """
    matrices, others = shapes(model)
    hidden, gpu_gflop_s = sum(r * c for r, c in matrices), gradient_gflop("10m") / GRADIENT_S
    cpu_s = (HIDDEN_BYTES * hidden + OTHER_BYTES * others) / (M1_GB_S * 1e9)
    gpu_s = gradient_gflop(model) / gpu_gflop_s
    if product is None:
        gpu_s += muon_gflop(model, whole=True) / gpu_gflop_s
    else:
        cpu_s += muon_gflop(model) / CPU_GFLOP_S[product]
    return cpu_s / (cpu_s + gpu_s)


def muon() -> str:
    """Return the counts and shares, a row per model."""
    products = (*CPU_GFLOP_S, None)
    head = ["model", "gradient, GFLOP", "Muon on a CPU, GFLOP", "on a GPU, GFLOP"]
    rows = []
    for model in MODELS:
        counts = gradient_gflop(model), muon_gflop(model), muon_gflop(model, whole=True)
        shares = (f"{100 * cpu_share(model, product):.0f} %" for product in products)
        rows.append([f"`{model}`", *(f"{gflop:.0f}" for gflop in counts), *shares])
    return table([*head, *(f"CPU's share with {one or 'the GPU'}" for one in products)], rows)


# -- graphs of MLX --------------------------------------------------------------------------------

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

    from mlxhog.models import lm
    from mlxhog.models.ops.kernels import choose

    ops, spec = choose("mlx", "reference", "cpu"), families.param_spec(model)
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
    from mlxhog.models.mad.config import MADConfig
    from mlxhog.models.mad.sequence import parse

    counts = {name: step_nodes(load_architecture(name)) for name in GRAPHS}
    for layer, definition in LAYERS.known().items():
        if definition.__module__.startswith("mlxhog."):
            one, two = (
                step_nodes(MADConfig(vocab_size=23, hidden_size=64, layers=parse(layers)))
                for layers in (layer, f"{layer} {layer}")
            )
            counts[f"block {layer}"] = two - one
    return counts


def main() -> None:
    """Print the table, or count graphs and record them."""
    if sys.argv[1:] == ["graphs"]:
        before, now = json.loads(RECORD.read_text()), graphs()
        for name, count in now.items():
            print(f"{name:24} {before.get(name, '-'):>6} {count:>6}")
        RECORD.write_text(json.dumps(now, indent=1) + "\n")
        return
    print(f"Muon; predictions, not measured:\n\n{muon()}")


if __name__ == "__main__":
    main()
