"""`mlxhog mad tasks`, `suites` and `layers`: the possible choices; `mad show`: one architecture."""

import inspect
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from mlxhog.cli.flags import Json, Plugins
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import argument, option, options
from mlxhog.display.streams import wrapped


def _list(rows: Iterable[tuple[str, dict[str, Any], Sequence[str]]], after: str) -> Report:
    """Return entries, each (words after its name, facts, details), and the next command."""
    facts, lines = list[dict[str, Any]](), list[str]()
    for words, one, details in rows:
        facts.append(one)
        lines.append(f"{one['name']}{words}  {one['about']}".rstrip())
        lines += [line for text in filter(None, details) for line in wrapped("    " + text)]
    return Report(facts, [*lines, f"next: {after}"])


@command("mad tasks")
def tasks(plugins: Plugins, config: Json) -> Report:
    """List the tasks: the skill that each tests, and its settings with those of its baseline.

    --task-set of mad train and mad data changes them.

    Examples:
        mad tasks
        mad tasks --plugin examples/my_task.py --json
    """
    from mlxhog.mad.tasks import BENCHMARK, known

    rows = []
    for task in sorted(known().values(), key=lambda task: task.name not in BENCHMARK):
        specs, baseline = options(task), task()
        values = {name: getattr(baseline, name) for name in specs}
        facts = {
            "name": task.name,
            "short": task.short,
            "about": task.about or _first_line(task),
            "settings": {n: {"value": v, "help": specs[n].help} for n, v in values.items()},
        }
        rows.append((f" ({task.short})", facts, [_assignments(values)]))
    small = '--task CR --task-set seq_len=32 --layers "mlstm swiglu" --dim 64 --steps 50'
    return _list(rows, f"mlxhog mad train {small}")


@command("mad suites")
def suites(config: Json) -> Report:
    """List the suites of mad bench and mad search.

    A suite has a number of runs of one candidate with one seed, a width, and tasks. The score is
    the mean over the tasks.

    Examples:
        mad suites
        mad suites --json
    """
    from mlxhog.mad.suites import SUITES

    rows = []
    for make in SUITES.values():
        suite, about = make(), (inspect.getdoc(make) or "").partition("\n")[0]
        runs = Counter(setting.task for setting in suite.task_configs for _ in suite.sweep)
        facts = {"name": suite.name, "about": about, "dim": suite.dim, "runs": suite.runs}
        each = ", ".join(f"{task} {n}" for task, n in runs.items())
        detail = f"{suite.runs} runs, width {suite.dim}: {each}"
        rows.append(("", {**facts, "tasks": runs}, [detail]))
    words = '--layers "mlstm swiglu mlstm swiglu" --suite smoke --dry-run'
    return _list(rows, f"mlxhog mad bench {words}")


@command("mad layers")
def layers(plugins: Plugins, config: Json) -> Report:
    """List the possible layers of a candidate: mixers, which mix positions, and channel maps.

    Each has its numbers, as in "mlstm(heads=2) swiglu", their defaults, and its source. A number
    with the default none follows from the width or from another number.

    Examples:
        mad layers
        mad layers --plugin examples/my_layer.py --json
    """
    from mlxhog.models.layers import known

    rows = []
    for layer in known().values():
        hints, defaults = get_type_hints(layer), layer().hyperparameters()
        types = {name: getattr(hints[name], "__name__", str(hints[name])) for name in defaults}
        facts = {
            "name": layer.name,
            "kind": layer.kind,
            "about": getattr(layer, "about", "") or _first_line(layer),
            "numbers": {n: {"default": x, "type": types[n]} for n, x in defaults.items()},
            "source": _source(layer),
        }
        rows.append((f" ({layer.kind})", facts, [_assignments(defaults), facts["source"]]))
    return _list(rows, 'mlxhog mad show "mlstm(heads=2) swiglu"')


def _assignments(values: Mapping[str, Any]) -> str:
    """Write values as --task-set and a line of layers take them."""
    texts = {n: f"{x:g}" if isinstance(x, float) else str(x) for n, x in values.items()}
    words = {"None": "none", "True": "true", "False": "false"}
    return " ".join(f"{name}={words.get(text, text)}" for name, text in texts.items())


def _first_line(cls: type[Any]) -> str:
    """Return the first line of the docstring of a class's file."""
    return (inspect.getdoc(sys.modules[cls.__module__]) or "").partition("\n")[0]


def _source(layer: type[Any]) -> str:
    """Return the papers in the docstring of a layer, a base or its file; or a user's file."""
    from mlxhog.config.plugins import files_of

    for file in files_of([layer]):
        return file.path
    docs = (one.__doc__ or "" for one in (*layer.__mro__, sys.modules[layer.__module__]))
    text = "\n\n".join(map(inspect.cleandoc, docs))
    papers = re.search(r"\bSources?: (.*?)(?:\n\n|\Z)", text, re.DOTALL)
    return " ".join(papers[1].split()) if papers else ""


@dataclass(frozen=True, kw_only=True)
class _Show(Plugins, Json):
    architecture: tuple[str, ...] = argument("ARCH...", "the architecture")
    dim: int | None = option(None, "width", low=1, none="its own")
    vocab: int | None = option(None, "tokens of the vocabulary", low=1, none="its own")
    seq_len: int | None = option(
        None, "length of the sequence, for the state", low=1, none="its own"
    )


@command("mad show")
def show(config: _Show) -> Report:
    """Print the flat list of layers of an architecture, with shapes, parameters and state.

    The state is the numbers kept per sequence. ARCH is a YAML file, a checkpoint, the name of an
    architecture of the package, or a line of layers such as "(mlstm swiglu)*2".

    Examples:
        mad show "mlstm(h4) swiglu slstm(h4) swiglu"
        mad show mad-7to1 --json
        mad show "mh-attention swiglu" --dim 64 --vocab 16 --seq-len 128
    """
    from mlxhog.models.families import param_spec
    from mlxhog.models.layers import at_width, to_dict
    from mlxhog.models.mad.config import layer_name
    from mlxhog.models.mad.sequence import canonical
    from mlxhog.models.registry import load_candidate

    cfg = load_candidate(" ".join(config.architecture))
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
    facts = {
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
    words = {**facts, "parts": [{name: row[name] for name in columns} for row in rows]}
    details = {  # of equal layers once; apart, as a part may have the name of a fact
        part["text"]: [
            *(f"{name} {'x'.join(map(str, shape))}" for name, shape in part["shapes"].items()),
            *(f"state {name} {count:,}" for name, count in part["state"].items()),
        ]
        for part in parts.values()
    }
    return Report(facts, [words, details])
