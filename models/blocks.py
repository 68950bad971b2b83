"""A model's parameters in blocks: the embedding, each layer, and the final norm with the head."""

import re
from dataclasses import dataclass

from mlxhog.models import families, mad, xlstm_v1
from mlxhog.models.families import ModelConfig

_LAYER = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")


@dataclass(frozen=True)
class Block:
    """Parameters that belong together.

    Attributes:
        name: "embedding", "layer 0" and so on, or "head".
        cell: "mlstm" or "slstm" for a layer with that cell; of a layer without one, such as a
            feed-forward layer of a MAD model, the cell of the layers before it; else None.
        params: names, in the order of use.
        size: number of their elements.
    """

    name: str
    cell: str | None
    params: tuple[str, ...]
    size: int

    @property
    def is_layer(self) -> bool:
        """Whether it is neither the embedding nor the head."""
        return self.name.startswith("layer")


def blocks(cfg: ModelConfig) -> list[Block]:
    """Every parameter of a model, each in one block; a tied head is the embedding's block."""
    spec = families.param_spec(cfg)
    of: dict[str, list[str]] = {}
    for name in spec:
        match = _LAYER.search(name)
        embedding = "embedding" if name == families.embedding(cfg) else "head"
        of.setdefault(f"layer {match[1]}" if match else embedding, []).append(name)
    cells = _cells(cfg)
    return [
        Block(
            name=block,
            cell=cells[int(block.split()[1])] if block.startswith("layer") else None,
            params=tuple(names),
            size=sum(spec[name].size for name in names),
        )
        for block, names in of.items()
    ]


def _cells(cfg: ModelConfig) -> list[str | None]:
    """The cell of each layer."""
    if isinstance(cfg, xlstm_v1.XLSTMV1Config):
        layers = range(cfg.num_hidden_layers)
        return ["slstm" if layer in cfg.slstm_at else "mlstm" for layer in layers]
    if not isinstance(cfg, mad.MADConfig):
        return ["mlstm"] * cfg.num_hidden_layers
    cells: list[str | None] = []
    for layer in cfg.layers:
        own = next((cell for cell in ("mlstm", "slstm") if layer.name.startswith(cell)), None)
        before = cells[-1] if cells and layer.kind == "channel" else None
        cells.append(own or before)
    return cells
