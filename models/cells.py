"""The cells of a model, by their sizes, and the multiply-adds of a token; imports no framework.

A multiply-add is one product that is added to a sum, of the chunkwise form where there is one. Of a
token the forward pass has

    one for each element of a weight of two axes or more, and of the head
    NH (L (DK + DV) + 2 DK DV) in an mLSTM cell with chunks of L positions: the products of q and k
    with each other and with v inside of the chunk, and those with the state at its start and end

The rest (norms, activations, gates) is not counted. A backward pass has two products for each of a
forward pass, one per factor.
"""

from mlxhog.base.capabilities import Cell
from mlxhog.models import families
from mlxhog.models.families import ModelConfig
from mlxhog.models.layers.layer import Layer
from mlxhog.models.layers.xlstm import CHUNK_SIZE

BACKWARD = 2  # products of a backward pass for each of the forward pass


def cells(model: ModelConfig) -> dict[Cell, int]:
    """Return the operators with Metal kernels that a model has, and the number of their layers."""
    counts = dict[Cell, int]()
    for part in model.layout.parts():
        for cell in _of_layer(part.layer, part.d):
            counts[cell] = counts.get(cell, 0) + 1
    return counts


def _of_layer(layer: Layer, d: int) -> list[Cell]:
    shapes = layer.state_shapes(d, 0)
    found = [Cell("causal_conv", (k + 1, width)) for k, width in shapes.get("conv", ())]
    if layer.name.startswith("mlstm"):
        chunk = getattr(layer, "chunk_size", CHUNK_SIZE)
        found.append(Cell("mlstm_cell", (*shapes["cell"][0], chunk)))
    if layer.name.startswith("slstm"):
        found.append(Cell("slstm_cell", tuple(shapes["cell"][0])))
    return found


def multiply_adds(model: ModelConfig) -> int:
    """Return the multiply-adds of a token in the forward pass; see the module."""
    spec, embedding, head = model.layout.spec, families.embedding(model), families.head(model)
    count = spec[head].size if model.tie_word_embeddings else 0
    count += sum(
        one.size
        for name, one in spec.items()
        if name != embedding and one.kind != "table" and len(one.shape) > 1
    )
    for cell, layers in cells(model).items():
        if cell.operator == "mlstm_cell":
            NH, DK, DV, L = cell.sizes
            count += layers * NH * (L * (DK + DV) + 2 * DK * DV)
    return count


def not_counted(model: ModelConfig) -> list[str]:
    """Return the names of layers that mix positions by products which are not counted."""
    known = ("mlstm", "slstm", "gated-conv", "canon")
    layers = {part.layer.name for part in model.layout.parts() if part.layer.kind == "mixer"}
    return sorted(name for name in layers if not name.startswith(known))
