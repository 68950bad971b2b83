"""`mlxhog mad show`: layers, shapes, parameters and state of an architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import plugin_flag
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import argument, option, switch

if TYPE_CHECKING:
    from mlxhog.models.mad.config import MADConfig
    from mlxhog.report.table import Section

ABOUT = """\
Print the flat list of layers of an architecture, with their shapes, parameters and state: the
numbers kept per sequence. ARCH is a YAML file, a checkpoint, the name of an architecture of the
package, or a line of layers such as "(mlstm swiglu)*2"."""
EXAMPLES = (
    'mad show "mlstm(h4) swiglu slstm(h4) swiglu"',
    "mad show mad-7to1 --json",
    'mad show "mh-attention swiglu" --dim 64 --vocab 16 --seq-len 128',
)


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Options of `mlxhog mad show`; None keeps the value of the architecture."""

    architecture: tuple[str, ...] = argument("ARCH...", "the architecture")
    plugin: tuple[str, ...] = plugin_flag()
    json: bool = switch("one JSON object with every number")
    dim: int | None = option(None, "width", low=1, none="its own")
    vocab: int | None = option(None, "tokens of the vocabulary", low=1, none="its own")
    seq_len: int | None = option(
        None, "length of the sequence, for the state", low=1, none="its own"
    )


@command("mad show", ABOUT, EXAMPLES, ShowConfig)
def show(config: ShowConfig) -> Report:
    """Show an architecture."""
    from mlxhog.models.registry import load_candidate

    cfg = load_candidate(" ".join(config.architecture))
    length = config.seq_len or cfg.max_length
    cfg = replace(
        cfg,
        hidden_size=config.dim or cfg.hidden_size,
        vocab_size=config.vocab or cfg.vocab_size,
        max_length=length,
    )
    summary = summarise(cfg, length)
    return Report(summary, lambda: [_parts(summary), _shapes(summary)])


def summarise(cfg: MADConfig, seq_len: int) -> dict[str, Any]:
    """Return a model as plain values, part by part, with its state after `seq_len` tokens.

    A part is one layer with its norm, or another part of the model, such as its head. Its `grows`
    says whether its state grows with the sequence.
    """
    from mlxhog.models.families import param_spec
    from mlxhog.models.mad.config import layer_name
    from mlxhog.models.mad.layers import at_width, to_dict
    from mlxhog.models.mad.sequence import canonical

    cfg = replace(cfg, layers=at_width(cfg.layers, cfg.hidden_size))
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, spec in param_spec(cfg).items():
        words = name.split(".")
        prefix = ".".join(words[: 2 if words[0] == "layers" else 1])
        groups.setdefault(prefix, {})[name.removeprefix(f"{prefix}.")] = spec.shape
    numbers = {layer_name(number): number for number in range(len(cfg.layers))}
    now, later = (cfg.state_sizes(length) for length in (seq_len, seq_len + 1))
    parts: list[dict[str, Any]] = []
    for prefix, shapes in groups.items():
        number = numbers.get(prefix)
        layer = None if number is None else cfg.layers[number]
        parts.append(
            {
                "layer": number,
                "text": prefix if layer is None else canonical([layer]),
                "kind": "" if layer is None else layer.kind,
                "numbers": {} if layer is None else to_dict(layer),
                "shapes": shapes,
                "params": sum(math.prod(shape) for shape in shapes.values()),
                "state": {} if number is None else now[number],
                "grows": number is not None and now[number] != later[number],
            }
        )
    return {
        "layers": canonical(cfg.layers),
        "dim": cfg.hidden_size,
        "vocab_size": cfg.vocab_size,
        "seq_len": seq_len,
        "position": cfg.position,
        "backbone": cfg.backbone,
        "parts": parts,
        "params": sum(part["params"] for part in parts),
        "state": sum(sum(part["state"].values()) for part in parts),
    }


def _parts(summary: Mapping[str, Any]) -> Section:
    """Return the table of the parts, with their sums."""
    from mlxhog.report.table import Section

    parts = summary["parts"]
    rows = [
        (
            "" if part["layer"] is None else str(part["layer"]),
            part["text"],
            part["kind"],
            f"{part['params']:,}",
            f"{sum(part['state'].values()):,}{'+' * part['grows']}" if part["kind"] else "",
            ", ".join(f"{name} {count:,}" for name, count in part["state"].items()),
        )
        for part in parts
    ]
    grows = any(part["grows"] for part in parts)
    rows.append(
        ("", "total", "", f"{summary['params']:,}", f"{summary['state']:,}{'+' * grows}", "")
    )
    note = f"state: numbers kept per sequence after {summary['seq_len']:,} tokens"
    title = (
        f"{summary['layers']}\n{summary['backbone']}, width {summary['dim']}, vocabulary "
        f"{summary['vocab_size']}, position {summary['position']}"
    )
    head = ("#", "layer", "kind", "parameters", "state", "of")
    return Section(title, head, rows, [note + "; + grows with them" * grows])


def _shapes(summary: Mapping[str, Any]) -> Section:
    """Return the table of parameters, of equal layers once."""
    from mlxhog.report.table import Section

    rows, shown = [], set[str]()
    for part in summary["parts"]:
        if part["text"] in shown:
            continue
        shown.add(part["text"])
        for number, (name, shape) in enumerate(part["shapes"].items()):
            sizes = " x ".join(map(str, shape))
            rows.append(("" if number else part["text"], name, sizes))
    return Section("shapes, of equal layers once", ("layer", "parameter", "shape"), rows)
