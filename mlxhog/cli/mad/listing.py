"""`mlxhog mad tasks`, `suites` and `layers`: the possible choices; `mad show`: one architecture."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_type_hints

from mlxhog.cli.flags import Json, Plugins
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import argument, option, options
from mlxhog.report.streams import wrapped

if TYPE_CHECKING:
    from mlxhog.models.mad.config import MADConfig


@dataclass(frozen=True, kw_only=True)
class OwnListConfig(Plugins, Json):
    """Options of a list that a user's file may add to."""


def _blocks(entries: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield a line for each entry, and its details below."""
    for head, *details in entries:
        yield head.rstrip()
        for text in filter(None, details):
            yield from wrapped(f"    {text}")


@command(
    "mad tasks",
    "List the tasks: the skill that each tests, and its settings with the values of its baseline,\n"
    "which --set of mad train and mad data changes.",
    ("mad tasks", "mad tasks --plugin examples/my_task.py --json"),
    OwnListConfig,
)
def tasks(config: OwnListConfig) -> Report:
    """List the tasks, those of the benchmark first."""
    from mlxhog.mad.tasks import BENCHMARK, known

    facts: list[dict[str, Any]] = []
    for task in sorted(known().values(), key=lambda task: task.name not in BENCHMARK):
        baseline, specs = task(), options(task)
        about = task.about or _first_line(task)
        settings = {n: {"value": getattr(baseline, n), "help": specs[n].help} for n in specs}
        row = {"name": task.name, "short": task.short, "about": about, "settings": settings}
        facts.append(row)
    entries = (
        (
            f"{one['name']} ({one['short']})  {one['about']}",
            _assignments({name: each["value"] for name, each in one["settings"].items()}),
        )
        for one in facts
    )
    small = '--set seq_len=32 --layers "mlstm swiglu" --dim 64 --steps 50'
    notes = [*_blocks(entries), f"next: mlxhog mad train --task CR {small}"]
    return Report(facts, words={}, notes=notes)


@command(
    "mad suites",
    "List the suites of mad bench and mad search: the runs of one candidate with one seed, its "
    "width, and\nthe tasks. The score is the mean over the tasks.",
    ("mad suites", "mad suites --json"),
    Json,
)
def suites(config: Json) -> Report:
    """List the suites."""
    from mlxhog.mad.suites import SUITES

    facts: list[dict[str, Any]] = []
    for make in SUITES.values():
        suite, about = make(), (inspect.getdoc(make) or "").partition("\n")[0]
        runs = Counter(setting.task for setting in suite.settings for _ in suite.points)
        row = {"name": suite.name, "about": about, "dim": suite.dim, "runs": suite.runs}
        facts.append({**row, "tasks": runs})
    entries = (
        (
            f"{one['name']}  {one['about']}",
            f"{one['runs']} runs, width {one['dim']}: "
            + ", ".join(f"{task} {runs}" for task, runs in one["tasks"].items()),
        )
        for one in facts
    )
    bench = 'next: mlxhog mad bench --layers "mlstm swiglu mlstm swiglu" --suite smoke --dry-run'
    return Report(facts, words={}, notes=[*_blocks(entries), bench])


@command(
    "mad layers",
    "List the possible layers of a candidate: mixers, which mix positions, and channel maps. Each "
    'has its\nnumbers, as in "mlstm(heads=2) swiglu", their defaults, and its source. A number '
    "with the default\nnone follows from the width or from another number.",
    ("mad layers", "mad layers --plugin examples/my_layer.py --json"),
    OwnListConfig,
)
def layers(config: OwnListConfig) -> Report:
    """List the layers."""
    from mlxhog.models.mad.layers import known

    facts = [_layer(layer) for layer in known().values()]
    entries = (
        (
            f"{one['name']} ({one['kind']})  {one['about']}",
            _assignments({name: each["default"] for name, each in one["numbers"].items()}),
            one["source"],
        )
        for one in facts
    )
    notes = [*_blocks(entries), 'next: mlxhog mad show "mlstm(heads=2) swiglu"']
    return Report(facts, words={}, notes=notes)


def _assignments(values: dict[str, Any]) -> str:
    """Write values as --set and a line of layers take them."""

    def spelt(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:g}"
        return str(value).lower() if value is None or isinstance(value, bool) else str(value)

    return " ".join(f"{name}={spelt(value)}" for name, value in values.items())


def _layer(layer: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(layer)
    types = {n: getattr(hint, "__name__", "") for n, hint in hints.items()}
    types |= {n: str(hint) for n, hint in hints.items() if not isinstance(hint, type)}
    fields = dataclasses.fields(layer)
    return {
        "name": layer.name,
        "kind": layer.kind,
        "about": getattr(layer, "about", "") or _first_line(layer),
        "numbers": {one.name: {"default": one.default, "type": types[one.name]} for one in fields},
        "source": _source(layer),
    }


def _first_line(cls: type[Any]) -> str:
    """Return the first line of the docstring of a class's file."""
    return (inspect.getdoc(sys.modules[cls.__module__]) or "").partition("\n")[0]


def _source(layer: type[Any]) -> str:
    """Return the papers in the docstring of a layer, a base or its file; or a user's file."""
    from mlxhog.config.plugins import loaded

    module = layer.__module__
    own = [file.path for file in loaded() if file.module == module]
    texts = [inspect.cleandoc(one.__doc__ or "") for one in (*layer.__mro__, sys.modules[module])]
    papers = re.search(r"\bSources?: (.*?)(?:\n\n|\Z)", "\n\n".join(texts), re.DOTALL)
    return own[0] if own else " ".join(papers[1].split()) if papers else ""


# -- one architecture ------------------------------------------------------------------------------

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
class ShowConfig(Plugins, Json):
    """Options of `mlxhog mad show`; None keeps the value of the architecture."""

    architecture: tuple[str, ...] = argument("ARCH...", "the architecture")
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
    facts = summarise(cfg, length)
    columns = ("layer", "text", "kind", "params", "state", "grows")
    parts = [{**part, "state": sum(part["state"].values())} for part in facts["parts"]]
    words = {
        **{name: value for name, value in facts.items() if name != "parts"},
        "parts": [{name: part[name] for name in columns} for part in parts],
    }
    for part in facts["parts"]:  # of equal layers once
        words[part["text"]] = [
            *(f"{name} {'x'.join(map(str, shape))}" for name, shape in part["shapes"].items()),
            *(f"state {name} {count:,}" for name, count in part["state"].items()),
        ]
    return Report(facts, words=words)


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
