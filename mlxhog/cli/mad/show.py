"""Show the layers of an architecture, with shapes, parameters and state.

The state is the numbers kept per sequence. ARCH is a YAML file, a checkpoint, the name of an
architecture of the package, or a line of layers such as "(mlstm swiglu)*2".

Examples:
    mad show "mlstm(h4) swiglu slstm(h4) swiglu"
    mad show mad-7to1 --json
    mad show "mh-attention swiglu" --dim 64 --vocab 16 --seq-len 128
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from mlxhog.cli.frame import CommandResult, Json, Plugins, argument, command, option


@dataclass(frozen=True, kw_only=True)
class _Show(Plugins, Json):
    architecture: tuple[str, ...] = argument("ARCH...", "the architecture")
    dim: int | None = option(None, "width", low=1, none="its own")
    vocab: int | None = option(None, "tokens of the vocabulary", low=1, none="its own")
    seq_len: int | None = option(
        None, "length of the sequence, for the state", low=1, none="its own"
    )


@command()
def run(config: _Show) -> CommandResult:
    from mlxhog.models.families import param_spec
    from mlxhog.models.layers import at_width, to_dict
    from mlxhog.models.mad.config import layer_name
    from mlxhog.models.mad.sequence import canonical
    from mlxhog.models.registry import load_candidate

    cfg = load_candidate(" ".join(config.architecture), dim=config.dim)
    dim, length = config.dim or cfg.hidden_size, config.seq_len or cfg.max_length
    cfg = replace(
        cfg,
        hidden_size=dim,
        vocab_size=config.vocab or cfg.vocab_size,
        max_length=length,
        layers=at_width(cfg.layers, dim),
    )
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # by part: a layer with its norm, or a head
    for name, spec in param_spec(cfg).items():
        path = name.split(".")
        depth = 2 if path[0] == "layers" else 1
        shapes.setdefault(".".join(path[:depth]), {})[".".join(path[depth:])] = spec.shape
    parts: dict[str, dict[str, Any]] = {
        name: {"layer": None, "text": name, "kind": "", "numbers": {}, "shapes": own,
               "params": sum(map(math.prod, own.values())), "state": {}, "grows": False}
        for name, own in shapes.items()
    }  # fmt: skip
    sizes = zip(*(cfg.state_sizes(n) for n in (length, length + 1)), strict=True)
    for number, (layer, (now, later)) in enumerate(zip(cfg.layers, sizes, strict=True)):
        parts[layer_name(number)] |= {
            "layer": number, "text": canonical([layer]), "kind": layer.kind,
            "numbers": to_dict(layer), "state": now, "grows": now != later,
        }  # fmt: skip
    payload = {
        "layers": canonical(cfg.layers),
        "dim": dim,
        "vocab_size": cfg.vocab_size,
        "seq_len": length,
        "position": cfg.position,
        "backbone": cfg.backbone,
        "parts": [*parts.values()],
        "params": sum(part["params"] for part in parts.values()),
        "state": sum(sum(part["state"].values()) for part in parts.values()),
    }
    columns = ("layer", "text", "kind", "params", "state", "grows")
    rows = [{**part, "state": sum(part["state"].values())} for part in parts.values()]
    text = {**payload, "parts": [{name: row[name] for name in columns} for row in rows]}
    details = {  # of equal layers once; apart, as a part may have the name of a fact
        part["text"]: [
            *(f"{name} {'x'.join(map(str, shape))}" for name, shape in part["shapes"].items()),
            *(f"state {name} {count:,}" for name, count in part["state"].items()),
        ]
        for part in parts.values()
    }
    return CommandResult(payload, [text, details])
