"""List the layers of candidates: sequence mixers and channel mixers.

Each has its hyperparameters, as in "mlstm(heads=2) swiglu", with their defaults, and its source.
One with the default none follows from the width or from another one.

Examples:
    mad layers
    mad layers --plugin examples/my_layer.py --json
"""

import inspect
import re
import sys
from typing import Any, get_type_hints

from mlxhog.cli.frame import CommandResult, Json, Plugins, command
from mlxhog.cli.mad.tasks import assignments_text, first_line, listing


@command()
def run(plugins: Plugins, config: Json) -> CommandResult:
    from mlxhog.models.layers import known

    rows = []
    for layer in known().values():
        hints, defaults = get_type_hints(layer), layer().hyperparameters()
        types = {name: getattr(hints[name], "__name__", str(hints[name])) for name in defaults}
        payload = {
            "name": layer.name,
            "kind": layer.kind,
            "about": getattr(layer, "about", "") or first_line(layer),
            "numbers": {n: {"default": x, "type": types[n]} for n, x in defaults.items()},
            "source": _source(layer),
        }
        rows.append((f" ({layer.kind})", payload, [assignments_text(defaults), payload["source"]]))
    return listing(rows, 'mlxhog mad show "mlstm(heads=2) swiglu"')


def _source(layer: type[Any]) -> str:
    """Return the papers in the docstring of a layer, a base or its file; or a user's file."""
    from mlxhog.config.plugins import files_of

    for file in files_of([layer]):
        return file.path
    docs = (one.__doc__ or "" for one in (*layer.__mro__, sys.modules[layer.__module__]))
    text = "\n\n".join(map(inspect.cleandoc, docs))
    papers = re.search(r"\bSources?: (.*?)(?:\n\n|\Z)", text, re.DOTALL)
    return " ".join(papers[1].split()) if papers else ""
