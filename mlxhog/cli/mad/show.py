"""`mlxhog mad show`: layers, shapes, parameters and state of an architecture."""

import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlxhog.cli.flags import Flags
from mlxhog.config.options import option
from mlxhog.config.sources import resolve

if TYPE_CHECKING:
    from mlxhog.mad.summary import Summary
    from mlxhog.report.table import Section

ABOUT = """\
Print the flat list of layers of an architecture, with their shapes, parameters, and the numbers
each keeps per sequence while it reads one. ARCH is a YAML file, a checkpoint, the name of an
architecture of the package, or a line of layers such as "(mlstm swiglu)*2"."""
EXAMPLES = (
    'mad show "mlstm(h4) swiglu slstm(h4) swiglu"',
    "mad show mad-7to1 --json",
    'mad show "mh-attention swiglu" --dim 64 --vocab 16 --seq-len 128',
)


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Options of `mlxhog mad show`; None keeps what the architecture says."""

    dim: int | None = option(None, "width", low=1, none="its own")
    vocab: int | None = option(None, "tokens of the vocabulary", low=1, none="its own")
    seq_len: int | None = option(
        None, "tokens read, after which state is counted", low=1, none="its own"
    )


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    flags = Flags("mad show", ABOUT, EXAMPLES, ("ARCH",))
    flags.argument("architecture", nargs="+", metavar="ARCH", help="what to show")
    flags.layers_from()
    flags.argument("--json", action="store_true", help="one JSON object with every number")
    flags.options(ShowConfig)
    parsed = flags.parse(arguments)
    config = resolve(ShowConfig, [parsed.given], parsed.problems)
    from mlxhog.mad.summary import summarise
    from mlxhog.models.registry import load_candidate

    parsed.load_layers()
    cfg = load_candidate(" ".join(parsed.other.architecture))
    length = config.seq_len or cfg.max_length
    cfg = replace(
        cfg,
        hidden_size=config.dim or cfg.hidden_size,
        vocab_size=config.vocab or cfg.vocab_size,
        max_length=length,
    )
    summary = summarise(cfg, length)
    if parsed.other.json:
        from mlxhog.files import plain_json

        print(plain_json.dumps(summary.to_dict()).decode())
        return 0
    from mlxhog.report.table import show

    plain = not sys.stdout.isatty() or os.environ.get("TERM") == "dumb"
    show([_parts(summary), _shapes(summary)], sys.stdout, plain=plain)
    return 0


def _parts(summary: "Summary") -> "Section":
    """Every layer, and the sums."""
    from mlxhog.report.table import Section

    rows = [
        (
            "" if part.layer is None else str(part.layer),
            part.text,
            part.kind,
            f"{part.params:,}",
            f"{sum(part.state.values()):,}{'+' if part.grows else ''}" if part.kind else "",
            ", ".join(f"{name} {count:,}" for name, count in part.state.items()),
        )
        for part in summary.parts
    ]
    grows = any(part.grows for part in summary.parts)
    state = f"{summary.state:,}{'+' if grows else ''}"
    rows.append(("", "total", "", f"{summary.params:,}", state, ""))
    notes = [
        f"state: numbers kept per sequence after {summary.seq_len:,} tokens"
        + ("; + grows with them" if grows else "")
    ]
    title = (
        f"{summary.layers}\n{summary.backbone}, width {summary.dim}, vocabulary "
        f"{summary.vocab_size}, position {summary.position}"
    )
    return Section(title, ("#", "layer", "kind", "parameters", "state", "of"), rows, notes)


def _shapes(summary: "Summary") -> "Section":
    """The parameters of every different layer once."""
    from mlxhog.report.table import Section

    rows, shown = [], set[str]()
    for part in summary.parts:
        if part.text in shown:
            continue
        shown.add(part.text)
        for number, (name, shape) in enumerate(part.shapes.items()):
            sizes = " x ".join(map(str, shape))
            rows.append(("" if number else part.text, name, sizes))
    return Section("shapes, of equal layers once", ("layer", "parameter", "shape"), rows)
