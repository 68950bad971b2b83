"""`mlxhog plot`: the losses of runs, in a line of the terminal each and as one picture."""

import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxhog.cli.flags import RunFolder, run_argument
from mlxhog.cli.frame import Report, command
from mlxhog.config.options import option, switch
from mlxhog.errors import RunError
from mlxhog.report.metrics import number
from mlxhog.report.streams import wrapped

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlxhog.report.record import RunRecord

ABOUT = """\
Draw the losses of runs in bits per byte: a line of the terminal for each, on one scale, and one
picture as a PNG file. A run in progress is drawn up to its last number."""
EXAMPLES = (
    "plot latest",
    "plot sotu notes --to compared.png",
    "plot latest --over tokens",
)
NAME = "losses.png"
NAMES_WIDTH, NUMBERS_WIDTH = 26, 24
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-=+*#@"
"""For a stream that cannot write `_BLOCKS`."""


@dataclass(frozen=True, kw_only=True)
class PlotConfig(RunFolder):
    """Options of `mlxhog plot`."""

    runs: tuple[str, ...] = run_argument("RUN...")
    json: bool = switch("end with one line of JSON, without curves")
    to: str | None = option(
        None, f"PNG file to write; {NAME} in the run's folder, or here for several", none="auto"
    )
    over: str = option("time", "horizontal axis of the curves", choices=("time", "steps", "tokens"))


@command("plot", ABOUT, EXAMPLES, PlotConfig)
def run(config: PlotConfig) -> Report:
    """Draw runs."""
    from mlxhog.base.durable import disk_errors, replace_file
    from mlxhog.checkpoint.run import find
    from mlxhog.report import charts
    from mlxhog.report.record import RunRecord, different_texts

    records = [RunRecord(find(spec, Path(config.out))) for spec in config.runs]
    records = list({each.run.directory.resolve(): each for each in records}.values())
    for each in records:
        if each.last("train_bits_per_byte") is None:
            raise RunError(
                f"the run {each.run.name} has no numbers yet; the first come two seconds after "
                "training begins"
            )
    differ = [text for text in [different_texts(records)] if text is not None]
    if not config.json:  # they need no package
        width = shutil.get_terminal_size().columns
        print("\n".join(_lines(records, width)))
        print("".join(f"{line}\n" for text in differ for line in wrapped(text, width)), end="")
    charts.require("the lines above need nothing more")
    from mlxhog.report.figures import losses

    default = Path(NAME) if len(records) > 1 else records[0].run.directory / NAME
    path = Path(config.to) if config.to else default
    with disk_errors(f"writing {path}"):
        replace_file(path, losses(records, config.over))
    notes = [*(note for record in records for note in record.notes), *differ]
    facts = {"plot": str(path), "runs": [_facts(record) for record in records], "notes": notes}
    return Report(facts, lambda: str(path))


def _facts(record: "RunRecord") -> dict[str, Any]:
    return {
        "name": record.run.name,
        "lines": len(record.history),
        "train_bits_per_byte": record.last("train_bits_per_byte"),
        "val_bits_per_byte": record.last("val_bits_per_byte"),
        "val_step": record.history.evaluation.get("val_step"),
        "final_bits_per_byte": record.last("final_bits_per_byte"),
        "held_out": record.part or None,
    }


def _lines(records: "Sequence[RunRecord]", width: int) -> list[str]:
    """Return a line per run, all on one scale."""
    import numpy as np

    from mlxhog.report.table import cut

    columns = (record.history.column("train_bits_per_byte") for record in records)
    curves = [column[~np.isnan(column)] for column in columns]
    low, high = (float(bound(np.concatenate(curves))) for bound in (np.min, np.max))
    names = [cut(record.run.name, NAMES_WIDTH) for record in records]
    wide = max(map(len, names))
    room = max(width - wide - NUMBERS_WIDTH - 4, 8)
    encoding = sys.stdout.encoding
    lines = []
    for name, curve, record in zip(names, curves, records, strict=True):
        held_out = record.last("val_bits_per_byte")
        scored = "" if held_out is None else f", held-out {number(held_out)}{record.scored_at}"
        drawn = _sparkline(curve, room, low=low, high=high, encoding=encoding)
        end = number(record.last("train_bits_per_byte"))
        lines.append(f"{name:{wide}}  {drawn:{room}}  {end}{scored}")
    return [*lines, f"training, bits per byte, from {high:.2f} at the top to {low:.2f}"]


def _sparkline(
    values: "NDArray[np.float64]", width: int, *, low: float, high: float, encoding: str | None
) -> str:
    """Draw numbers in one line, with a character for the mean of each part.

    Args:
        values: to draw; a part with only NaN is blank.
        width: most characters.
        low: number at the bottom.
        high: number at the top.
        encoding: of the output stream.

    >>> import numpy as np
    >>> _sparkline(np.array([8.0, 4.0, 2.0, 1.0]), 4, low=1.0, high=8.0, encoding="utf-8")
    '█▄▂▁'
    """
    import numpy as np

    parts = [part[~np.isnan(part)] for part in np.array_split(values, min(width, len(values)) or 1)]
    means = np.array([part.mean() if len(part) else math.nan for part in parts])
    span = max(high - low, 1e-12)
    signs = _BLOCKS if _writes(_BLOCKS, encoding) else _ASCII
    levels = np.clip((means - low) / span, 0.0, 1.0) * (len(signs) - 1)
    return "".join(" " if math.isnan(level) else signs[round(level)] for level in levels.tolist())


def _writes(text: str, encoding: str | None) -> bool:
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
