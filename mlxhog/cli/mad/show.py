"""Show the layers of an architecture, with shapes, parameters and state.

The state is the numbers kept per sequence. ARCH is a YAML file, a checkpoint, the name of an
architecture of the package, or a line of layers such as "(mlstm swiglu)*2".

Examples:
    mad show "mlstm(h4) swiglu slstm(h4) swiglu"
    mad show mad-7to1 --json
    mad show "mh-attention swiglu" --dim 64 --vocab 16 --seq-len 128
"""

from dataclasses import dataclass, replace

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
    from mlxhog.models.layers import at_width
    from mlxhog.models.registry import load_candidate

    cfg = load_candidate(" ".join(config.architecture), dim=config.dim)
    dim = config.dim or cfg.hidden_size
    cfg = replace(
        cfg,
        hidden_size=dim,
        vocab_size=config.vocab or cfg.vocab_size,
        max_length=config.seq_len or cfg.max_length,
        layers=at_width(cfg.layers, dim),
    )
    payload = cfg.described()
    parts = payload["parts"]
    columns = ("layer", "text", "kind", "params", "state", "grows")
    rows = [{**part, "state": sum(part["state"].values())} for part in parts]
    text = {**payload, "parts": [{name: row[name] for name in columns} for row in rows]}
    details = {  # of equal layers once; apart, as a part may have the name of a fact
        part["text"]: [
            *(f"{name} {'x'.join(map(str, shape))}" for name, shape in part["shapes"].items()),
            *(f"state {name} {count:,}" for name, count in part["state"].items()),
        ]
        for part in parts
    }
    return CommandResult(payload, [text, details])
