"""`mlxhog mad scale`: an architecture made deeper, for `mlxhog train`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlxhog.cli.flags import Flags
from mlxhog.config.options import option
from mlxhog.config.sources import resolve
from mlxhog.errors import ConfigError

ABOUT = """\
Make an architecture deeper, and write it as a model file that `mlxhog train --model` takes. WHAT is
a study, whose best candidate is taken, or what `mlxhog mad show` takes: a YAML file, a name, a line
of layers. `stack` repeats the whole sequence; `stretch` repeats every part where it stands. What
was searched at few layers stacks well, what was searched at 16 or more stretches (Composer,
arXiv:2510.00379). Blocks of a mixer and a channel map stay together."""
EXAMPLES = (
    "mad scale first --depth 16 --out deep.yaml",
    "mad scale winner.yaml --depth 24 --how stretch --dim 256 --out deep.yaml",
    'mad scale "mlstm swiglu slstm swiglu" --depth 16 --out deep.yaml',
    "train --model deep.yaml --time 10m",
)


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Options of `mlxhog mad scale`."""

    depth: int | None = option(None, "layers of the new model", low=1)
    how: str = option(
        "stack", "copies on top of each other, or in place", choices=("stack", "stretch")
    )
    out: str | None = option(None, "model file to write; one that is there is replaced")
    unit: str = option(
        "auto",
        "what stays together; auto: blocks where there are",
        choices=("auto", "layer", "block"),
    )
    dim: int | None = option(None, "width of the new model", low=1, none="its own")
    vocab: int | None = option(None, "tokens of its vocabulary", low=1, none="its own")


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad scale", ABOUT, EXAMPLES, ("WHAT",))
    flags.argument("what", nargs="+", metavar="WHAT", help="a study or an architecture")
    flags.argument("--json", action="store_true", help="one JSON object")
    flags.options(ScaleConfig)
    parsed = flags.parse(arguments)
    config = resolve(ScaleConfig, [parsed.given], parsed.problems)
    if config.depth is None or config.out is None:
        lacks = "--depth" if config.depth is None else "--out"
        raise ConfigError(f"mad scale lacks {lacks}, as in `mlxhog {EXAMPLES[0]}`")
    from mlxhog.mad import winner
    from mlxhog.mad.winner.scale import scaled, unit_of
    from mlxhog.models.mad.parameters import param_count
    from mlxhog.models.mad.sequence import canonical

    path = winner.place(config.out)
    source, cfg = winner.source(" ".join(parsed.other.what))
    unit = {"auto": unit_of(cfg.layers), "layer": 1, "block": 2}[config.unit]
    deep = replace(
        cfg,
        layers=scaled(
            cfg.layers, config.depth, "stretch" if config.how == "stretch" else "stack", unit
        ),
        hidden_size=config.dim or cfg.hidden_size,
        vocab_size=config.vocab or cfg.vocab_size,
    )
    winner.write(path, deep)
    facts = {
        "from": source,
        "layers": canonical(deep.layers),
        "depth": len(deep.layers),
        "how": config.how,
        "unit": unit,
        "cut": config.how == "stack" and len(deep.layers) % len(cfg.layers) > 0,
        "dim": deep.hidden_size,
        "params": param_count(deep),
        "file": config.out,
    }
    if parsed.other.json:
        from mlxhog.files import plain_json

        print(plain_json.dumps(facts).decode())
        return 0
    print(f"{source}\n{config.how} to {len(deep.layers)} layers: {facts['layers']}")
    if facts["cut"]:
        left = len(deep.layers) % len(cfg.layers)
        print(f"the last copy ends after {left} of its {len(cfg.layers)} layers")
    print(f"{facts['params']:,} parameters at width {deep.hidden_size}")
    print(f"next: mlxhog train --model {config.out}")
    return 0
